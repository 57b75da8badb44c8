//! Whether the image paths of a pool name images of the images folder, and what is in these.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Images;
use super::hashed::HashedMap;
use super::header::{self, Fault, Rules};
use super::image_checks::reason;
use super::local::LocalFolder;
use super::record::Refusal;
use super::reject::{Reason, Rejection, shown};
use super::store::ImageStore;
use crate::Result;

/// A path as 128 bits of its BLAKE3 hash: a pool of 10^7 images would not fit into memory as text.
pub(super) type ImageKey = [u8; 16];

/// Hashes a text, or an image, to 128 bits.
pub(super) fn key(content: impl AsRef<[u8]>) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(content.as_ref()).as_bytes()[..16]);
    key
}

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Inside,
    /// Inside once the backslashes are read as separators.
    InsideWithSlashes,
    Outside,
    Missing,
    NotAFile,
    /// Inside, but of no use; the fault is kept apart, since faults are few and paths many.
    Faulty,
}

/// Where the images are.
enum Place {
    Local(LocalFolder),
    Store(Arc<dyn ImageStore>),
}

/// The images folder, with what has been found out about it.
pub(super) struct ImageFolder {
    place: Place,
    /// Paths that had to be examined one by one, or whose files were looked into.
    files: Memo<Verdict>,
    rules: Option<Rules>,
    faults: Mutex<HashMap<ImageKey, Fault>>,
}

impl ImageFolder {
    /// Opens the folder; `rules` says how its files are looked at, if they are.
    pub(super) fn open(images: &Images, rules: Option<Rules>) -> Result<Self> {
        let place = match images {
            Images::Folder(root) => Place::Local(LocalFolder::open(root)?),
            Images::Store(store) => Place::Store(Arc::clone(store)),
        };
        Ok(Self {
            place,
            files: Memo::new(),
            rules,
            faults: Mutex::default(),
        })
    }

    /// Says whether looking at an image takes a request, which others need not wait for.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.place, Place::Store(_))
    }

    /// Returns the path with `/` as the separator, and its key.
    pub(super) fn resolve<'a>(
        &self,
        path: Cow<'a, str>,
    ) -> std::result::Result<(Cow<'a, str>, ImageKey), Refusal> {
        let path = match self.inside(&path) {
            Some(relative) => Cow::Owned(relative.to_owned()),
            None => path,
        };
        let path_key = key(path.as_bytes());
        if self.rules.is_none()
            && let Place::Local(folder) = &self.place
            && folder.lists(&path)
        {
            return Ok((path, path_key));
        }
        let verdict = self
            .files
            .get_or_insert(path_key, || self.look_at(&path, path_key))
            .map_err(Refusal::Failed)?;
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
                return Err(Rejection::new(reason(fault), None, detail).into());
            }
        };
        let detail = format!("image '{}' {what} the images folder", shown(&path));
        Err(Rejection::new(reason, None, detail).into())
    }

    /// Strips the folder from an absolute path, or address, that lies in it.
    pub(super) fn inside<'a>(&self, path: &'a str) -> Option<&'a str> {
        match &self.place {
            Place::Local(folder) => folder.inside(path),
            Place::Store(store) => path.strip_prefix(store.url())?.strip_prefix('/'),
        }
    }

    /// Finds the image and checks what is in it.
    fn look_at(&self, path: &str, path_key: ImageKey) -> Result<Verdict> {
        match self.examine(path, path_key)? {
            Verdict::Missing if path.contains('\\') => {
                match self.examine(&with_slashes(path), path_key)? {
                    Verdict::Inside => Ok(Verdict::InsideWithSlashes),
                    verdict => Ok(verdict),
                }
            }
            verdict => Ok(verdict),
        }
    }

    fn examine(&self, path: &str, path_key: ImageKey) -> Result<Verdict> {
        let found = match &self.place {
            Place::Local(folder) => match folder.examine(path) {
                Verdict::Inside => self
                    .rules
                    .map(|rules| header::check_file(&folder.path(path), &rules)),
                verdict => return Ok(verdict),
            },
            Place::Store(_) if is_outside(path) => return Ok(Verdict::Outside),
            Place::Store(store) => {
                // All of the image or nothing: a part of it would take as many requests.
                let most = if self.rules.is_some() { None } else { Some(0) };
                let Some(content) = store.read(path, most)? else {
                    return Ok(Verdict::Missing);
                };
                self.rules
                    .map(|rules| header::check_bytes(&content, &rules))
            }
        };
        let Some(Err(fault)) = found else {
            return Ok(Verdict::Inside);
        };
        self.faults().insert(path_key, fault);
        Ok(Verdict::Faulty)
    }

    fn faults(&self) -> MutexGuard<'_, HashMap<ImageKey, Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_slashes(path: &str) -> String {
    path.replace('\\', "/")
}

/// Says whether a path is an address of its own, absolute, or leads above where it starts.
fn is_outside(path: &str) -> bool {
    let as_path = Path::new(path);
    path.contains("://") || as_path.is_absolute() || climbs_out(as_path)
}

