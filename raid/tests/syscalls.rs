//! What must be durable is synced by the right system calls, in the right
//! order: seen from outside, with strace. (What io_uring is told is tested
//! where its entries are made: strace does not see them.)
#![allow(clippy::unwrap_used)]

mod common;

use std::{path::Path, process::Command, sync::Arc};

use tessera_raid::{
    Array, CreateSpec, Level, Limits, PoolFile, Sizes,
    device::{Backend, ThreadBackend},
};

const DIRECTORY: &str = "TESSERA_TRACED_DIRECTORY";

/// The traced part: makes two member files and a pool of them.
#[test]
fn a_pool_is_made_where_the_environment_says() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    let backend = Arc::new(ThreadBackend::new());
    let members: Vec<_> = ["a", "b"].map(|name| directory.join(name)).into();
    for member in &members {
        backend.create_file(member, 8 << 20).unwrap();
    }
    let spec = CreateSpec {
        level: Level::Raid1,
        stripe_unit_bytes: 64 << 10,
        members,
        force: false,
        sizes: Sizes {
            segment_data_bytes_target: 1 << 20,
            journal_bytes: Some(1 << 20),
        },
        stall_limit: Limits::default().stall,
    };
    let witness = Box::new(PoolFile::new(directory));
    let array = Array::create(backend, &spec, b"", witness).unwrap();
    array.commit(b"", false).unwrap();
    array.sync().unwrap();
}

fn has_strace() -> bool {
    let works = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "strace must work where CI=true: see scripts/setup.sh");
        eprintln!("skipped: strace is not installed or may not trace");
    }
    works
}

#[test]
fn what_must_be_durable_is_synced_by_system_calls() {
    if !has_strace() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let status = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=fsync,fdatasync,pwritev2,rename",
            "-o",
        ])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_pool_is_made_where_the_environment_says"])
        .env(DIRECTORY, directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let trace = std::fs::read_to_string(&trace).unwrap();
    let here = directory.path().to_str().unwrap();
    let calls: Vec<&str> = trace.lines().collect();
    let position = |call: &str, what: &str| {
        let found = calls
            .iter()
            .position(|line| line.contains(call) && line.contains(what));
        found.unwrap_or_else(|| panic!("no {call} of {what} in:\n{trace}"))
    };
    // A new member file, and its name.
    for member in ["a", "b"] {
        position(" fsync(", &format!("{here}/{member}>"));
        // The journal and superblock areas, and what array.sync() covers.
        let syncs = calls.iter().filter(|line| {
            line.contains(" fdatasync(") && line.contains(&format!("{here}/{member}>"))
        });
        assert!(syncs.count() >= 2, "{trace}");
        // Superblocks: two copies of the first, two of the second.
        let durable = calls.iter().filter(|line| {
            line.contains(" pwritev2(")
                && line.contains(&format!("{here}/{member}>"))
                && line.contains("RWF_DSYNC")
        });
        assert!(durable.count() >= 4, "{trace}");
    }
    // The witness: contents, then name, then the name's durability (R3).
    let contents = position(" fsync(", "pool.toml.new");
    let renamed = position(" rename(", "pool.toml.new");
    let directory_synced =
        |line: &&str| line.contains(" fsync(") && line.contains(&format!("<{here}>"));
    let member_names = calls[..renamed]
        .iter()
        .filter(|line| directory_synced(line));
    assert_eq!(member_names.count(), 2, "each new name is synced:\n{trace}");
    let named = calls
        .iter()
        .rposition(directory_synced)
        .unwrap_or_else(|| panic!("the directory is not synced:\n{trace}"));
    assert!(contents < renamed && renamed < named, "{trace}");
}
