//! Blocks of text: the bytes of some records of a JSON array or of JSON lines.

use super::container::{self, Context, Parsed};
use super::format::{Format, Framing};
use super::json::Fault;
use super::read::{self, Unread};
use super::reject::{Reason, Rejection};
use super::rows::Rows;
use super::scan::shown;
use super::split::{Block, LIMITS, Place};
use crate::{Error, Result};

impl container::Block for Block {
    fn records(&self) -> u64 {
        self.places.len() as u64
    }

    fn advance(&self) -> u64 {
        self.advance
    }

    /// # Errors
    ///
    /// Text in an array that is not JSON, or an image without a folder.
    fn parse(&self, context: &Context<'_>) -> Result<Parsed> {
        let mut rows = Rows::new(context, self.places.len(), self.size());
        let lengths = self.places.iter().map(|place| place.length);
        let longest = lengths.filter(|&length| length <= self.size() as u64).max();
        let mut room = vec![0; longest.unwrap_or(0) as usize];
        for &place in &self.places {
            let Some(bytes) = self.record(&place) else {
                rows.reject(too_large(place), place);
                continue;
            };
            match read::record(bytes, context.names, &mut room) {
                Ok(draft) => rows.add(draft, place)?,
                Err(Unread::Rejected(rejection)) => rows.reject(rejection, place),
                Err(Unread::NotJson(fault)) => {
                    rows.reject(not_json(&fault, place, bytes, context)?, place);
                }
            }
        }
        Ok(rows.finish())
    }
}

fn too_large(place: Place) -> Rejection {
    let detail = format!(
        "the record has {} bytes; ingest holds at most {} MiB",
        place.length,
        LIMITS.record_bytes >> 20
    );
    Rejection::new(Reason::TooLarge, None, detail)
}

/// A bad line is set aside, unless it is the first: then the file is not JSON lines at all. In an array, it
/// cannot be told where the next record begins.
fn not_json(
    fault: &Fault,
    place: Place,
    record: &[u8],
    context: &Context<'_>,
) -> Result<Rejection> {
    let found = record
        .get(fault.at)
        .map_or_else(|| "the end of the record".into(), |&byte| shown(byte));
    let byte = place.offset + fault.at as u64;
    let expected = fault.expected;
    let is_array = matches!(context.format, Format::Text(_, Framing::Array));
    let hint = match is_array {
        false if place.record > 0 => {
            let detail = format!(
                "byte {} of the line: found {found}, expected {expected}",
                fault.at
            );
            return Ok(Rejection::new(Reason::InvalidJson, None, detail));
        }
        false => "the first line is not JSON, so these are not JSON lines",
        true => "the array is damaged there",
    };
    Err(Error::Pool(format!(
        "{}: byte {byte}, record {}: not JSON: found {found}, expected {expected}; {hint}",
        context.shown, place.record
    )))
}
