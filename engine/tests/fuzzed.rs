//! The seeds of the op-sequence fuzzer: what to do and what goes wrong, byte by
//! byte, compared with the model. `fuzz/fuzz_targets/ops.rs` runs the same.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../fuzz/seeds.rs"]
mod seeds;

#[test]
fn op_sequences_keep_the_promise() {
    seeds::each_whole("ops", common::fuzzed::run);
}
