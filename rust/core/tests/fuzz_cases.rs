//! Inputs that the fuzzers found worth keeping, and those they start from.

mod hostile;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};

fn cases(folder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/hostile")
        .join(folder);
    let entries = fs::read_dir(&folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 5, "too few cases in {}", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn ingest_reads_or_refuses_every_case() {
    cases("ingest")
        .iter()
        .for_each(|case| hostile::ingest_json(case));
}

#[test]
fn pool_files_are_read_or_refused() {
    cases("pool")
        .iter()
        .for_each(|case| hostile::open_arrow(case));
}

/// What a fuzzer does to a case.
#[derive(Debug, Clone)]
enum Change {
    Put(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Copies some bytes of the case to another place in it.
    Copy(Index, Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let extremes = [0_i64, -1, i64::MAX, i64::MIN, 1 << 31, 1 << 40];
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        (select(extremes.to_vec()), 1..9_usize)
            .prop_map(|(number, width)| number.to_le_bytes()[..width].to_vec()),
        select(vec![
            "\"", "\\", "{", "}", "[", "]", ",", ":", "\n", "<image>", "\\ud83d"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let at = any::<Index>;
    prop_oneof![
        (at(), bytes.clone()).prop_map(|(at, bytes)| Change::Put(at, bytes)),
        (at(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), 1..60_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), at(), 1..60_usize).prop_map(|(from, to, count)| Change::Copy(from, to, count)),
    ]
}

impl Change {
    fn apply(&self, case: &mut Vec<u8>) {
        let end = |at: usize, count: usize, length: usize| (at + count).min(length);
        let place = |index: &Index, length: usize| index.index(length + 1);
        let length = case.len();
        match self {
            Self::Put(at, bytes) => {
                let at = place(at, length);
                let end = end(at, bytes.len(), length);
                case.splice(at..end, bytes.iter().copied());
            }
            Self::Insert(at, bytes) => {
                let at = place(at, length);
                case.splice(at..at, bytes.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = place(at, length);
                case.drain(at..end(at, *count, length));
            }
            Self::Copy(from, to, count) => {
                let from = place(from, length);
                let piece = case[from..end(from, *count, length)].to_vec();
                let to = place(to, length);
                case.splice(to..to, piece);
            }
        }
    }
}

fn changed(folder: &str) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec(change(), 1..6);
    (select(cases(folder)), changes).prop_map(|(mut case, changes)| {
        changes.iter().for_each(|change| change.apply(&mut case));
        case
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn ingest_reads_or_refuses_changed_cases(case in changed("ingest")) {
        hostile::ingest_json(&case);
    }

    #[test]
    fn changed_pool_files_are_read_or_refused(case in changed("pool")) {
        hostile::open_arrow(&case);
    }
}
