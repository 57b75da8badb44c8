//! Writes the parsed blocks in order: the pool, the rejected records, and their numbers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::LargeStringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, BooleanArray, LargeStringArray, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{ArrowError, Schema};
use arrow_select::filter::filter_record_batch;

use super::container::{self, Facts, Parsed, Sink};
use super::hashed::{HashedMap, HashedSet};
use super::images::{ImageKey, key};
use super::reject::{Reason, Rejected, Rejection, shown};
use super::{IngestOptions, Summary};
use crate::files::WholeFile;
use crate::{Error, Result};

pub(super) struct PoolSink {
    /// The inputs in words.
    input: String,
    pool_path: PathBuf,
    rejected_path: PathBuf,
    pool: FileWriter<WholeFile>,
    rejected: WholeFile,
    ids: HashedSet<[u8; 16]>,
    renames_duplicates: bool,
    /// How often an id has been given again.
    copies: HashedMap<[u8; 16], u64>,
    strict: bool,
    images: HashedSet<ImageKey>,
    /// The first rejected record of each reason.
    examples: BTreeMap<Reason, Rejected>,
    summary: Summary,
}

impl PoolSink {
    pub(super) fn create(options: &IngestOptions, schema: &Schema) -> Result<Self> {
        let rejected = WholeFile::create(&options.rejected)?;
        let pool = FileWriter::try_new(WholeFile::create(&options.out)?, schema)
            .map_err(|error| arrow_error(error, options.out.clone()))?;
        Ok(Self {
            input: container::shown(&options.inputs),
            pool_path: options.out.clone(),
            rejected_path: options.rejected.clone(),
            pool,
            rejected,
            ids: HashedSet::default(),
            renames_duplicates: options.renames_duplicates,
            copies: HashedMap::default(),
            strict: options.strict,
            images: HashedSet::default(),
            examples: BTreeMap::new(),
            summary: Summary::default(),
        })
    }

    /// Gives samples whose ids are taken new ones: the id, a hyphen and the lowest free number from 2.
    fn rename(&mut self, rows: &RecordBatch, facts: &[Facts], is_new: &[bool]) -> RecordBatch {
        let ids = rows.column(0).as_string::<i64>();
        let mut renamed = LargeStringBuilder::with_capacity(ids.len(), ids.value_data().len());
        for (row, id) in ids.iter().flatten().enumerate() {
            if is_new[row] {
                renamed.append_value(id);
                continue;
            }
            let copies = self.copies.entry(facts[row].id).or_insert(1);
            let free = loop {
                *copies += 1;
                let candidate = format!("{id}-{copies}");
                if self.ids.insert(key(&candidate)) {
                    break candidate;
                }
            };
            renamed.append_value(free);
            self.summary.renamed += 1;
        }
        let mut columns = rows.columns().to_vec();
        columns[0] = Arc::new(renamed.finish());
        RecordBatch::try_new(rows.schema(), columns).expect("only the ids' values have changed")
    }

