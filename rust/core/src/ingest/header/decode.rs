//! Decodes the picture, for pools whose files may be damaged inside.

use std::io::{BufRead, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::ImageError;
use image::{ImageFormat, ImageReader, Limits};

use super::{Fault, Header, Kind, Result};

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