/// Says whether `..` leads above where the path starts.
pub(super) fn climbs_out(path: &Path) -> bool {
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

/// A map that several threads fill; the value of a key is the same whoever finds it.
pub(super) struct Memo<V>(Vec<Mutex<HashedMap<ImageKey, V>>>);

impl<V: Clone> Memo<V> {
    pub(super) fn new() -> Self {
        Self((0..64).map(|_| Mutex::default()).collect())
    }

    /// # Errors
    ///
    /// That of `find`; nothing is kept of it.
    pub(super) fn get_or_insert<E>(
        &self,
        key: ImageKey,
        find: impl FnOnce() -> std::result::Result<V, E>,
    ) -> std::result::Result<V, E> {
        let shard = &self.0[usize::from(key[0]) % self.0.len()];
        let lock = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&key).cloned();
        // Looked up without the lock: a slow file system must not hold the other threads up.
        known.map_or_else(
            || {
                let value = find()?;
                lock().insert(key, value.clone());
                Ok(value)
            },
            Ok,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::local::ASKED;
    use super::*;
    use crate::Error;

    /// The path as the pool has it, or why the image is rejected.
    fn resolved(folder: &ImageFolder, path: &str) -> std::result::Result<String, Rejection> {
        match folder.resolve(Cow::Borrowed(path)) {
            Ok((path, _)) => Ok(path.into_owned()),
            Err(Refusal::Rejected(rejection)) => Err(rejection),
            Err(other) => panic!("{path}: {other:?}"),
        }
    }

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
        let folder = ImageFolder::open(&Images::Folder(images), None).unwrap();
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
                let found = resolved(&folder, path).map_err(|error| error.reason);
                assert_eq!(found.as_deref(), expected.as_ref().copied(), "{path:?}");
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
        let folder =
            ImageFolder::open(&Images::Folder(temporary.path().into()), Some(rules)).unwrap();
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
                let found = resolved(&folder, path).unwrap_err();
                assert_eq!((found.reason, found.detail.as_str()), (reason, detail));
                // The second answer comes from the first look.
                fs::write(temporary.path().join(with_slashes(path)), b"GIF89a").unwrap();
            }
        }
    }

    /// Images by name; the store is out of reach while there are none.
    #[derive(Debug, Default)]
    struct Shelf {
        images: Mutex<HashMap<&'static str, Vec<u8>>>,
        asked: AtomicUsize,
    }

    impl ImageStore for Shelf {
        fn url(&self) -> &str {
            "s3://bucket/images"
        }

        fn read(&self, path: &str, most: Option<usize>) -> Result<Option<Vec<u8>>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let images = self.images.lock().unwrap();
            if images.is_empty() {
                return Err(Error::Argument("no connection".into()));
            }
            let found = images.get(path);
            Ok(found.map(|found| found[..found.len().min(most.unwrap_or(usize::MAX))].to_vec()))
        }
    }

    #[test]
    fn images_of_a_store_are_judged_alike() {
        let whole =
            b"BM\x1e\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x01\0\x01\0\x01\0\x18\0\xff\xff\xff\0";
        let shelf = Arc::new(Shelf::default());
        let open = |max_pixels: Option<u64>| {
            let rules = max_pixels.map(|max_pixels| Rules {
                max_pixels,
                decode: false,
            });
            ImageFolder::open(&Images::Store(Arc::<Shelf>::clone(&shelf)), rules).unwrap()
        };
        let (looking, asking) = (open(Some(1000)), open(None));
        let failed = looking.resolve(Cow::Borrowed("x.bmp"));
        assert!(matches!(failed, Err(Refusal::Failed(Error::Argument(_)))));
        shelf.images.lock().unwrap().extend([
            ("x.bmp", whole.to_vec()),
            ("a/b/y.bmp", whole.to_vec()),
            ("empty.bmp", Vec::new()),
            ("cut.bmp", whole[..29].to_vec()),
        ]);
        for (path, expected) in [
            ("x.bmp", Ok("x.bmp")),
            ("a\\b\\y.bmp", Ok("a/b/y.bmp")),
            ("s3://bucket/images/a/b/y.bmp", Ok("a/b/y.bmp")),
            ("empty.bmp", Err(Reason::ImageEmpty)),
            ("cut.bmp", Err(Reason::ImageCutOff)),
            ("nothing.bmp", Err(Reason::ImageMissing)),
            ("a\\nothing.bmp", Err(Reason::ImageMissing)),
            ("/x.bmp", Err(Reason::ImageOutside)),
            ("../images/x.bmp", Err(Reason::ImageOutside)),
            ("a/../../x.bmp", Err(Reason::ImageOutside)),
            ("..\\x.bmp", Err(Reason::ImageOutside)),
            ("s3://bucket/images/../x.bmp", Err(Reason::ImageOutside)),
            ("s3://bucket/images2/x.bmp", Err(Reason::ImageOutside)),
            ("https://host/x.bmp", Err(Reason::ImageOutside)),
        ] {
            let before = shelf.asked.load(Ordering::Relaxed);
            for _ in 0..2 {
                let found = resolved(&looking, path).map_err(|error| error.reason);
                assert_eq!(found.as_deref(), expected.as_ref().copied(), "{path:?}");
            }
            let asked = shelf.asked.load(Ordering::Relaxed) - before;
            assert!(asked <= 1 + usize::from(path.contains('\\')), "{path:?}");
            // Without a look into it, an image is whatever has its name.
            let found = resolved(&asking, path).map_err(|error| error.reason);
            match expected {
                Err(Reason::ImageEmpty | Reason::ImageCutOff) => {
                    assert_eq!(found.as_deref(), Ok(path))
                }
                _ => assert_eq!(found.as_deref(), expected.as_ref().copied(), "{path:?}"),
            }
        }
    }
}
