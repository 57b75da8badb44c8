//! Whether the image paths of a pool name files inside the images folder, and what is in these.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use super::hashed::{FixedSet, HashedMap};
use super::header::{self, Fault, Rules};
use super::image_checks::reason;
use super::reject::{Reason, Rejection, shown};
use crate::{Error, Result};

/// A path as 128 bits of its BLAKE3 hash: a pool of 10^7 images would not fit into memory as text.
pub(super) type ImageKey = [u8; 16];

/// Hashes a text, or an image, to 128 bits.
pub(super) fn key(content: impl AsRef<[u8]>) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(content.as_ref()).as_bytes()[..16]);
    key
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Inside,
    /// Inside once the backslashes are read as separators.
    InsideWithSlashes,
    Outside,
    Missing,
    NotAFile,
    /// Inside, but of no use; the fault is kept apart, since faults are few and paths many.
    Faulty,
}

/// The images folder, with what has been found out about it.
pub(super) struct ImageFolder {
    root: PathBuf,
    /// `root` without symbolic links.
    real: PathBuf,
    /// Paths that had to be examined one by one, or whose files were looked into.
    files: Memo<Verdict>,
    folders: RwLock<HashMap<String, Arc<Folder>>>,
    rules: Option<Rules>,
    faults: Mutex<HashMap<ImageKey, Fault>>,
}

impl ImageFolder {
    /// Opens the folder; `rules` says how its files are looked at, if they are.
    pub(super) fn open(root: &Path, rules: Option<Rules>) -> Result<Self> {
        let wrong = |what: &str| {
            let root = root.display();
            Error::Argument(format!(
                "--images: {root} {what}; name the folder that the image paths start from"
            ))
        };
        if !root.exists() {
            return Err(wrong("does not exist"));
        }
        if !root.is_dir() {
            return Err(wrong("is not a folder"));
        }
        let real = root
            .canonicalize()
            .map_err(|source| Error::io("open", root, source))?;
        Ok(Self {
            root: root.to_path_buf(),
            real,
            files: Memo::new(),
            folders: RwLock::default(),
            rules,
            faults: Mutex::default(),
        })
    }

    /// Returns the path with `/` as the separator, and its key.
    pub(super) fn resolve<'a>(
        &self,
        path: Cow<'a, str>,
    ) -> std::result::Result<(Cow<'a, str>, ImageKey), Rejection> {
        let path = match self.inside(&path) {
            Some(relative) => Cow::Owned(relative.to_owned()),
            None => path,
        };
        let path_key = key(path.as_bytes());
        if self.rules.is_none() && self.is_listed(&path) {
            return Ok((path, path_key));
        }
        let verdict = self
            .files
            .get_or_insert(path_key, || self.look_at(&path, path_key));
        let (reason, what) = match verdict {
            Verdict::Inside => return Ok((path, path_key)),
            Verdict::InsideWithSlashes => {
                let path = with_slashes(&path);
                let path_key = key(path.as_bytes());
                return Ok((Cow::Owned(path), path_key));
            }
            Verdict::Outside => (Reason::ImageOutside, "leads out of"),
            Verdict::Missing => (Reason::ImageMissing, "does not exist in"),
            Verdict::NotAFile => (Reason::ImageMissing, "is not a regular file of"),
            Verdict::Faulty => {
                let fault = self.faults()[&path_key];
                let detail = format!("image '{}' {fault}", shown(&path));
                return Err(Rejection::new(reason(fault), None, detail));
            }
        };
        let detail = format!("image '{}' {what} the images folder", shown(&path));
        Err(Rejection::new(reason, None, detail))
    }

    /// Says whether the listing of its folder holds a file; if not, it may still be there.
    fn is_listed(&self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let found = self.folder(folder);
        found.verdict == Verdict::Inside && found.lists(name, || self.root.join(folder))
    }

    fn folder(&self, path: &str) -> Arc<Folder> {
        let known = self.folders.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = known.get(path) {
            return Arc::clone(folder);
        }
        drop(known);
        let folder = Arc::new(Folder::new(self.examine_folder(Path::new(path))));
        let mut known = self.folders.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(path.to_owned()).or_insert(folder))
    }

    /// Finds the file and checks what is in it.
    fn look_at(&self, path: &str, path_key: ImageKey) -> Verdict {
        let verdict = match self.is_listed(path) {
            true => Verdict::Inside,
            false => self.examine(path),
        };
        let file = match verdict {
            Verdict::Inside => self.root.join(path),
            Verdict::InsideWithSlashes => self.root.join(with_slashes(path)),
            _ => return verdict,
        };
        let Some(Err(fault)) = self.rules.map(|rules| header::check_file(&file, &rules)) else {
            return verdict;
        };
        self.faults().insert(path_key, fault);
        Verdict::Faulty
    }

    fn faults(&self) -> MutexGuard<'_, HashMap<ImageKey, Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Strips the folder from an absolute path that lies in it.
    fn inside<'a>(&self, path: &'a str) -> Option<&'a str> {
        if !path.starts_with('/') {
            return None;
        }
        let relative = [&self.root, &self.real]
            .into_iter()
            .find_map(|root| Path::new(path).strip_prefix(root).ok())?;
        relative.to_str()
    }

    fn examine(&self, path: &str) -> Verdict {
        match self.examine_as_given(Path::new(path)) {
            Verdict::Missing if path.contains('\\') => {
                match self.examine_as_given(Path::new(&with_slashes(path))) {
                    Verdict::Inside => Verdict::InsideWithSlashes,
                    verdict => verdict,
                }
            }
            verdict => verdict,
        }
    }

    fn examine_as_given(&self, path: &Path) -> Verdict {
        if path.is_absolute() || climbs_out(path) {
            return Verdict::Outside;
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        match self.folder(&folder.to_string_lossy()).verdict {
            Verdict::Inside => {}
            verdict => return verdict,
        }
        let full = self.root.join(path);
        // Nothing is opened, so that a FIFO or device cannot hold the check up.
        let Ok(metadata) = fs::symlink_metadata(&full) else {
            return Verdict::Missing;
        };
        if metadata.is_file() {
            return Verdict::Inside;
        }
        if metadata.is_symlink() {
            return self.examine_link(&full);
        }
        Verdict::NotAFile
    }

    fn examine_folder(&self, folder: &Path) -> Verdict {
        if folder.is_absolute() || climbs_out(folder) {
            return Verdict::Outside;
        }
        match self.root.join(folder).canonicalize() {
            Ok(real) if real.starts_with(&self.real) => Verdict::Inside,
            Ok(_) => Verdict::Outside,
            Err(_) => Verdict::Missing,
        }
    }

    fn examine_link(&self, link: &Path) -> Verdict {
        match link.canonicalize() {
            Ok(real) if !real.starts_with(&self.real) => Verdict::Outside,
            Ok(real) if real.is_file() => Verdict::Inside,
            Ok(_) => Verdict::NotAFile,
            Err(_) => Verdict::Missing,
        }
    }
}

