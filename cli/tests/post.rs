//! Post-process deduplication under a real client: as much is found as inline,
//! on this system's own files.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{TestPool, requires, scratch, tool};

/// Bytes of each of the two images.
const IMAGE_BYTES: usize = 40 << 20;

/// This system's programs one after the other, each at a block of its own, as a
/// file system would have them. The second version leaves some out.
fn image(path: &Path, version: usize) {
    let mut programs: Vec<_> = std::fs::read_dir("/usr/bin")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.symlink_metadata().is_ok_and(|facts| facts.is_file()))
        .collect();
    programs.sort();
    let mut bytes = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        if version == 1 && number % 5 == 0 {
            continue;
        }
        let Ok(mut program) = std::fs::read(program) else {
            continue;
        };
        program.truncate(8 << 20);
        program.resize(program.len().next_multiple_of(4096), 0);
        bytes.extend(program);
        if bytes.len() >= IMAGE_BYTES {
            break;
        }
    }
    bytes.resize(IMAGE_BYTES, 0);
    std::fs::write(path, bytes).unwrap();
}

/// A pool with the first image in one volume and the second in another, of
/// these modes.
fn filled(images: [&str; 2], modes: [&str; 2]) -> TestPool {
    let pool = TestPool::raid5();
    for (name, mode) in ["one", "two"].into_iter().zip(modes) {
        let create = [name, "--size", "40M", "--dedup", mode];
        pool.run("volume", "create", &create).ok();
    }
    let served = pool.serve();
    for (name, image) in ["one", "two"].into_iter().zip(images) {
        tool("nbdcopy", &["--flush", image, &served.uri(name)]).ok();
    }
    served.stop();
    pool
}

fn ratio(pool: &TestPool) -> f64 {
    pool.status()["dedup_ratio"].as_f64().unwrap()
}

#[test]
fn a_job_finds_the_duplicates_of_real_data_that_inline_finds() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let scratch = scratch();
    let paths = [0, 1].map(|version| {
        let path = scratch.path().join(format!("image{version}"));
        image(&path, version);
        path
    });
    let images = paths.each_ref().map(|path| path.to_str().unwrap());
    let inline = ratio(&filled(images, ["inline", "inline"]));
    assert!(inline > 1.2, "{inline}");
    for modes in [["post", "post"], ["inline", "post"]] {
        let pool = filled(images, modes);
        let before = ratio(&pool);
        assert!(before < inline * 0.95, "{modes:?}: {before} of {inline}");
        let served = pool.serve();
        let job = pool.run("dedup", "start", &["--wait", "--json"]).json();
        assert_eq!(job["kind"], "dedup", "{job:#}");
        assert_eq!(job["state"], "done", "{job:#}");
        assert_eq!(job["progress"], 1.0, "{job:#}");
        assert!(job["merged_bytes"].as_u64().unwrap() > 1 << 20, "{job:#}");
        let after = ratio(&pool);
        assert!(
            (after / inline - 1.0).abs() < 0.01,
            "{modes:?}: {after}, inline {inline}"
        );
        for (name, image) in ["one", "two"].into_iter().zip(images) {
            let again = scratch.path().join("again");
            tool("nbdcopy", &[&served.uri(name), again.to_str().unwrap()]).ok();
            tool("cmp", &[image, again.to_str().unwrap()]).ok();
        }
        let free = pool.status()["free_bytes"].as_u64().unwrap();
        pool.run("gc", "start", &["--wait"]).ok();
        assert!(pool.status()["free_bytes"].as_u64().unwrap() > free);
        served.stop();
        pool.run("pool", "check", &["--data"]).ok();
        // Nothing is left to do, and a stopped pool says so as well.
        let again = pool.run("dedup", "start", &["--json"]).json();
        assert_eq!(again["state"], "done", "{again:#}");
        assert_eq!(again["found"], 0, "{again:#}");
        let status = pool.run("dedup", "status", &["--json"]).json();
        assert_eq!(status["id"], again["id"]);
        let refused = pool.run("dedup", "cancel", &[]).refused();
        assert_eq!(refused, "No deduplication is running");
    }
}
