//! Inputs that the fuzzers found worth keeping, and those they start from.

mod hostile;

use std::fs;
use std::path::Path;

fn each(folder: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/hostile")
        .join(folder);
    let mut cases = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        check(&fs::read(&path).unwrap());
        cases += 1;
    }
    assert!(cases > 5, "only {cases} cases in {}", folder.display());
}

#[test]
fn ingest_reads_or_refuses_every_case() {
    each("ingest", hostile::ingest_json);
}

#[test]
fn pool_files_are_read_or_refused() {
    each("pool", hostile::open_arrow);
}