fn with_slashes(path: &str) -> String {
    path.replace('\\', "/")
}

/// Says whether `..` leads above where the path starts.
fn climbs_out(path: &Path) -> bool {
    let mut depth = 0_usize;
    for component in path.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    false
}

/// A folder below the images folder, listed once it has been asked for often: a look into a listing costs a
/// small part of a call of the system for every file.
struct Folder {
    verdict: Verdict,
    asked: AtomicU32,
    /// One thread lists it, while the others go on without.
    is_being_listed: AtomicBool,
    /// Hashes of the names of its regular files; None if they cannot be listed.
    names: OnceLock<Option<FixedSet>>,
    hasher: RandomState,
}

/// So often is a folder asked for before it is listed.
const ASKED: u32 = 64;
/// Names of larger folders would take too much memory.
const MOST_NAMES: usize = 1 << 22;

impl Folder {
    fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            asked: AtomicU32::new(0),
            is_being_listed: AtomicBool::new(false),
            names: OnceLock::new(),
            hasher: RandomState::new(),
        }
    }

    fn lists(&self, name: &str, path: impl FnOnce() -> PathBuf) -> bool {
        let names = match self.names.get() {
            Some(names) => names,
            None if self.asked.fetch_add(1, Ordering::Relaxed) < ASKED => return false,
            None if self.is_being_listed.swap(true, Ordering::Relaxed) => return false,
            None => self.names.get_or_init(|| self.list(&path()).ok().flatten()),
        };
        let hash = self.hasher.hash_one(name.as_bytes());
        names.as_ref().is_some_and(|names| names.contains(hash))
    }

    fn list(&self, path: &Path) -> io::Result<Option<FixedSet>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            // Links and whatever the file system does not tell about are examined one by one.
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                names.push(self.hasher.hash_one(entry.file_name().as_encoded_bytes()));
            }
            if names.len() > MOST_NAMES {
                return Ok(None);
            }
        }
        Ok(Some(FixedSet::of(&names)))
    }
}

/// A map that several threads fill; the value of a key is the same whoever finds it.
pub(super) struct Memo<V>(Vec<Mutex<HashedMap<ImageKey, V>>>);

