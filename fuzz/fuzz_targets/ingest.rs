//! Any bytes as a pool of JSON records.
#![no_main]

#[path = "../../rust/core/tests/hostile/mod.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::ingest_json(bytes));
