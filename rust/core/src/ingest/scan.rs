//! Finds where the records of the input begin and end, window by window.
//!
//! Only brackets and strings are looked at; whether a record is JSON is for its parser to say.

use memchr::{memchr, memchr2};

use super::format::Framing;
use super::json::is_space;
use super::split::Place;

/// What is wrong, and at which byte.
type Fault = String;

/// The state between two windows.
pub(super) enum Scanner {
    Array(ArrayScanner),
    Lines(LineScanner),
}

impl Scanner {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Array => Self::Array(ArrayScanner::default()),
            Framing::Lines => Self::Lines(LineScanner::default()),
        }
    }

    /// Adds the records that end in `bytes`, which stand at `position` of the input.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        position: u64,
        found: &mut Vec<Place>,
    ) -> Result<(), Fault> {
        match self {
            Self::Array(scanner) => scanner.scan(bytes, position, found),
            Self::Lines(scanner) => scanner.scan(bytes, position, found),
        }
    }

    /// Says that the input ends at `position`.
    pub(super) fn finish(&mut self, position: u64, found: &mut Vec<Place>) -> Result<(), Fault> {
        match self {
            Self::Array(scanner) => scanner.finish(position),
            Self::Lines(scanner) => scanner.finish(found),
        }
    }

    /// Returns where the record begins that has not ended yet.
    pub(super) fn open_record(&self) -> Option<u64> {
        match self {
            Self::Array(scanner) => match &scanner.state {
                ArrayState::Value(open) => Some(open.start),
                _ => None,
            },
            Self::Lines(scanner) => scanner.text.map(|(start, _)| start),
        }
    }
}

/// Records of one JSON array.
#[derive(Default)]
pub(super) struct ArrayScanner {
    state: ArrayState,
    records: u64,
}

#[derive(Default)]
enum ArrayState {
    #[default]
    BeforeArray,
    FirstValue,
    NextValue,
    Value(OpenValue),
    AfterValue,
    AfterArray,
}

/// A value whose end has not been seen.
#[derive(Clone, Copy)]
struct OpenValue {
    start: u64,
    depth: u64,
    in_string: bool,
    /// The last byte was a backslash inside a string.
    escaped: bool,
}

impl ArrayScanner {
    fn scan(&mut self, bytes: &[u8], position: u64, found: &mut Vec<Place>) -> Result<(), Fault> {
        let mut at = 0;
        while at < bytes.len() {
            if let ArrayState::Value(open) = &mut self.state {
                let (end, has_ended) = open.pass(bytes, at);
                at = end;
                if has_ended {
                    let length = position + end as u64 - open.start;
                    found.push(Place {
                        record: self.records,
                        offset: open.start,
                        length,
                    });
                    self.records += 1;
                    self.state = ArrayState::AfterValue;
                }
                continue;
            }
            let byte = bytes[at];
            if is_space(byte) {
                at += 1;
                continue;
            }
            let offset = position + at as u64;
            self.state = match (&self.state, byte) {
                (ArrayState::BeforeArray, b'[') => ArrayState::FirstValue,
                (ArrayState::FirstValue | ArrayState::AfterValue, b']') => ArrayState::AfterArray,
                (ArrayState::AfterValue, b',') => ArrayState::NextValue,
                (ArrayState::FirstValue | ArrayState::NextValue, _)
                    if !matches!(byte, b',' | b']' | b'}') =>
                {
                    let open = OpenValue {
                        start: offset,
                        depth: 0,
                        in_string: false,
                        escaped: false,
                    };
                    self.state = ArrayState::Value(open);
                    continue;
                }
                _ => return Err(self.unexpected(byte, offset)),
            };
            at += 1;
        }
        Ok(())
    }

    fn finish(&self, position: u64) -> Result<(), Fault> {
        let record = self.records;
        match self.state {
            ArrayState::AfterArray => Ok(()),
            ArrayState::BeforeArray => Err("the file holds nothing but white space".into()),
            ArrayState::Value(open) => Err(format!(
                "the file ends at byte {position} inside record {record}, which begins at byte {}; \
                 it has been cut off",
                open.start
            )),
            _ => Err(format!(
                "the file ends at byte {position} before the ']' that closes the array, after {record} \
                 records; it has been cut off"
            )),
        }
    }

