//! Decodes the picture, for pools whose files may be damaged inside.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::ImageError;
use image::{ImageFormat, ImageReader, Limits};

use super::{Fault, Header, Kind, Result};
use crate::files;

/// Bytes that the decoder may take for each pixel, and for anything else.
const BYTES_PER_PIXEL: u64 = 16;
const MORE_BYTES: u64 = 64 << 20;

/// Decodes an image whose header has been checked.
///
/// A feature that the decoder lacks is no fault: the model's own image library may have it.
pub(super) fn decode(encoded: impl BufRead + Seek, header: &Header) -> Result<()> {
    let mut reader = ImageReader::with_format(encoded, format(header.kind));
    let mut limits = Limits::no_limits();
    let pixels = u64::from(header.width) * u64::from(header.height);
    limits.max_alloc = Some(pixels.saturating_mul(BYTES_PER_PIXEL) + MORE_BYTES);
    reader.limits(limits);
    // A decoder that meets a case its authors did not think of must not end the whole run.
    match catch_unwind(AssertUnwindSafe(|| reader.decode().map(drop))) {
        Ok(Ok(()) | Err(ImageError::Unsupported(_))) => Ok(()),
        Ok(Err(ImageError::IoError(error))) if error.raw_os_error().is_some() => {
            Err(Fault::Unreadable(error.kind()))
        }
        Ok(Err(_)) | Err(_) => Err(Fault::Damaged("its picture cannot be decoded")),
    }
}

fn format(kind: Kind) -> ImageFormat {
    match kind {
        Kind::Jpeg => ImageFormat::Jpeg,
        Kind::Png => ImageFormat::Png,
        Kind::Gif => ImageFormat::Gif,
        Kind::Webp => ImageFormat::WebP,
        Kind::Bmp => ImageFormat::Bmp,
        Kind::Tiff => ImageFormat::Tiff,
    }
}

/// A part of a file, read as if it were a file.
pub(super) struct Section<'a> {
    file: &'a File,
    offset: u64,
    length: u64,
    position: u64,
}

impl<'a> Section<'a> {
    pub(super) fn new(file: &'a File, offset: u64, length: u64) -> Self {
        Self {
            file,
            offset,
            length,
            position: 0,
        }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let room = into.len().min(rest);
        let at = self.offset.saturating_add(self.position);
        let read = files::read_at(self.file, &mut into[..room], at)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
