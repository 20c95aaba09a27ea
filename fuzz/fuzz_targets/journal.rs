//! See `engine/src/fuzzing.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tessera_engine::fuzzing::journal(bytes));
