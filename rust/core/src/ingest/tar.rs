//! The samples of a WebDataset shard: members of a tar that follow one another and share their name up to the
//! first dot. Nothing is unpacked; a sample says where its members stand.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use tar::{Archive, Entry};

use super::reject::{Reason, shown};

/// Tar headers and contents come in blocks of so many bytes.
const BLOCK: u64 = 512;
/// Bytes that the headers of one member may take; long names and PAX records stand in them.
const MOST_HEADER_BYTES: u64 = 1 << 20;
/// Members of one sample; more are set aside.
const MOST_MEMBERS: usize = 4096;
/// A longer path is no name of a file.
const MOST_NAME_BYTES: usize = 4096;
const IMAGE_ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Members that belong together, and the bytes that they take, headers and padding included.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TarSample {
    /// The name that its members share.
    pub(super) key: String,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// The `.json` member.
    pub(super) record: Option<Member>,
    /// The image members, in the order of the archive.
    pub(super) images: Vec<Member>,
    /// What follows the key and the dot in the members' names.
    pub(super) endings: BTreeSet<String>,
    /// Why it can be no sample, whatever its record says.
    pub(super) fault: Option<(Reason, String)>,
}

/// The contents of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl TarSample {
    fn new(key: String, offset: u64) -> Self {
        Self {
            key,
            offset,
            length: 0,
            record: None,
            images: Vec::new(),
            endings: BTreeSet::new(),
            fault: None,
        }
    }

    fn add(&mut self, member: Member, ending: &str) {
        if self.endings.len() == MOST_MEMBERS {
            let detail = format!("it has more than {MOST_MEMBERS} members");
            return self.spoil(Reason::TooLarge, detail);
        }
        if !self.endings.insert(ending.to_owned()) {
            let detail = format!("two members have the name '{}'", shown(&member.name));
            return self.spoil(Reason::BadMember, detail);
        }
        let last = ending.rsplit('.').next().unwrap_or(ending);
        if ending.eq_ignore_ascii_case("json") {
            self.record = Some(member);
        } else if IMAGE_ENDINGS
            .iter()
            .any(|known| last.eq_ignore_ascii_case(known))
        {
            self.images.push(member);
        }
    }

    /// The first fault is the one told.
    fn spoil(&mut self, reason: Reason, detail: String) {
        self.fault.get_or_insert((reason, detail));
    }
}

/// Reads a shard's headers, some samples at a time.
pub(super) struct TarScanner {
    file: File,
    size: u64,
    /// Where the next sample begins.
    at: u64,
    is_done: bool,
}

impl TarScanner {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self {
            file,
            size,
            at: 0,
            is_done: false,
        })
    }

    /// Returns the next samples, at most `most`; none after the last.
    ///
    /// # Errors
    ///
    /// A header that is damaged, with the byte that it begins at.
    pub(super) fn next(&mut self, most: usize) -> io::Result<Vec<TarSample>> {
        let mut samples: Vec<TarSample> = Vec::new();
        if self.is_done {
            return Ok(samples);
        }
        self.file.seek(SeekFrom::Start(self.at))?;
        // A fresh archive from here on.
        let budget = Cell::new(MOST_HEADER_BYTES);
        let mut archive = Archive::new(Headers {
            file: &self.file,
            start: self.at,
            budget: &budget,
        });
        let mut entries = archive.entries_with_seek()?;
        loop {
            budget.set(MOST_HEADER_BYTES);
            let begin = self.at;
            let mut entry = match entries.next() {
                None => break,
                Some(Ok(entry)) => entry,
                Some(Err(_)) if (&self.file).stream_position()? >= self.size => {
                    samples.push(cut_off(begin, self.size));
                    break;
                }
                Some(Err(error)) => return Err(damaged(begin, &error)),
            };
            // `raw_file_position` forgets the extra headers of sparse members.
            let offset = (&self.file).stream_position()?;
            let length = stored_size(&entry).map_err(|error| damaged(begin, &error))?;
            let member_end = offset.checked_add(length);
            let end = member_end.and_then(|end| end.checked_next_multiple_of(BLOCK));
            let end = end.ok_or_else(|| damaged(begin, &"its size is impossible"))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if let Some((key, ending)) = sample_name(&entry, &name) {
                if samples.last().is_none_or(|sample| sample.key != key) {
                    if samples.len() == most {
                        return Ok(samples);
                    }
                    samples.push(TarSample::new(key.to_owned(), begin));
                }
                let sample = samples.last_mut().expect("one has just been pushed");
                if let Some((reason, detail)) = fault(&mut entry, &name) {
                    sample.spoil(reason, detail);
                } else if offset + length > self.size {
                    let detail = format!(
                        "member '{}' is cut off: the archive ends within it",
                        shown(&name)
                    );
                    sample.spoil(Reason::BadMember, detail);
                }
                sample.length = end.min(self.size) - sample.offset;
                let ending = ending.to_owned();
                sample.add(
                    Member {
                        name,
                        offset,
                        length,
                    },
                    &ending,
                );
            }
            self.at = end;
            if end > self.size {
                break;
            }
        }
        self.is_done = true;
        Ok(samples)
    }
}

/// Returns how many bytes of the archive a member's contents take.
fn stored_size<R: Read>(entry: &Entry<'_, R>) -> io::Result<u64> {
    // Of a sparse member, `size` is what it would unpack to.
    if entry.header().entry_type().is_gnu_sparse() {
        return entry.header().entry_size();
    }
    Ok(entry.size())
}

