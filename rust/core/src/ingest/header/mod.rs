//! Whether an image can be opened: its kind, size and completeness, from its first and last bytes.
//!
//! Nothing is decoded. A file is read beyond its head and tail only where its tail leaves open whether it is whole
//! (bytes after a PNG's or JPEG's end), and a GIF to the end of its first picture.

mod bitmap;
mod decode;
mod gif;
mod jpeg;
mod png;
mod reader;
mod tiff;
mod webp;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Cursor};
use std::path::Path;

use self::decode::{Section, decode};
use self::reader::{Part, Reader, Stop};

/// The formats that are known by their first bytes; the file's name does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Jpeg,
    Png,
    Gif,
    Webp,
    Bmp,
    Tiff,
}

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// Why an image cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Unreadable(io::ErrorKind),
    NotAFile,
    Empty,
    Unknown,
    Svg,
    /// What is wrong with the header.
    Damaged(&'static str),
    TooManyPixels {
        width: u32,
        height: u32,
        most: u64,
    },
    CutOff(Kind),
}

type Result<T> = std::result::Result<T, Fault>;

/// How closely images are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// More pixels than this are too many.
    pub(super) max_pixels: u64,
    /// Whether the picture is decoded after its header has been read.
    pub(super) decode: bool,
}

/// Checks an encoded image.
pub(super) fn check_bytes(bytes: &[u8], rules: &Rules) -> Result<Header> {
    let header = read(Reader::new(&bytes, bytes.len() as u64), rules)?;
    if rules.decode {
        decode(Cursor::new(bytes), &header)?;
    }
    Ok(header)
}

/// Checks an image file.
pub(super) fn check_file(path: &Path, rules: &Rules) -> Result<Header> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Even a FIFO that took the file's place a moment ago does not hold this up.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Fault::NotAFile);
    }
    let header = read(Reader::new(&file, metadata.len()), rules)?;
    if rules.decode {
        decode(BufReader::new(file), &header)?;
    }
    Ok(header)
}

/// Checks an image that is a part of a regular file.
pub(super) fn check_range(path: &Path, offset: u64, length: u64, rules: &Rules) -> Result<Header> {
    let file = File::open(path).map_err(unreadable)?;
    let part = Part {
        file: &file,
        offset,
    };
    let header = read(Reader::new(&part, length), rules)?;
    if rules.decode {
        let section = Section::new(&file, offset, length);
        decode(BufReader::new(section), &header)?;
    }
    Ok(header)
}

fn unreadable(error: io::Error) -> Fault {
    Fault::Unreadable(error.kind())
}

fn read(mut reader: Reader<'_>, rules: &Rules) -> Result<Header> {
    if reader.len() == 0 {
        return Err(Fault::Empty);
    }
    let kind = kind(reader.head()?)?;
    let picture = match kind {
        Kind::Jpeg => jpeg::read(&mut reader),
        Kind::Png => png::read(&mut reader),
        Kind::Gif => gif::read(&mut reader),
        Kind::Webp => webp::read(&mut reader),
        Kind::Bmp => bitmap::read(&mut reader),
        Kind::Tiff => tiff::read(&mut reader),
    };
    let Picture {
        width,
        height,
        is_whole,
    } = picture.map_err(|stop| match stop {
        Stop::End => Fault::CutOff(kind),
        Stop::Wrong(what) => Fault::Damaged(what),
        Stop::Unreadable(error) => Fault::Unreadable(error),
    })?;
    if width == 0 || height == 0 {
        return Err(Fault::Damaged("it says that it has no pixels"));
    }
    if u64::from(width) * u64::from(height) > rules.max_pixels {
        let most = rules.max_pixels;
        return Err(Fault::TooManyPixels {
            width,
            height,
            most,
        });
    }
    if !is_whole {
        return Err(Fault::CutOff(kind));
    }
    Ok(Header {
        kind,
        width,
        height,
    })
}

/// What the reader of one kind finds.
struct Picture {
    width: u32,
    height: u32,
    is_whole: bool,
}

fn kind(head: &[u8]) -> Result<Kind> {
    match head {
        [0xff, 0xd8, 0xff, ..] => Ok(Kind::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Kind::Png),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Kind::Gif),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Ok(Kind::Webp),
        [b'B', b'M', ..] if bitmap::is_header(head) => Ok(Kind::Bmp),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Kind::Tiff),
        _ if is_svg(head) => Err(Fault::Svg),
        _ => Err(beginning(head)),
    }
}

/// Tells a file that ends within its first few bytes from one that is no image.
fn beginning(head: &[u8]) -> Fault {
    const BEGINNINGS: [(Kind, &[u8]); 4] = [
        (Kind::Jpeg, b"\xff\xd8\xff"),
        (Kind::Png, b"\x89PNG\r\n\x1a\n"),
        (Kind::Gif, b"GIF89a"),
        (Kind::Gif, b"GIF87a"),
    ];
    let cut = BEGINNINGS.iter().find(|(_, whole)| whole.starts_with(head));
    cut.map_or(Fault::Unknown, |&(kind, _)| Fault::CutOff(kind))
}

fn is_svg(head: &[u8]) -> bool {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    text.trim_ascii_start().starts_with(b"<")
        && memchr::memmem::find(&text.to_ascii_lowercase(), b"<svg").is_some()
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::Webp => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(out, "cannot be read: {error}"),
            Self::NotAFile => out.write_str("is not a regular file"),
            Self::Empty => out.write_str("is empty"),
            Self::Unknown => out.write_str("is no JPEG, PNG, GIF, WebP, BMP or TIFF"),
            Self::Svg => out.write_str("is an SVG drawing; make a PNG of it"),
            Self::Damaged(what) => write!(out, "is damaged: {what}"),
            Self::TooManyPixels {
                width,
                height,
                most,
            } => write!(
                out,
                "has {width} x {height} pixels, more than the {most} of --max-image-pixels"
            ),
            Self::CutOff(kind) => write!(out, "is a {kind} that is cut off"),
        }
    }
}

#[cfg(test)]
mod tests;