impl<V: Clone> Memo<V> {
    pub(super) fn new() -> Self {
        Self((0..64).map(|_| Mutex::default()).collect())
    }

    pub(super) fn get_or_insert(&self, key: ImageKey, find: impl FnOnce() -> V) -> V {
        let shard = &self.0[usize::from(key[0]) % self.0.len()];
        let lock = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&key).cloned();
        // Looked up without the lock: a slow file system must not hold the other threads up.
        known.unwrap_or_else(|| {
            let value = find();
            lock().insert(key, value.clone());
            value
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, ImageFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let images = temporary.path().join("images");
        fs::create_dir_all(images.join("a/b")).unwrap();
        fs::create_dir(images.join("c")).unwrap();
        for name in ["x.png", "a/b/y.png", "back\\slash.png"] {
            fs::write(images.join(name), "").unwrap();
        }
        fs::write(temporary.path().join("secret.png"), "").unwrap();
        symlink("../secret.png", images.join("out.png")).unwrap();
        symlink("..", images.join("c/up")).unwrap();
        symlink("..", images.join("parent")).unwrap();
        symlink("a/b/y.png", images.join("in.png")).unwrap();
        symlink("a", images.join("folder.png")).unwrap();
        symlink("nowhere", images.join("dangling.png")).unwrap();
        let folder = ImageFolder::open(&images, None).unwrap();
        (temporary, folder)
    }

    #[test]
    fn paths_are_judged_by_where_they_lead() {
        let (temporary, folder) = folder();
        let absolute = temporary.path().join("images/x.png").display().to_string();
        for (path, expected) in [
            ("x.png", Ok("x.png")),
            ("./a//b/y.png", Ok("./a//b/y.png")),
            ("a/b/../../x.png", Ok("a/b/../../x.png")),
            ("a\\b\\y.png", Ok("a/b/y.png")),
            ("back\\slash.png", Ok("back\\slash.png")),
            ("in.png", Ok("in.png")),
            ("c/up/x.png", Ok("c/up/x.png")),
            ("../images/x.png", Err(Reason::ImageOutside)),
            ("..\\secret.png", Err(Reason::ImageOutside)),
            ("a/../../secret.png", Err(Reason::ImageOutside)),
            ("parent/secret.png", Err(Reason::ImageOutside)),
            ("out.png", Err(Reason::ImageOutside)),
            (absolute.as_str(), Ok("x.png")),
            ("/dev/null", Err(Reason::ImageOutside)),
            ("nothing.png", Err(Reason::ImageMissing)),
            ("x.png/more.png", Err(Reason::ImageMissing)),
            ("dangling.png", Err(Reason::ImageMissing)),
            ("folder.png", Err(Reason::ImageMissing)),
            ("a", Err(Reason::ImageMissing)),
            (".", Err(Reason::ImageMissing)),
            ("", Err(Reason::ImageMissing)),
            ("x\0.png", Err(Reason::ImageMissing)),
            ("C:\\x.png", Err(Reason::ImageMissing)),
        ] {
            // Again and again: later answers come from a cache, then from the folder's listing.
            for _ in 0..=ASKED + 1 {
                let found = folder.resolve(Cow::Borrowed(path));
                let found = found
                    .as_ref()
                    .map(|(path, _)| path.as_ref())
                    .map_err(|error| error.reason);
                assert_eq!(found, expected, "{path:?}");
            }
        }
    }

    #[test]
    fn files_are_looked_at_once() {
        let temporary = tempfile::tempdir().unwrap();
        let rules = Rules {
            max_pixels: 1000,
            decode: false,
        };
        let folder = ImageFolder::open(temporary.path(), Some(rules)).unwrap();
        fs::create_dir(temporary.path().join("a")).unwrap();
        fs::write(temporary.path().join("a/empty.png"), "").unwrap();
        fs::write(temporary.path().join("page.jpg"), "<html></html>").unwrap();
        for (path, reason, detail) in [
            (
                "a\\empty.png",
                Reason::ImageEmpty,
                "image 'a\\empty.png' is empty",
            ),
            (
                "page.jpg",
                Reason::ImageUnknown,
                "image 'page.jpg' is no JPEG, PNG, GIF, WebP, BMP or TIFF",
            ),
        ] {
            for _ in 0..2 {
                let found = folder.resolve(Cow::Borrowed(path)).unwrap_err();
                assert_eq!((found.reason, found.detail.as_str()), (reason, detail));
                // The second answer comes from the first look.
                fs::write(temporary.path().join(with_slashes(path)), b"GIF89a").unwrap();
            }
        }
    }
}