/// Splits the name of a sample's member into key and ending; None for folders and other files of no sample.
fn sample_name<'a, R: Read>(entry: &Entry<'_, R>, name: &'a str) -> Option<(&'a str, &'a str)> {
    let kind = entry.header().entry_type();
    if kind.is_dir() || kind.is_pax_global_extensions() {
        return None;
    }
    // As WebDataset does: at the first dot of the last part.
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = last + name[last..].find('.')?;
    (dot > last).then(|| (&name[..dot], &name[dot + 1..]))
}

/// Says why a member is not one that can be read by byte range and copied.
fn fault<R: Read>(entry: &mut Entry<'_, R>, name: &str) -> Option<(Reason, String)> {
    let bad = |what: &str| {
        let detail = format!("member '{}' {what}", shown(name));
        Some((Reason::BadMember, detail))
    };
    if std::str::from_utf8(&entry.path_bytes()).is_err() {
        let detail = format!("the name of member '{}' is not UTF-8", shown(name));
        return Some((Reason::BrokenUtf8, detail));
    }
    if name.len() > MOST_NAME_BYTES {
        return bad("has a name longer than any path");
    }
    if name.starts_with('/') || name.split('/').any(|part| part == "..") {
        return bad("leads out of the archive");
    }
    let kind = entry.header().entry_type();
    if kind.is_symlink() || kind.is_hard_link() {
        return bad("is a link");
    }
    if kind.is_gnu_sparse() || has_sparse_records(entry) {
        return bad("is sparse and cannot be read by byte range");
    }
    if !kind.is_file() && !kind.is_contiguous() {
        return bad("is not a regular file");
    }
    None
}

/// Says whether PAX records make a regular member sparse.
fn has_sparse_records<R: Read>(entry: &mut Entry<'_, R>) -> bool {
    let Ok(Some(records)) = entry.pax_extensions() else {
        return false;
    };
    records
        .flatten()
        .any(|record| record.key_bytes().starts_with(b"GNU.sparse"))
}

/// What is left of a member whose header is not whole.
fn cut_off(begin: u64, size: u64) -> TarSample {
    let mut rest = TarSample::new(String::new(), begin);
    rest.length = size - begin;
    let detail = "the archive ends within the headers of a member".into();
    rest.spoil(Reason::BadMember, detail);
    rest
}

fn damaged(at: u64, why: &dyn std::fmt::Display) -> io::Error {
    let text = format!("byte {at}: not the header of a tar member ({why})");
    io::Error::new(ErrorKind::InvalidData, text)
}

/// A file from `start` on, of which only so many bytes may be read; seeking is free.
struct Headers<'a> {
    file: &'a File,
    start: u64,
    budget: &'a Cell<u64>,
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget.get() == 0 && !buffer.is_empty() {
            let text = format!("they take more than {} KiB", MOST_HEADER_BYTES >> 10);
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        let most = buffer.len().min(self.budget.get() as usize);
        let read = self.file.read(&mut buffer[..most])?;
        self.budget.set(self.budget.get() - read as u64);
        Ok(read)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let position = match position {
            SeekFrom::Start(offset) => SeekFrom::Start(self.start + offset),
            relative => relative,
        };
        Ok(self.file.seek(position)? - self.start)
    }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, EntryType, Header};

    use super::*;

    fn scanner(bytes: &[u8]) -> TarScanner {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TarScanner::new(file).unwrap()
    }

    fn all(bytes: &[u8], most: usize) -> Vec<TarSample> {
        let mut scanner = scanner(bytes);
        let mut samples = Vec::new();
        loop {
            let found = scanner.next(most).unwrap();
            assert!(found.len() <= most);
            if found.is_empty() {
                return samples;
            }
            samples.extend(found);
        }
    }

    /// Members with long names too, whose headers take several blocks, and a folder in between.
    fn tar() -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, content: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content).unwrap();
        };
        for number in 0..20_usize {
            let key = format!("{}{number}", "long/".repeat(number * 3));
            add(&format!("{key}.json"), EntryType::Regular, b"{}");
            if number == 7 {
                add("folder", EntryType::Directory, b"");
            }
            add(
                &format!("{key}.0.png"),
                EntryType::Regular,
                &vec![7; number * 100],
            );
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn samples_do_not_depend_on_how_many_are_asked_for() {
        let bytes = tar();
        let whole = all(&bytes, 1000);
        assert_eq!(whole.len(), 20);
        for most in 1..8 {
            assert_eq!(all(&bytes, most), whole);
        }
        let mut end = 0;
        for (number, sample) in whole.iter().enumerate() {
            assert_eq!(sample.offset, end);
            end += sample.length;
            let image = &sample.images[0];
            assert_eq!(image.length, number as u64 * 100);
            let start = image.offset as usize;
            assert!(
                bytes[start..start + number * 100]
                    .iter()
                    .all(|&byte| byte == 7)
            );
        }
        assert_eq!(bytes.len() as u64, end + 1024);
    }

    #[test]
    fn any_damage_ends_in_an_error_or_in_samples() {
        let whole = tar();
        for at in (0..whole.len()).step_by(37) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            let mut scanner = scanner(&bytes);
            for _ in 0..100 {
                match scanner.next(3) {
                    Ok(found) if found.is_empty() => break,
                    Ok(found) => assert!(
                        found
                            .iter()
                            .all(|sample| { sample.offset + sample.length <= bytes.len() as u64 })
                    ),
                    Err(error) => {
                        assert!(error.to_string().contains("not the header"), "{error}");
                        break;
                    }
                }
            }
        }
    }
}
