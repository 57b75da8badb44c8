//! Files that are either whole under their name or not there.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file being written to a temporary sibling; [`WholeFile::commit`] gives it its name.
///
/// Dropped without a commit, it leaves nothing behind, and an earlier file of that name stays.
pub(crate) struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    committed: bool,
}

impl WholeFile {
    /// Opens the temporary sibling.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            Error::Argument(format!("{}: not the name of a file", path.display()))
        })?;
        let hidden = format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id());
        let temporary = path.with_file_name(hidden);
        let file = File::create(&temporary).map_err(|source| Error::io("create", path, source))?;
        Ok(Self {
            path: path.to_path_buf(),
            temporary,
            writer: BufWriter::with_capacity(1 << 20, file),
            committed: false,
        })
    }

    /// Wraps an error of writing with the file's final name.
    pub(crate) fn error(&self, source: io::Error) -> Error {
        Error::io("write", &self.path, source)
    }

    /// Flushes the content to the disk and gives the file its name.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(|source| self.error(source))?;
        self.committed = true;
        // The rename itself survives a power cut only once the folder is on the disk.
        File::open(folder_of(&self.path))
            .and_then(|folder| folder.sync_all())
            .map_err(|source| self.error(source))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing better can be done about a temporary file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Opens a file without a name beside `path`: it takes disk only as long as it is open.
pub(crate) fn unnamed(path: &Path) -> Result<File> {
    let name = format!(".mllm-selector.{}.tmp", std::process::id());
    let temporary = folder_of(path).join(name);
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .and_then(|file| fs::remove_file(&temporary).map(|()| file))
        .map_err(|source| Error::io("create", temporary, source))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_leaves_nothing_and_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_committed_file_replaces_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
