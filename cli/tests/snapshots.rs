//! `tessera snapshot ...` and `tessera clone`, on a stopped and on a served pool,
//! and what NBD clients see of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{fs, os::unix::fs::FileExt};

use common::{
    Ran, TestPool,
    mount::{Mounted, can_mount, write_file},
    python_nbd, requires, tessera, tool,
};
use serde_json::json;

/// Words of a command line behind `tessera`, with POOL for the pool.
fn run(pool: &TestPool, words: &[&str]) -> Ran {
    let dir = pool.dir.display().to_string();
    let at = |word: &&str| match *word {
        "POOL" => dir.clone(),
        other => other.to_owned(),
    };
    tessera(words.iter().map(at))
}

/// An answer without what no two pools have alike: when it was.
fn timeless(ran: Ran) -> serde_json::Value {
    let mut value = ran.json();
    let items = match &mut value {
        serde_json::Value::Array(items) => items.iter_mut().collect(),
        one => vec![one],
    };
    for item in items {
        if let Some(taken) = item.get_mut("taken_unix_ms") {
            assert!(taken.as_u64() > Some(1_600_000_000_000), "{taken}");
            *taken = json!(0);
        }
    }
    value
}

#[test]
fn snapshots_live_the_same_life_stopped_and_served() {
    let life = |pool: &TestPool| {
        pool.volume("vm1", "1G");
        let mut answers = Vec::new();
        for words in [
            &["snapshot", "list", "POOL", "--json"][..],
            &["snapshot", "create", "POOL", "vm1@a", "--json"],
            &["snapshot", "create", "POOL", "vm1@b", "--json"],
            &["snapshot", "list", "POOL", "vm1", "--json"],
            &["clone", "POOL", "vm1@a", "copy", "--json"],
            &["volume", "list", "POOL", "--json"],
            &["snapshot", "diff", "POOL", "vm1@a", "--json"],
            &["snapshot", "diff", "POOL", "vm1@a", "vm1@b", "--json"],
            &[
                "snapshot",
                "rollback",
                "POOL",
                "vm1@a",
                "--dry-run",
                "--json",
            ],
            &["snapshot", "rollback", "POOL", "vm1@a", "--json"],
            &["snapshot", "delete", "POOL", "vm1@b", "--dry-run", "--json"],
            &["snapshot", "delete", "POOL", "vm1@b", "--json"],
            &["volume", "delete", "POOL", "vm1", "--dry-run", "--json"],
            &["volume", "delete", "POOL", "vm1", "--snapshots", "--json"],
            &["volume", "list", "POOL", "--json"],
            &["snapshot", "list", "POOL", "--json"],
        ] {
            answers.push((words, timeless(run(pool, words))));
        }
        answers
    };
    let refusals = |pool: &TestPool| {
        run(pool, &["snapshot", "create", "POOL", "copy@x"]).ok();
        [
            &["snapshot", "create", "POOL", "copy@x"][..],
            &["snapshot", "create", "POOL", "copy@.x"],
            &["snapshot", "create", "POOL", "cpy@x"],
            &["snapshot", "delete", "POOL", "copy@y"],
            &["snapshot", "rollback", "POOL", "copy@y"],
            &["snapshot", "diff", "POOL", "copy@x", "copy@y"],
            &["clone", "POOL", "copy@x", "copy"],
            &["volume", "delete", "POOL", "copy"],
        ]
        .map(|words| run(pool, words).refused())
    };
    let stopped = TestPool::raid5();
    let on_stopped = (life(&stopped), refusals(&stopped));
    let served_pool = TestPool::raid5();
    let served = served_pool.serve();
    let on_served = (life(&served_pool), refusals(&served_pool));
    served.stop();
    assert_eq!(on_stopped, on_served);
    let (answers, refusals) = on_stopped;
    let names = |at: usize| -> Vec<&str> {
        let list = answers[at].1.as_array().unwrap();
        list.iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect()
    };
    assert_eq!(names(3), ["a", "b"]);
    assert_eq!(names(5), ["copy", "vm1"]);
    assert_eq!(names(14), ["copy"]);
    assert!(names(15).is_empty());
    assert_eq!(answers[12].1["snapshots"], 1);
    let wanted = [
        "There is already a snapshot \"copy@x\"",
        "The snapshot name \".x\" is not valid",
        "did you mean copy?",
        "There is no snapshot \"copy@y\"",
        "There is no snapshot \"copy@y\"",
        "There is no snapshot \"copy@y\"",
        "There is already a volume \"copy\"",
        "use --snapshots to delete it as well",
    ];
    for (refusal, wanted) in refusals.iter().zip(wanted) {
        assert!(refusal.contains(wanted), "{refusal:?} lacks {wanted:?}");
    }
}

