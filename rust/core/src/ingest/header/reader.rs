//! Reads numbers at any place of a file or a slice, a window at a time.

use std::fs::File;
use std::io;

use crate::files;

/// Where bytes come from.
pub(super) trait Source {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        files::read_at(self, into, at)
    }
}

/// An image that is a part of a larger file.
pub(super) struct Part<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
}

impl Source for Part<'_> {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        match self.offset.checked_add(at) {
            Some(at) => files::read_at(self.file, into, at),
            None => Ok(0),
        }
    }
}

impl Source for &[u8] {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..));
        let rest = rest.unwrap_or_default();
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// Why reading goes no further.
#[derive(Debug)]
pub(super) enum Stop {
    /// The file ends before.
    End,
    Wrong(&'static str),
    Unreadable(io::ErrorKind),
}

pub(super) type Step<T> = std::result::Result<T, Stop>;

const WINDOW: usize = 4096;

pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    len: u64,
    /// Bytes of the source from `start` on.
    window: Vec<u8>,
    start: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a dyn Source, len: u64) -> Self {
        Self {
            source,
            len,
            window: Vec::new(),
            start: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the first bytes.
    pub(super) fn head(&mut self) -> Result<&[u8], super::Fault> {
        self.fill(0).map_err(super::unreadable)?;
        Ok(&self.window)
    }

    /// Returns `N` bytes.
    pub(super) fn bytes<const N: usize>(&mut self, at: u64) -> Step<[u8; N]> {
        let end = at.checked_add(N as u64).ok_or(Stop::End)?;
        if end > self.len {
            return Err(Stop::End);
        }
        if at < self.start || end > self.start + self.window.len() as u64 {
            self.fill(at)
                .map_err(|error| Stop::Unreadable(error.kind()))?;
        }
        let from = (at - self.start) as usize;
        // The file may have become shorter since its size was asked for.
        let found = self.window.get(from..from + N).ok_or(Stop::End)?;
        Ok(found.try_into().expect("the slice has N bytes"))
    }

    pub(super) fn byte(&mut self, at: u64) -> Step<u8> {
        self.bytes(at).map(u8::from_le_bytes)
    }

    pub(super) fn le16(&mut self, at: u64) -> Step<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    pub(super) fn be16(&mut self, at: u64) -> Step<u16> {
        self.bytes(at).map(u16::from_be_bytes)
    }

    pub(super) fn le32(&mut self, at: u64) -> Step<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    pub(super) fn be32(&mut self, at: u64) -> Step<u32> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    /// Returns the bytes from `at` on, as many as the window holds; none at the end.
    pub(super) fn window(&mut self, at: u64, bytes: usize) -> Step<Vec<u8>> {
        let mut found = vec![0; bytes];
        self.read(&mut found, at)
            .map_err(|error| Stop::Unreadable(error.kind()))?;
        Ok(found)
    }

    /// Returns the last bytes, at most so many.
    pub(super) fn tail(&mut self, bytes: usize) -> Step<Vec<u8>> {
        let at = self.len.saturating_sub(bytes as u64);
        self.window(at, (self.len - at) as usize)
    }

    fn fill(&mut self, at: u64) -> io::Result<()> {
        let mut window = std::mem::take(&mut self.window);
        window.resize(WINDOW, 0);
        self.read(&mut window, at)?;
        (self.window, self.start) = (window, at);
        Ok(())
    }

    /// Reads from `at` to the end, as much as there is room for; cuts `into` to what was read.
    fn read(&self, into: &mut Vec<u8>, at: u64) -> io::Result<()> {
        let rest = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        into.truncate(rest);
        let read = read_full(self.source, into, at)?;
        into.truncate(read);
        Ok(())
    }
}

fn read_full(source: &dyn Source, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match source.read_at(&mut into[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