    fn unexpected(&self, byte: u8, offset: u64) -> Fault {
        let record = self.records;
        let found = shown(byte);
        match self.state {
            ArrayState::BeforeArray if byte == b'{' => format!(
                "byte {offset}: found '{{' where a JSON array has '['; \
                 if these are JSON lines, use the --format that ends in -jsonl"
            ),
            ArrayState::BeforeArray => format!(
                "byte {offset}: this is not JSON: found {found}, but a JSON array begins with '[' \
                 and JSON lines with '{{'"
            ),
            ArrayState::AfterValue => format!(
                "byte {offset}, after record {}: found {found} where ',' or ']' should be",
                record.saturating_sub(1)
            ),
            ArrayState::AfterArray => format!(
                "byte {offset}: found {found} after the ']' that closes the array of {record} records"
            ),
            _ => {
                format!("byte {offset}, record {record}: found {found} where a record should begin")
            }
        }
    }
}

impl OpenValue {
    /// Passes bytes from `at`; returns where it stopped and whether the value has ended there.
    fn pass(&mut self, bytes: &[u8], mut at: usize) -> (usize, bool) {
        while at < bytes.len() {
            if self.escaped {
                self.escaped = false;
                at += 1;
                continue;
            }
            if self.in_string {
                let Some(length) = memchr2(b'"', b'\\', &bytes[at..]) else {
                    return (bytes.len(), false);
                };
                at += length + 1;
                self.escaped = bytes[at - 1] == b'\\';
                self.in_string = self.escaped;
                if !self.in_string && self.depth == 0 {
                    return (at, true);
                }
                continue;
            }
            match bytes[at] {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                // A number or word ends before what follows it.
                b'}' | b']' if self.depth == 0 => return (at, true),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                b',' | b' ' | b'\t' | b'\n' | b'\r' if self.depth == 0 => return (at, true),
                _ => {}
            }
            at += 1;
        }
        (at, false)
    }
}

/// Records of JSON lines: whatever a line holds between its white space.
#[derive(Default)]
pub(super) struct LineScanner {
    /// First byte that is not white space and the end of the last one, in the open line.
    text: Option<(u64, u64)>,
    records: u64,
}

impl LineScanner {
    fn scan(&mut self, bytes: &[u8], position: u64, found: &mut Vec<Place>) -> Result<(), Fault> {
        let mut at = 0;
        while at < bytes.len() {
            let newline = memchr(b'\n', &bytes[at..]);
            let end = newline.map_or(bytes.len(), |length| at + length);
            self.extend(&bytes[at..end], position + at as u64)?;
            if newline.is_some() {
                self.end_line(found);
            }
            at = end + 1;
        }
        Ok(())
    }

    fn extend(&mut self, part: &[u8], position: u64) -> Result<(), Fault> {
        let Some(last) = part.iter().rposition(|&byte| !is_space(byte)) else {
            return Ok(());
        };
        let end = position + last as u64 + 1;
        if let Some(text) = &mut self.text {
            text.1 = end;
            return Ok(());
        }
        let first = part
            .iter()
            .position(|&byte| !is_space(byte))
            .unwrap_or(last);
        let start = position + first as u64;
        if self.records == 0 && part[first] == b'[' {
            return Err(format!(
                "byte {start}: found '[' where JSON lines have '{{'; \
                 if this is a JSON array, use the --format that ends in -json"
            ));
        }
        self.text = Some((start, end));
        Ok(())
    }

    fn end_line(&mut self, found: &mut Vec<Place>) {
        if let Some((start, end)) = self.text.take() {
            found.push(Place {
                record: self.records,
                offset: start,
                length: end - start,
            });
            self.records += 1;
        }
    }

    fn finish(&mut self, found: &mut Vec<Place>) -> Result<(), Fault> {
        self.end_line(found);
        if self.records == 0 {
            return Err("the file holds nothing but white space".into());
        }
        Ok(())
    }
}

/// Shows a byte: the character if it is one of ASCII's printable ones.
pub(super) fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() {
        return format!("'{}'", char::from(byte));
    }
    format!("byte 0x{byte:02x}")
}
