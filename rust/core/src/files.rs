//! Files that are either whole under their name or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file being written to a temporary sibling; [`WholeFile::commit`] gives it its name.
///
/// Dropped without a commit, it leaves nothing behind, and an earlier file of that name stays.
pub(crate) struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<Flowing>,
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
            writer: BufWriter::with_capacity(1 << 20, Flowing::new(file)),
            committed: false,
        })
    }

    /// Wraps an error of writing with the file's final name.
    pub(crate) fn error(&self, source: io::Error) -> Error {
        Error::io("write", &self.path, source)
    }

    /// Flushes the content to the disk, gives the file its name, and returns the BLAKE3 hash of the content.
    pub(crate) fn commit(mut self) -> Result<blake3::Hash> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(|source| self.error(source))?;
        self.committed = true;
        // The rename itself survives a power cut only once the folder is on the disk.
        sync_folder(folder_of(&self.path)).map_err(|source| self.error(source))?;
        Ok(self.writer.get_ref().hasher.finalize())
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

/// A file whose bytes are hashed, and begin their way to the disk, while more are written: nothing must be
/// read again for its checksum, and little is left to wait for at the end.
struct Flowing {
    file: File,
    hasher: blake3::Hasher,
    written: u64,
    /// Bytes that the disk has been asked for.
    asked: u64,
}

/// The disk is asked for so many bytes at once.
const FLOW: u64 = 16 << 20;

/// So many bytes are read or written at once, then hashed while they are still in the core's own cache.
pub(crate) const PIECE: usize = 128 << 10;

impl Flowing {
    fn new(file: File) -> Self {
        Self {
            file,
            hasher: blake3::Hasher::new(),
            written: 0,
            asked: 0,
        }
    }
}

impl Write for Flowing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        // The last page is still written to.
        let whole = self.written & !0xfff;
        if whole - self.asked >= FLOW {
            begin_write_back(&self.file, self.asked..whole);
            self.asked = whole;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Asks for a part of a file to be written out. Errors show when the file is flushed, which alone promises
/// anything.
#[cfg(target_os = "linux")]
fn begin_write_back(file: &File, part: Range<u64>) {
    let (start, length) = (part.start as i64, (part.end - part.start) as i64);
    // SAFETY: the descriptor is open; the call reads no memory of this process.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(not(target_os = "linux"))]
fn begin_write_back(_: &File, _: Range<u64>) {}

/// Reads at a position; fewer bytes than asked for where the file ends. The file's cursor has no meaning after it.
#[cfg(unix)]
pub(crate) fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, into, at)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, at)
}

/// Fills `into` from a position; an end of the file before that is an error.
pub(crate) fn read_exact_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match read_at(file, into, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                into = &mut into[read..];
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens a file without a name beside `path`: it takes disk only as long as it is open.
pub(crate) fn unnamed(path: &Path) -> Result<File> {
    let name = format!(".mllm-selector.{}.tmp", std::process::id());
    let temporary = folder_of(path).join(name);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    nameless(&mut options, &temporary).map_err(|source| Error::io("create", temporary, source))
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Windows flushes no folders; NTFS has a journal of its entries.
#[cfg(windows)]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn nameless(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// Windows removes the file when it is closed, however the process ends.
#[cfg(windows)]
fn nameless(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;

    const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
    options.custom_flags(FILE_FLAG_DELETE_ON_CLOSE).open(path)
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
        assert_eq!(file.commit().unwrap(), blake3::hash(b"new"));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