    /// Finishes both files.
    pub(super) fn finish(mut self, bytes: u64) -> Result<Summary> {
        self.summary.bytes = bytes;
        self.summary.images = self.images.len() as u64;
        let rejected: u64 = self.summary.rejected.values().sum();
        let records = self.summary.samples + rejected;
        if records == 0 {
            return Err(Error::Pool(format!(
                "{}: the pool holds no samples",
                self.input
            )));
        }
        if rejected * 2 > records {
            let error = self.mostly_rejected(rejected, records);
            self.rejected.commit()?;
            // A pool of an earlier run would not belong to the list just written.
            return match fs::remove_file(&self.pool_path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(Error::io("remove", self.pool_path, source))
                }
                _ => Err(error),
            };
        }
        let pool = self
            .pool
            .into_inner()
            .map_err(|error| arrow_error(error, self.pool_path))?;
        // The pool last: where it is, the list of rejected records is too.
        self.rejected.commit()?;
        self.summary.pool_hash = pool.commit()?.to_hex().to_string();
        Ok(self.summary)
    }

    fn count(&mut self, facts: &[Facts], sources: &LargeStringArray) {
        for (row, facts) in facts.iter().enumerate() {
            self.summary.samples += 1;
            self.summary.text_only += u64::from(facts.images.is_empty());
            self.summary.multi_image += u64::from(facts.images.len() > 1);
            self.summary.multi_turn += u64::from(facts.answers > 1);
            self.images.extend(&facts.images);
            let source = sources.value(row);
            match self.summary.sources.get_mut(source) {
                Some(count) => *count += 1,
                None => {
                    self.summary.sources.insert(source.to_owned(), 1);
                }
            }
        }
    }

    fn reject(&mut self, record: Rejected) -> Result<()> {
        if self.strict {
            return Err(refused(&record));
        }
        serde_json::to_writer(&mut self.rejected, &record)
            .map_err(io::Error::from)
            .and_then(|()| self.rejected.write_all(b"\n"))
            .map_err(|source| self.rejected.error(source))?;
        *self.summary.rejected.entry(record.reason).or_default() += 1;
        self.examples.entry(record.reason).or_insert(record);
        Ok(())
    }

    fn mostly_rejected(&self, rejected: u64, records: u64) -> Error {
        let mut counts: Vec<_> = self.summary.rejected.iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let mut text = format!(
            "{}: {rejected} of {records} records were rejected, more than half; the commonest reasons:",
            self.input
        );
        for (reason, count) in counts.into_iter().take(3) {
            let Rejected {
                id, record, detail, ..
            } = &self.examples[reason];
            let id = shown_id(id.as_deref());
            text += &format!(
                "\n  {}: {count}, e.g. record {record}{id}: {detail}",
                reason.code()
            );
        }
        text += &format!(
            "\nall of them are listed in {}; is --images the right folder, and --format (or --columns) what the pool is?",
            self.rejected_path.display()
        );
        Error::Pool(text)
    }
}

impl Sink for PoolSink {
    fn add(&mut self, parsed: Parsed) -> Result<()> {
        let Parsed {
            mut rows,
            mut facts,
            mut rejected,
            input,
        } = parsed;
        let is_new: Vec<bool> = facts.iter().map(|row| self.ids.insert(row.id)).collect();
        if is_new.contains(&false) && self.renames_duplicates {
            rows = self.rename(&rows, &facts, &is_new);
        } else if is_new.contains(&false) {
            let ids = rows.column(0).as_string::<i64>();
            rejected.extend(duplicates(&input, &facts, ids, &is_new));
            rejected.sort_by_key(|record| record.record);
            let mut keep = is_new.iter();
            facts.retain(|_| keep.next() == Some(&true));
            rows = filter_record_batch(&rows, &BooleanArray::from(is_new))
                .map_err(|error| arrow_error(error, self.pool_path.clone()))?;
        }
        self.count(&facts, rows.column(1).as_string::<i64>());
        if rows.num_rows() > 0 {
            self.pool
                .write(&rows)
                .map_err(|error| arrow_error(error, self.pool_path.clone()))?;
        }
        rejected
            .into_iter()
            .try_for_each(|record| self.reject(record))
    }
}

/// Says that a record is rejected where none may be.
pub(super) fn refused(record: &Rejected) -> Error {
    Error::Pool(format!(
        "{}: record {} (byte {}){} is rejected, and --strict allows none: {}: {}",
        record.input,
        record.record,
        record.offset,
        shown_id(record.id.as_deref()),
        record.reason.code(),
        record.detail
    ))
}

fn shown_id(id: Option<&str>) -> String {
    id.map_or_else(String::new, |id| format!(" (id '{}')", shown(id)))
}

fn duplicates(
    input: &Arc<str>,
    facts: &[Facts],
    ids: &LargeStringArray,
    is_new: &[bool],
) -> Vec<Rejected> {
    let repeated = facts.iter().enumerate().filter(|(row, _)| !is_new[*row]);
    repeated
        .map(|(row, facts)| {
            let id = ids.value(row);
            let detail = format!("an earlier sample has the id '{}'", shown(id));
            Rejection::new(Reason::DuplicateId, Some(id.into()), detail).at(input, facts.place)
        })
        .collect()
}

pub(super) fn arrow_error(error: ArrowError, path: PathBuf) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io("write", path, source),
        other => Error::io("write", path, io::Error::other(other)),
    }
}
