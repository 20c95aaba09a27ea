//! Every seed of the fuzz targets through the same entry points, on stable.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::{fs, path::Path};

use tessera_raid::fuzzing;

fn each(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        println!("{}", path.display());
        run(&bytes);
        for cut in 0..bytes.len().min(300) {
            run(&bytes[..cut]);
        }
        seeds += 1;
    }
    assert!(seeds > 0, "{target} has no seeds");
}

#[test]
fn superblock_seeds_do_no_harm() {
    each("superblock", fuzzing::superblock);
}
