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

/// For pools that are filled to the brim.
const SMALL_BYTES: u64 = 96 << 20;

/// Fills the volume `argv[1]` until there is no space: with random bytes, or
/// where `argv[2]` says so with bytes of which three eighths are. What was
/// answered must read as it was written. Says how many bytes that were.
const FILL: &str = r#"
import os, errno
h = nbd.NBD()
h.connect_uri(sys.argv[1])
step = 1 << 20
def piece():
    if sys.argv[2] == "raw":
        return os.urandom(step)
    return b"".join(os.urandom(1536) + bytes(2560) for _ in range(step // 4096))
kept = {}
at = 0
while at < h.get_size():
    data = piece()
    try:
        h.pwrite(data, at)
    except nbd.Error as error:
        assert error.errnum == errno.ENOSPC, error
        break
    if at % (16 << 20) == 0:
        kept[at] = data
    at += step
else:
    sys.exit("the volume is smaller than the pool")
h.flush()
for offset, data in kept.items():
    assert h.pread(step, offset) == data, offset
# Zeroing needs no data.
h.zero(64 << 10, 0)
assert h.pread(64 << 10, 0) == bytes(64 << 10)
print(at)
"#;

/// Discards what was written and at once writes half as much again.
const DISCARD_AND_WRITE: &str = r#"
size = at
for offset in range(0, size, 8 << 20):
    h.trim(min(8 << 20, size - offset), offset)
h.flush()
kept = {}
for at in range(0, size // 2, step):
    data = piece()
    h.pwrite(data, at)
    if at % (16 << 20) == 0:
        kept[at] = data
h.flush()
for offset, data in kept.items():
    assert h.pread(step, offset) == data, offset
for offset in range(0, size, 8 << 20):
    h.trim(min(8 << 20, size - offset), offset)
h.flush()
h.shutdown()
"#;

const DISCARD: &str = "
h.connect_uri(sys.argv[1])
h.trim(h.get_size(), 0)
h.flush()
h.shutdown()
";

fn warned(pool: &TestPool) -> bool {
    !pool.status()["warnings"].as_array().unwrap().is_empty()
}

fn reclaim(pool: &TestPool) {
    // One may have begun by itself.
    while pool.run("gc", "status", &["--json"]).json()["state"] == "running" {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let job = pool.run("gc", "start", &["--wait", "--json"]).json();
    assert_eq!(job["state"], "done", "{job:#}");
}

#[track_caller]
fn assert_near(after: u64, fresh: u64) {
    assert!(after * 100 >= fresh * 97, "{after} of {fresh}");
}

#[test]
fn a_pool_that_a_client_filled_recovers_by_discarding_or_deleting() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    for kind in ["raw", "compressed"] {
        let pool = TestPool::create_of("raid5", 4, SMALL_BYTES);
        let served = pool.serve();
        pool.volume("a", "2G");
        let fresh = free(&pool);
        assert!(!warned(&pool));
        // Discarding, by the client itself.
        let script = format!("{FILL}{DISCARD_AND_WRITE}");
        let filled = python_nbd(&script, &[&served.uri("a"), kind]).ok();
        let filled: u64 = filled.trim().parse().unwrap();
        assert!(filled >= fresh * 7 / 10, "{kind}: {filled} of {fresh}");
        reclaim(&pool);
        assert_near(free(&pool), fresh);
        assert!(!warned(&pool), "{kind}");

        // Deleting, while it is full.
        let again = python_nbd(FILL, &[&served.uri("a"), kind]).ok();
        let again: u64 = again.trim().parse().unwrap();
        assert!(again * 100 >= filled * 97, "{kind}: {again}, then {filled}");
        let status = pool.status();
        assert_eq!(status["state"], "online", "{status:#}");
        assert_eq!(status["stopped"], serde_json::Value::Null, "{status:#}");
        assert!(warned(&pool), "{status:#}");
        let full = on_disk(&pool);
        pool.run("volume", "delete", &["a"]).ok();
        pool.volume("b", "2G");
        let script = format!("{FILL}h.shutdown()");
        let third = python_nbd(&script, &[&served.uri("b"), kind]).ok();
        let third: u64 = third.trim().parse().unwrap();
        assert!(third * 100 >= filled * 97, "{kind}: {third}, then {filled}");
        pool.run("volume", "delete", &["b"]).ok();
        reclaim(&pool);
        assert_near(free(&pool), fresh);
        let shrunk = on_disk(&pool);
        assert!(shrunk * 4 < full, "{kind}: {full}, then {shrunk}");
        served.stop();
        pool.run("pool", "check", &["--data"]).ok();
    }
}

/// What a new pool with the same data has free, and takes on disk.
fn fresh_with(file: &std::path::Path, size: &str) -> (u64, u64) {
    let pool = TestPool::create_of("raid5", 4, SMALL_BYTES);
    pool.volume("a", size);
    let served = pool.serve();
    tool(
        "nbdcopy",
        &["--flush", file.to_str().unwrap(), &served.uri("a")],
    )
    .ok();
    let found = (free(&pool), on_disk(&pool));
    served.stop();
    found
}

/// After `script` and whatever `then` does, reclaim leaves what a new pool with
/// the same data would have, and members are smaller than before.
fn comes_back(script: &str, then: impl Fn(&TestPool)) {
    if !requires(&["nbdcopy", "python3-libnbd"]) {
        return;
    }
    let scratch = scratch();
    let pool = TestPool::create_of("raid5", 4, SMALL_BYTES);
    pool.volume("a", "64M");
    let served = pool.serve();
    let script = format!("import os, random, subprocess\nrandom.seed(11)\n{script}");
    let dir = common::text(&pool.dir);
    let arguments = [&served.uri("a"), env!("CARGO_BIN_EXE_tessera"), &dir];
    python_nbd(&script, &arguments).ok();
    let kept = scratch.path().join("kept");
    let kept_text = common::text(&kept);
    tool("nbdcopy", &[&served.uri("a"), &kept_text]).ok();
    then(&pool);
    let before = on_disk(&pool);
    reclaim(&pool);
    let (fresh, fresh_on_disk) = fresh_with(&kept, "64M");
    assert_near(free(&pool), fresh);
    let shrunk = on_disk(&pool);
    // Much may have come back by itself before.
    let most = before.min(fresh_on_disk + (16 << 20)) + (4 << 20);
    assert!(
        shrunk <= most,
        "{shrunk} on disk, {fresh_on_disk} in a new pool"
    );
    let again = scratch.path().join("again");
    tool("nbdcopy", &[&served.uri("a"), again.to_str().unwrap()]).ok();
    tool("cmp", &[&kept_text, again.to_str().unwrap()]).ok();
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn space_of_what_is_overwritten_entirely_comes_back() {
    let script = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for round in range(3):
    for at in range(0, 64 << 20, 1 << 20):
        h.pwrite(os.urandom(1 << 20), at)
    h.flush()
h.shutdown()
"#;
    comes_back(script, |_| {});
}

#[test]
fn space_of_snapshots_deleted_in_any_order_comes_back() {
    let script = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for at in range(0, 64 << 20, 1 << 20):
    h.pwrite(os.urandom(1 << 20), at)
for round in range(6):
    subprocess.check_call([sys.argv[2], "snapshot", "create", sys.argv[3], f"a@s{round}"])
    for _ in range(1500):
        h.pwrite(os.urandom(4096), random.randrange(0, 64 << 20, 4096))
h.flush()
h.shutdown()
"#;
    comes_back(script, |pool| {
        let exclusive = |name: &str| {
            let all = pool.run("snapshot", "list", &["--json"]).json();
            let all = all.as_array().unwrap();
            let one = all.iter().find(|snapshot| snapshot["name"] == name);
            one.unwrap()["exclusive_bytes"].as_u64().unwrap()
        };
        let before = exclusive("s2");
        for (number, name) in ["a@s3", "a@s0", "a@s5", "a@s1"].into_iter().enumerate() {
            pool.run("snapshot", "delete", &[name]).ok();
            if number == 0 {
                assert!(exclusive("s2") > before, "what two shared is one's own now");
            }
        }
        pool.run("snapshot", "delete", &["a@s4"]).ok();
        pool.run("snapshot", "delete", &["a@s2"]).ok();
        assert_eq!(pool.status()["snapshot_bytes"], 0);
    });
}

#[test]
fn space_comes_back_from_segments_with_a_tenth_left_in_each() {
    // A tenth of the chunks stays from the beginning, where it was written; the
    // rest is overwritten again and again, in an order of its own each time.
    let script = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for at in range(0, 64 << 20, 1 << 20):
    h.pwrite(os.urandom(1 << 20), at)
others = [at for at in range(0, 64 << 20, 4096) if (at // 4096) % 10]
for round in range(3):
    random.shuffle(others)
    for at in others:
        h.pwrite(os.urandom(4096), at)
    h.flush()
h.shutdown()
"#;
    comes_back(script, |_| {});
}

#[test]
fn space_is_told_by_volume_and_snapshot_and_warned_of() {
    if !requires(&["nbdcopy", "python3-libnbd"]) {
        return;
    }
    let scratch = scratch();
    let file = scratch.path().join("file");
    random_file(&file, 24 << 20, 41);
    let pool = TestPool::create_of("raid5", 4, SMALL_BYTES);
    pool.volume("a", "24M");
    pool.volume("b", "24M");
    let served = pool.serve();
    let file = file.to_str().unwrap();
    let of = |command: (&str, &str), name: &str| {
        let list = pool.run(command.0, command.1, &["--json"]).json();
        let list = list.as_array().unwrap();
        let one = list.iter().find(|one| one["name"] == name).unwrap().clone();
        let bytes = |key: &str| one[key].as_u64().unwrap() >> 20;
        (
            bytes("stored_bytes"),
            bytes("exclusive_bytes"),
            bytes("shared_bytes"),
        )
    };
    tool("nbdcopy", &["--flush", file, &served.uri("a")]).ok();
    // A third of the file is a hole.
    assert_eq!(of(("volume", "list"), "a"), (16, 16, 0));
    tool("nbdcopy", &["--flush", file, &served.uri("b")]).ok();
    assert_eq!(of(("volume", "list"), "a"), (16, 0, 16));
    pool.run("snapshot", "create", &["b@s"]).ok();
    pool.run("volume", "delete", &["a"]).ok();
    assert_eq!(of(("volume", "list"), "b"), (16, 0, 16));
    assert_eq!(of(("snapshot", "list"), "s"), (16, 0, 16));
    python_nbd(DISCARD, &[&served.uri("b")]).ok();
    assert_eq!(of(("volume", "list"), "b"), (0, 0, 0));
    assert_eq!(of(("snapshot", "list"), "s"), (16, 16, 0));
    let shown = pool.run("volume", "show", &["b", "--json"]).json();
    assert_eq!(shown["exclusive_bytes"], 0, "{shown:#}");
    let text = pool.run("volume", "show", &["b"]).ok();
    assert!(text.contains("Exclusive:"), "{text}");
    let text = pool.run("snapshot", "list", &[]).ok();
    assert!(text.contains("EXCLUSIVE"), "{text}");

    assert!(!warned(&pool));
    pool.run("snapshot", "delete", &["b@s"]).ok();
    let status = pool.status();
    let dead = status["reclaimable_bytes"].as_u64().unwrap();
    assert!(dead >> 20 >= 15, "{status:#}");
    let set = pool
        .run("pool", "set", &["--warn-free", "100%", "--json"])
        .json();
    assert_eq!(set["warn_free_percent"], 100);
    let status = pool.status();
    assert_eq!(status["warnings"][0]["kind"], "low_space", "{status:#}");
    let text = pool.run("pool", "status", &[]).ok();
    assert!(text.contains("Warning:"), "{text}");
    let set = pool
        .run("pool", "set", &["--warn-free", "1M", "--json"])
        .json();
    assert_eq!(
        (&set["warn_free_percent"], &set["warn_free_bytes"]),
        (&0.into(), &(1 << 20).into())
    );
    assert!(!warned(&pool));
    served.stop();
    // And of a stopped pool.
    assert_eq!(of(("volume", "list"), "b"), (0, 0, 0));
    assert_eq!(
        pool.run("pool", "set", &["--json"]).json()["warn_free_bytes"],
        1 << 20
    );
    let refused = pool.run("volume", "set", &["b", "--allow-shrink", "maybe"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let set = pool
        .run("volume", "set", &["b", "--allow-shrink", "on", "--json"])
        .json();
    assert_eq!(set["allow_shrink"], true);
    let shown = pool.run("volume", "show", &["b", "--json"]).json();
    assert_eq!(shown["allow_shrink"], true);
}
