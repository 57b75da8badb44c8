//! Each kind whole, cut off, too large and damaged; files and slices alike; no bytes whatever break the readers.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::symlink;

use image::{DynamicImage, ImageFormat, RgbImage};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules {
    max_pixels: 1000,
    decode: false,
};

const KINDS: [(Kind, ImageFormat); 6] = [
    (Kind::Jpeg, ImageFormat::Jpeg),
    (Kind::Png, ImageFormat::Png),
    (Kind::Gif, ImageFormat::Gif),
    (Kind::Webp, ImageFormat::WebP),
    (Kind::Bmp, ImageFormat::Bmp),
    (Kind::Tiff, ImageFormat::Tiff),
];

fn encode(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 37) as u8, (y * 91) as u8, (x * y) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

fn check(bytes: &[u8]) -> Result<Header> {
    let found = check_bytes(bytes, &RULES);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    assert_eq!(check_file(file.path(), &RULES), found);
    check_inside(bytes, &RULES, found);
    found
}

/// Puts the image into a larger file, with another one on either side.
fn check_inside(bytes: &[u8], rules: &Rules, expected: Result<Header>) {
    let other = encode(ImageFormat::Png, 3, 3);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [&other, bytes, &other].concat()).unwrap();
    let (offset, length) = (other.len() as u64, bytes.len() as u64);
    assert_eq!(check_range(file.path(), offset, length, rules), expected);
}

#[test]
fn whole_images_of_every_kind_pass() {
    for (kind, format) in KINDS {
        let bytes = encode(format, 21, 13);
        let expected = Header {
            kind,
            width: 21,
            height: 13,
        };
        assert_eq!(check(&bytes), Ok(expected), "{kind}");
        let decode = Rules {
            decode: true,
            ..RULES
        };
        assert_eq!(check_bytes(&bytes, &decode), Ok(expected), "{kind}");
        check_inside(&bytes, &decode, Ok(expected));
    }
}

#[test]
fn cut_off_anywhere_is_noticed() {
    for (kind, format) in KINDS {
        let bytes = encode(format, 21, 13);
        let needed = match kind {
            // The trailer is not needed.
            Kind::Gif => bytes.len() - 1,
            _ => bytes.len(),
        };
        for length in 0..needed {
            let found = check_bytes(&bytes[..length], &RULES);
            let expected = match length {
                0 => Fault::Empty,
                _ if found == Err(Fault::Unknown) && length < 18 => Fault::Unknown,
                _ => Fault::CutOff(kind),
            };
            assert_eq!(found, Err(expected), "{kind} of {length} bytes");
        }
    }
}

#[test]
fn the_limit_counts_pixels() {
    for (kind, format) in KINDS {
        let found = check_bytes(&encode(format, 50, 20), &RULES);
        assert!(found.is_ok(), "{kind}");
        let found = check_bytes(&encode(format, 77, 13), &RULES);
        let expected = Fault::TooManyPixels {
            width: 77,
            height: 13,
            most: 1000,
        };
        assert_eq!(found, Err(expected), "{kind}");
    }
}

#[test]
fn padding_and_other_data_may_follow_the_end() {
    for (kind, format) in KINDS {
        for padding in [&[0; 700][..], b"\r\n", &[b'x'; 70_000]] {
            let mut bytes = encode(format, 21, 13);
            bytes.extend_from_slice(padding);
            assert!(check_bytes(&bytes, &RULES).is_ok(), "{kind}");
        }
    }
}

#[test]
fn an_end_inside_a_thumbnail_is_not_the_end() {
    let bytes = encode(ImageFormat::Jpeg, 21, 13);
    let mut with_thumbnail = bytes[..2].to_vec();
    with_thumbnail.extend_from_slice(b"\xff\xe1\x00\x06\xff\xd8\xff\xd9");
    with_thumbnail.extend_from_slice(&bytes[2..]);
    assert!(check_bytes(&with_thumbnail, &RULES).is_ok());
    let cut = &with_thumbnail[..with_thumbnail.len() - 2];
    assert_eq!(check_bytes(cut, &RULES), Err(Fault::CutOff(Kind::Jpeg)));
}

#[test]
fn what_is_no_image_is_named() {
    for (bytes, expected) in [
        (&b""[..], Fault::Empty),
        (b"x", Fault::Unknown),
        (b"BMW and other cars, in a text file", Fault::Unknown),
        (b"<!DOCTYPE html><html>", Fault::Unknown),
        (
            b"\xef\xbb\xbf <?xml version='1.0'?>\n<SVG width='1'/>",
            Fault::Svg,
        ),
        (b"\x89PNG\r\n", Fault::CutOff(Kind::Png)),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\x0dIDAT",
            Fault::Damaged("its first chunk is not IHDR"),
        ),
        (
            b"\xff\xd8\xff\xd9",
            Fault::Damaged("it ends before its picture begins"),
        ),
        (
            b"\xff\xd8\xff\xe0\0\x01",
            Fault::Damaged("one of its segments has an impossible length"),
        ),
    ] {
        assert_eq!(check(bytes), Err(expected));
    }
    let mut flat = encode(ImageFormat::Png, 21, 13);
    flat[16..20].fill(0);
    assert_eq!(
        check(&flat),
        Err(Fault::Damaged("it says that it has no pixels"))
    );
}

#[test]
fn decoding_finds_what_the_header_does_not_show() {
    let mut bytes = encode(ImageFormat::Png, 21, 13);
    let at = memchr::memmem::find(&bytes, b"IDAT").unwrap();
    bytes[at + 8..at + 40].fill(0x55);
    assert!(check(&bytes).is_ok());
    let decode = Rules {
        decode: true,
        ..RULES
    };
    let expected = Fault::Damaged("its picture cannot be decoded");
    assert_eq!(check_bytes(&bytes, &decode), Err(expected));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &bytes).unwrap();
    assert_eq!(check_file(file.path(), &decode), Err(expected));
    check_inside(&bytes, &decode, Err(expected));
}

#[test]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo.png");
    let name = std::ffi::CString::new(fifo.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the name is a string that ends in a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let device = folder.path().join("device.png");
    symlink("/dev/zero", &device).unwrap();
    for path in [fifo.as_path(), &device, folder.path()] {
        assert_eq!(check_file(path, &RULES), Err(Fault::NotAFile));
    }
    let missing = Fault::Unreadable(io::ErrorKind::NotFound);
    assert_eq!(
        check_file(&folder.path().join("none.png"), &RULES),
        Err(missing)
    );
}

proptest! {
    #[test]
    fn no_bytes_whatever_break_the_readers(
        which in 0..KINDS.len(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
        tail in vec(any::<u8>(), 0..40),
    ) {
        let mut bytes = encode(KINDS[which].1, 21, 13);
        bytes.truncate(end.index(bytes.len()) + 1);
        bytes.extend_from_slice(&tail);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = check_bytes(&bytes, &RULES);
        let _ = check_bytes(&bytes, &Rules { decode: true, ..RULES });
    }
}
