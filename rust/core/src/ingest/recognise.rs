//! Which text format some files are of, by their first records.

use std::path::{Path, PathBuf};

use super::format::{Dialect, Format, Framing};
use super::json::{Cursor, Fault, is_space};
use super::split::{Blocks, Limits};
use crate::compression::TextFile;
use crate::{Observer, Result};

/// How much of a file is looked at.
const HEAD: Limits = Limits {
    window: 1 << 16,
    block_bytes: 1 << 20,
    block_records: 64,
    record_bytes: 1 << 20,
};

/// What the records seen so far speak for.
#[derive(Default)]
struct Signs {
    messages: bool,
    conversations: bool,
    llava: bool,
    sharegpt: bool,
}

/// Returns the text format that all files are of, or None if they are of none or of several.
///
/// # Errors
///
/// [`crate::Error::Io`] if a file cannot be read.
pub fn recognise(paths: &[PathBuf]) -> Result<Option<Format>> {
    let mut signs = Signs::default();
    let mut framing = None;
    for path in paths {
        let Some(found) = framing_of(path)? else {
            return Ok(None);
        };
        if framing.is_some_and(|framing| framing != found) {
            return Ok(None);
        }
        framing = Some(found);
        // A fault of the file is for ingest to tell.
        if let Ok(Some(block)) = Blocks::open(path, found, HEAD)
            .and_then(|mut blocks| blocks.next_block(&Observer::default()))
        {
            for place in &block.places {
                let text = block
                    .record(place)
                    .and_then(|bytes| str::from_utf8(bytes).ok());
                if let Some(text) = text {
                    // Signs before a fault in the record are good signs.
                    let _ = signs.read(text);
                }
            }
        }
    }
    let dialect = match signs {
        Signs {
            messages: true,
            conversations: true,
            ..
        } => return Ok(None),
        Signs { messages: true, .. } => Dialect::Messages,
        Signs {
            sharegpt: true,
            llava: false,
            ..
        } => Dialect::ShareGpt,
        _ => Dialect::Llava,
    };
    Ok(framing.map(|framing| Format::Text(dialect, framing)))
}

/// Looks at the first byte that is neither white space nor part of a byte order mark.
fn framing_of(path: &Path) -> Result<Option<Framing>> {
    let mut head = vec![0; 1 << 16];
    // What cannot be decompressed is no text.
    let Ok(read) = TextFile::open(path)?.read(&mut head) else {
        return Ok(None);
    };
    let text = head[..read]
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(&head[..read]);
    Ok(match text.iter().find(|&&byte| !is_space(byte)) {
        Some(b'[') => Some(Framing::Array),
        Some(b'{') => Some(Framing::Lines),
        _ => None,
    })
}

impl Signs {
    fn read(&mut self, record: &str) -> std::result::Result<(), Fault> {
        let mut cursor = Cursor::new(record);
        if cursor.peek() != Some(b'{') {
            return Ok(());
        }
        cursor.object(|cursor, key| {
            match key.as_ref() {
                "messages" => self.messages |= cursor.peek() == Some(b'['),
                "conversations" => self.conversations |= cursor.peek() == Some(b'['),
                "image" => self.llava = true,
                "images" | "system" | "tools" => self.sharegpt = true,
                _ => {}
            }
            cursor.skip()
        })
    }
}
