//! Files of text that may be compressed, read as a stream and written in the same way.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::files::{PIECE, WholeFile};
use crate::{Error, Result};

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, of one member or several.
    Gzip,
    /// Zstandard, of one frame or several.
    Zstd,
}

/// A text may be so many times as long as its compressed form, as long as it is above [`FREE_BYTES`].
const MOST_EXPANSION: u64 = 2000;
const FREE_BYTES: u64 = 64 << 20;

impl Compression {
    /// Tells the compression of a file by its first bytes.
    pub fn of(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let mut magic = [0; 4];
        let read =
            read_full(&mut file, &mut magic).map_err(|source| Error::io("read", path, source))?;
        Ok(match &magic[..read] {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            _ => Self::Plain,
        })
    }
}

/// A text, decompressed while it is read.
pub(crate) struct TextFile {
    path: PathBuf,
    reader: Decoder,
    given: u64,
}

enum Decoder {
    Plain(HashedFile),
    Gzip(Box<MultiGzDecoder<HashedFile>>),
    Zstd(zstd::Decoder<'static, BufReader<HashedFile>>),
}

/// A file that knows how much of it has been read, and the hash of that: nothing must be read again to tell
/// the input from others.
struct HashedFile {
    file: File,
    read: u64,
    hasher: blake3::Hasher,
}

impl Read for HashedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(PIECE);
        let read = self.file.read(&mut buffer[..most])?;
        self.hasher.update(&buffer[..read]);
        self.read += read as u64;
        Ok(read)
    }
}

impl TextFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let compression = Compression::of(path)?;
        let open_error = |source| Error::io("open", path, source);
        let file = File::open(path).map_err(open_error)?;
        let file = HashedFile {
            file,
            read: 0,
            hasher: blake3::Hasher::new(),
        };
        let reader = match compression {
            Compression::Plain => Decoder::Plain(file),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(file))),
            Compression::Zstd => Decoder::Zstd(zstd::Decoder::new(file).map_err(open_error)?),
        };
        Ok(Self {
            path: path.to_path_buf(),
            reader,
            given: 0,
        })
    }

    /// Returns how much of a compressed file has been read; None for a plain one.
    pub(crate) fn compressed_position(&self) -> Option<u64> {
        match &self.reader {
            Decoder::Plain(_) => None,
            Decoder::Gzip(decoder) => Some(decoder.get_ref().read),
            Decoder::Zstd(decoder) => Some(decoder.get_ref().get_ref().read),
        }
    }

    /// Returns the BLAKE3 hash of the file, of which what has not been read is read now.
    pub(crate) fn hash(&mut self) -> Result<blake3::Hash> {
        let file = match &mut self.reader {
            Decoder::Plain(file) => file,
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut().get_mut(),
        };
        io::copy(file, &mut io::sink()).map_err(|source| Error::io("read", &self.path, source))?;
        Ok(file.hasher.finalize())
    }

    /// Fills the buffer as far as the text goes; returns how much there was.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let outcome = match &mut self.reader {
            Decoder::Plain(file) => read_full(file, buffer),
            Decoder::Gzip(decoder) => read_full(decoder.as_mut(), buffer),
            Decoder::Zstd(decoder) => read_full(decoder, buffer),
        };
        let path = self.path.display();
        let read = outcome.map_err(|source| match (&self.reader, source.kind()) {
            (Decoder::Plain(_), _) => Error::io("read", &self.path, source),
            (_, ErrorKind::UnexpectedEof) => Error::Pool(format!(
                "{path}: the compressed file ends too early; it has been cut off"
            )),
            _ => Error::Pool(format!(
                "{path}: cannot be decompressed ({source}); the file is damaged"
            )),
        })?;
        self.given += read as u64;
        if let Some(position) = self.compressed_position()
            && self.given > FREE_BYTES
            && self.given / MOST_EXPANSION > position
        {
            return Err(Error::Pool(format!(
                "{path}: expands to more than {MOST_EXPANSION} times its size, as no text does; \
                 if it is right, decompress it and name that file"
            )));
        }
        Ok(read)
    }
}

/// Fills the buffer as far as the reader goes.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A whole file, compressed while it is written.
pub(crate) enum Encoder {
    Plain(WholeFile),
    Gzip(GzEncoder<WholeFile>),
    Zstd(zstd::Encoder<'static, WholeFile>),
}

impl Encoder {
    pub(crate) fn create(path: &Path, compression: Compression) -> Result<Self> {
        let file = WholeFile::create(path)?;
        Ok(match compression {
            Compression::Plain => Self::Plain(file),
            Compression::Gzip => Self::Gzip(GzEncoder::new(file, flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(
                zstd::Encoder::new(file, zstd::DEFAULT_COMPRESSION_LEVEL)
                    .map_err(|source| Error::io("write", path, source))?,
            ),
        })
    }

    pub(crate) fn commit(self, path: &Path) -> Result<()> {
        let file = match self {
            Self::Plain(file) => Ok(file),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        };
        file.map_err(|source| Error::io("write", path, source))?
            .commit()?;
        Ok(())
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
