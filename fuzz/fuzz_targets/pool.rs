//! Any bytes as a pool file, as a part of the scores and as a part of a pool.
#![no_main]

#[path = "../../rust/core/tests/hostile/mod.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::open_arrow(bytes));
