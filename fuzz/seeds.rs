//! Runs the seeds of a fuzz target through its entry point, on stable: the
//! regression half of fuzzing. Every crate's `tests/corpus.rs` includes this.

use std::{fs, path::Path};

/// Calls `run` with every seed of `target`, and with its beginnings.
#[allow(dead_code)] // not every crate has a target that is this quick
pub fn each(target: &str, run: fn(&[u8])) {
    each_whole(target, |bytes| {
        run(bytes);
        for cut in 0..bytes.len().min(300) {
            run(&bytes[..cut]);
        }
    });
}

/// Calls `run` with every seed of `target`.
pub fn each_whole(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(corpus).expect("the seeds are in the repository") {
        let path = entry.expect("a folder can be listed").path();
        let bytes = fs::read(&path).expect("a seed can be read");
        println!("{}", path.display());
        run(&bytes);
        seeds += 1;
    }
    assert!(seeds > 0, "{target} has no seeds");
}
