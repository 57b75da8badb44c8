//! A folder of images on this machine: which paths lead to files inside it.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::hashed::FixedSet;
use super::images::{Verdict, climbs_out};
use crate::{Error, Result};

pub(super) struct LocalFolder {
    root: PathBuf,
    /// `root` without symbolic links.
    real: PathBuf,
    folders: RwLock<HashMap<String, Arc<Folder>>>,
}

impl LocalFolder {
    pub(super) fn open(root: &Path) -> Result<Self> {
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
            folders: RwLock::default(),
        })
    }

    /// Returns where a file of the folder is.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Says whether the listing of its folder holds a file; if not, it may still be there.
    pub(super) fn lists(&self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let found = self.folder(folder);
        found.verdict == Verdict::Inside && found.lists(name, || self.root.join(folder))
    }

    /// Strips the folder from an absolute path that lies in it.
    pub(super) fn inside<'a>(&self, path: &'a str) -> Option<&'a str> {
        if !path.starts_with('/') {
            return None;
        }
        let relative = [&self.root, &self.real]
            .into_iter()
            .find_map(|root| Path::new(path).strip_prefix(root).ok())?;
        relative.to_str()
    }

    /// Says where a path leads, without a look into its file.
    pub(super) fn examine(&self, path: &str) -> Verdict {
        if self.lists(path) {
            return Verdict::Inside;
        }
        let path = Path::new(path);
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
pub(super) const ASKED: u32 = 64;
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
