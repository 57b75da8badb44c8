//! Where an image is, and how a record's text says so.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::images::{ImageKey, key};

/// An image as a record gives it.
#[derive(Debug)]
pub(super) enum Picture<'a> {
    /// A file of the images folder. The key is set once it is known to be there.
    Path(Cow<'a, str>, ImageKey),
    /// The encoded image itself.
    Bytes {
        name: Option<Cow<'a, str>>,
        bytes: Cow<'a, [u8]>,
    },
    /// Bytes of the record's own input file.
    Range {
        name: Option<Cow<'a, str>>,
        offset: u64,
        length: u64,
    },
}

impl<'a> Picture<'a> {
    /// A path as the record gives it.
    pub(super) fn path(path: Cow<'a, str>) -> Self {
        Self::Path(path, ImageKey::default())
    }

    /// Returns how many bytes of the image are held in memory.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Bytes { bytes, .. } => bytes.len(),
            Self::Path(..) | Self::Range { .. } => 0,
        }
    }

    /// Reads a path, a `file:` address or a `data:` address, which holds the image itself.
    ///
    /// # Errors
    ///
    /// In words, what is wrong with a `data:` address.
    pub(super) fn from_text(text: Cow<'a, str>) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("file://") {
            return Ok(Self::path(Cow::Owned(path.to_owned())));
        }
        let Some(data) = text.strip_prefix("data:") else {
            return Ok(Self::path(text));
        };
        let (_, encoded) = data
            .split_once(";base64,")
            .ok_or("a data address without ';base64,'")?;
        let bytes = STANDARD
            .decode(encoded.trim_ascii())
            .map_err(|_| "a data address that is not base64")?;
        Ok(Self::Bytes {
            name: None,
            bytes: Cow::Owned(bytes),
        })
    }

    /// Returns what tells this image from others, in input `file`.
    pub(super) fn key(&self, file: u32) -> ImageKey {
        match self {
            Self::Path(_, key) => *key,
            Self::Bytes { bytes, .. } => key(bytes),
            Self::Range { offset, .. } => {
                key([u64::from(file), *offset].map(u64::to_le_bytes).concat())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |text: &'static str| Picture::from_text(Cow::Borrowed(text));
        assert!(matches!(read("a/b.png"), Ok(Picture::Path(path, _)) if path == "a/b.png"));
        assert!(
            matches!(read("file:///a/b.png"), Ok(Picture::Path(path, _)) if path == "/a/b.png")
        );
        let Ok(Picture::Bytes { bytes, .. }) = read("data:image/png;base64,iVBORw==") else {
            panic!("no bytes");
        };
        assert_eq!(bytes.as_ref(), b"\x89PNG");
        assert!(read("data:image/png,x").is_err());
        assert!(read("data:;base64,?").is_err());
    }
}
