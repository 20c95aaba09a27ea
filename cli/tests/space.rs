//! Space comes back: on real files, under a real client, served and stopped.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt;

use common::{TestPool, python_nbd, random_file, requires, scratch, tool};

const SIZE: u64 = 128 << 20;

/// Discards 36 of every 64 KiB, so that no segment is wholly dead.
const RIDDLE: &str = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
size = h.get_size()
for offset in range(0, size, 64 << 10):
    h.trim(32 << 10, offset)
    h.trim(4096, offset + (48 << 10))
h.flush()
h.shutdown()
"#;

fn free(pool: &TestPool) -> u64 {
    pool.status()["free_bytes"].as_u64().unwrap()
}

fn on_disk(pool: &TestPool) -> u64 {
    let members = pool.members();
    let blocks = members.iter().map(|path| path.metadata().unwrap().blocks());
    blocks.sum::<u64>() * 512
}

#[test]
fn space_of_scattered_discards_comes_back_and_members_shrink() {
    if !requires(&["nbdcopy", "python3-libnbd"]) {
        return;
    }
    let scratch = scratch();
    let file = scratch.path().join("file");
    random_file(&file, SIZE, 31);
    let pool = TestPool::raid5();
    pool.volume("a", "128M");
    let served = pool.serve();
    let empty = free(&pool);
    tool("nbdcopy", &[file.to_str().unwrap(), &served.uri("a")]).ok();
    python_nbd(RIDDLE, &[&served.uri("a")]).ok();
    let before = on_disk(&pool);
    let kept = scratch.path().join("kept");
    tool("nbdcopy", &[&served.uri("a"), kept.to_str().unwrap()]).ok();

    let job = pool.run("gc", "start", &["--wait", "--json"]).json();
    assert_eq!(job["state"], "done", "{job:#}");
    assert_eq!(job["progress"], 1.0, "{job:#}");
    assert!(job["bytes_done"].as_u64().unwrap() > 0, "{job:#}");
    // What is live takes 28 of each 64 KiB.
    let live = SIZE / 64 * 28;
    let fresh = empty - live - live / 60;
    let after = free(&pool);
    assert!(after * 100 >= fresh * 97, "{after} of {fresh}");
    let shrunk = on_disk(&pool);
    assert!(shrunk < before * 7 / 10, "{before} before, {shrunk} after");
    let again = scratch.path().join("again");
    tool("nbdcopy", &[&served.uri("a"), again.to_str().unwrap()]).ok();
    tool("cmp", &[kept.to_str().unwrap(), again.to_str().unwrap()]).ok();
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn a_deleted_volume_gives_everything_back_to_a_stopped_pool() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let scratch = scratch();
    let file = scratch.path().join("file");
    random_file(&file, SIZE / 4, 32);
    let pool = TestPool::raid5();
    let empty = free(&pool);
    for name in ["a", "b"] {
        pool.volume(name, "32M");
        let served = pool.serve();
        tool("nbdcopy", &[file.to_str().unwrap(), &served.uri(name)]).ok();
        served.stop();
    }
    pool.run("volume", "delete", &["a"]).ok();
    pool.run("volume", "delete", &["b"]).ok();
    let job = pool.run("gc", "start", &["--json"]).json();
    assert_eq!(job["state"], "done", "{job:#}");
    let status = pool.run("gc", "status", &["--json"]).json();
    assert_eq!(status["id"], job["id"]);
    let after = free(&pool);
    assert!(after * 100 >= empty * 97, "{after} of {empty}");
    assert_eq!(pool.status()["stored_bytes"], 0);
    let refused = pool.run("gc", "cancel", &[]).refused();
    assert_eq!(refused, "No reclaim is running");
}