#[test]
fn snapshots_are_read_only_exports_and_can_be_rolled_back_to() {
    if !requires(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm1", "64M");
    let served = pool.serve();
    let io = |name: &str, command: &str| {
        let uri = served.uri(name);
        tool("qemu-io", &["-f", "raw", "-c", command, &uri])
    };
    io("vm1", "write -P 1 1M 1M").ok();
    // Answered, not flushed: it is in the snapshot all the same.
    run(&pool, &["snapshot", "create", "POOL", "vm1@s"]).ok();
    io("vm1", "write -P 2 1M 64k").ok();
    let info = tool("nbdinfo", &["--json", &served.uri("vm1@s")]).json();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 64 << 20);
    assert_eq!(export["is_read_only"], true);
    let list = tool("nbdinfo", &["--list", "--json", &served.uris[0]]).json();
    let exports = list["exports"].as_array().unwrap().iter();
    let names: Vec<_> = exports
        .map(|one| one["export-name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["vm1", "vm1@s"]);
    let read = |name: &str, pattern: &str| {
        let uri = served.uri(name);
        let command = format!("read -P {pattern} 1M 64k");
        let ran = tool("qemu-io", &["-r", "-f", "raw", "-c", &command, &uri]);
        assert!(ran.ok().contains("read 65536"), "{name}");
    };
    read("vm1@s", "1");
    read("vm1", "2");
    run(&pool, &["clone", "POOL", "vm1@s", "copy"]).ok();
    io("copy", "write -P 3 1M 64k").ok();
    read("vm1@s", "1");
    run(&pool, &["snapshot", "rollback", "POOL", "vm1@s"]).ok();
    read("vm1", "1");
    read("copy", "3");
    run(&pool, &["volume", "delete", "POOL", "vm1", "--snapshots"]).ok();
    read("copy", "3");
    served.stop();
}

/// What a client does that copies what changed, and nothing else.
const INCREMENTAL_COPY: &str = r#"
import sys, nbd
source, target, since = sys.argv[1:4]
context = "tessera:changed-since:" + since
s = nbd.NBD()
s.add_meta_context("base:allocation")
s.add_meta_context(context)
s.connect_uri(source)
assert s.can_meta_context(context) and s.can_meta_context("base:allocation")
t = nbd.NBD()
t.connect_uri(target)
size, at, copied, seen = s.get_size(), 0, 0, set()
while at < size:
    runs = []
    def extents(name, offset, entries, error):
        seen.add(name)
        if name == context:
            runs.extend(zip(entries[::2], entries[1::2]))
    s.block_status(min(size - at, 1 << 30), at, extents)
    assert runs
    for length, flags in runs:
        length = min(length, size - at)
        done = 0
        while flags & 1 and done < length:
            piece = min(length - done, 1 << 20)
            t.pwrite(s.pread(piece, at + done), at + done)
            done += piece
            copied += piece
        at += length
assert seen == {context, "base:allocation"}, seen
t.flush()
print(copied)
"#;

#[test]
fn clients_copy_what_changed_since_a_snapshot() {
    if !requires(&["qemu-io", "qemu-img"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm1", "96M");
    let served = pool.serve();
    let io = |commands: &[&str]| {
        let uri = served.uri("vm1");
        let mut arguments = vec!["-f", "raw"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        tool("qemu-io", &arguments).ok();
    };
    io(&["write -P 1 0 32M", "write -P 2 40M 8M"]);
    run(&pool, &["snapshot", "create", "POOL", "vm1@one"]).ok();
    // The full copy, once: a clone of another snapshot stands for it.
    run(&pool, &["clone", "POOL", "vm1@one", "backup"]).ok();
    io(&["write -P 3 4M 1M", "discard 42M 2M", "write -P 4 90M 64k"]);
    run(&pool, &["snapshot", "create", "POOL", "vm1@two"]).ok();
    io(&["write -P 5 64M 4M"]);
    let diff = run(
        &pool,
        &["snapshot", "diff", "POOL", "vm1@one", "vm1@two", "--json"],
    )
    .json();
    assert_eq!(diff["changed_bytes"], (3 << 20) + (64 << 10));
    let ranges = diff["ranges"].as_array().unwrap();
    let offsets: Vec<_> = ranges
        .iter()
        .map(|range| range["offset"].as_u64().unwrap())
        .collect();
    assert_eq!(offsets, [4 << 20, 42 << 20, 90 << 20]);
    // Older than the one it is compared with: the other way round is the same.
    let back = run(
        &pool,
        &["snapshot", "diff", "POOL", "vm1@two", "vm1@one", "--json"],
    )
    .json();
    assert_eq!(back["ranges"], diff["ranges"]);
    for (source, since, bytes) in [
        ("vm1@two", "one", (3 << 20) + (64 << 10)),
        ("vm1", "two", 4 << 20),
    ] {
        let arguments = [served.uri(source), served.uri("backup"), since.to_owned()];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let copied = python_nbd(INCREMENTAL_COPY, &arguments).ok();
        assert_eq!(copied.trim(), bytes.to_string(), "{source}");
        let (one, two) = (served.uri(source), served.uri("backup"));
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &one, &two],
        )
        .ok();
    }
    served.stop();
}

#[test]
fn hundreds_of_snapshots_of_a_served_pool_are_listed_and_deleted() {
    let pool = TestPool::raid5();
    pool.volume("vm1", "1G");
    let served = pool.serve();
    for number in 0..200 {
        let name = format!("vm1@s{number}");
        run(&pool, &["snapshot", "create", "POOL", &name]).ok();
    }
    let list = run(&pool, &["snapshot", "list", "POOL", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 200);
    assert_eq!(list[7]["name"], "s7");
    assert_eq!(pool.status()["snapshots"], 200);
    run(&pool, &["volume", "delete", "POOL", "vm1", "--snapshots"]).ok();
    assert_eq!(pool.status()["snapshots"], 0);
    served.stop();
}

#[test]
fn snapshots_are_files_that_can_only_be_read() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm1", "16M");
    let mounted = Mounted::start(&pool, &["--foreground"]);
    let fill = |byte: u8| {
        let file = write_file(&mounted.file("vm1"));
        file.write_all_at(&[byte; 8192], 0).unwrap();
    };
    fill(7);
    run(&pool, &["snapshot", "create", "POOL", "vm1@s"]).ok();
    fill(8);
    let directory = mounted.path.join("snapshots");
    let names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["vm1@s"]);
    let path = directory.join("vm1@s");
    assert_eq!(fs::metadata(&path).unwrap().len(), 16 << 20);
    assert_eq!(fs::read(&path).unwrap()[..8192], [7; 8192]);
    assert_eq!(fs::read(mounted.file("vm1")).unwrap()[..8192], [8; 8192]);
    let read_only = Some(rustix::io::Errno::ROFS.raw_os_error());
    let refused = [
        fs::OpenOptions::new().write(true).open(&path).map(drop),
        fs::remove_file(&path),
        fs::write(directory.join("new"), b"x"),
        fs::rename(&path, directory.join("vm1@t")),
    ];
    for done in refused {
        assert_eq!(done.unwrap_err().raw_os_error(), read_only);
    }
    let open = fs::File::open(&path).unwrap();
    let busy = run(&pool, &["snapshot", "delete", "POOL", "vm1@s"]).refused();
    assert!(busy.contains("in use"), "{busy}");
    let mut first = [0; 100];
    open.read_exact_at(&mut first, 4000).unwrap();
    assert_eq!(first, [7; 100]);
    drop(open);
    drop(mounted);
}
