//! kill -9, lost members and a lost index, under real clients.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use common::{
    Served, TestPool, python_nbd, python_nbd_command, random_file, requires, run_on, text, tool,
};

/// Writes numbered blocks one after the other, flushing now and then, until
/// the server dies; tells each number whose flush was answered.
const WRITER: &str = "
import os, struct
h.connect_uri(sys.argv[1])
blocks = int(sys.argv[2])
seed = sys.argv[3].encode()
import hashlib
def block(n):
    head = hashlib.sha256(seed + struct.pack('<Q', n)).digest()
    return struct.pack('<Q', n) + (head * 128)[:4088]
n = 0
try:
    while True:
        h.pwrite(block(n), (n % blocks) * 4096)
        if n % 7 == 6:
            h.flush()
            print(n, flush=True)
        n += 1
except nbd.Error:
    print('ended', n, flush=True)
";

/// Reads the blocks back: whatever is there must be a prefix of what was
/// written, in order, that contains everything up to `flushed`.
const READER: &str = "
import struct, hashlib
h.connect_uri(sys.argv[1])
blocks, seed, flushed, last = int(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4]), int(sys.argv[5])
def block(n):
    head = hashlib.sha256(seed + struct.pack('<Q', n)).digest()
    return struct.pack('<Q', n) + (head * 128)[:4088]
found = []
for slot in range(blocks):
    data = h.pread(4096, slot * 4096)
    if data == bytes(4096):
        found.append(None)
        continue
    n = struct.unpack('<Q', data[:8])[0]
    assert n % blocks == slot and data == block(n), ('a block that nobody wrote', slot, n)
    found.append(n)
newest = max((n for n in found if n is not None), default=-1)
assert flushed <= newest <= last, (flushed, newest, last)
for slot in range(blocks):
    expected = newest - ((newest - slot) % blocks)
    expected = None if expected < 0 else expected
    assert found[slot] == expected, ('not a prefix', slot, found[slot], expected)
print(newest)
";

#[test]
fn a_kill_keeps_a_prefix_with_everything_flushed() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    let mut served = pool.serve();
    for (round, flushes) in [3usize, 40, 400].into_iter().enumerate() {
        let (blocks, seed) = ("1000", format!("round {round}"));
        let volume = format!("vm{round}");
        pool.volume(&volume, "64M");
        let mut writer = python_nbd_command(WRITER, &[&served.uri(&volume), blocks, &seed])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut lines = BufReader::new(writer.stdout.take().expect("stdout is piped")).lines();
        for _ in 0..flushes {
            lines.next().expect("the writer goes on").unwrap();
        }
        served.kill();
        let mut flushed = String::new();
        let mut last = String::new();
        for line in lines {
            let line = line.unwrap();
            match line.strip_prefix("ended ") {
                Some(n) => last = n.to_owned(),
                None => flushed = line,
            }
        }
        writer.wait().unwrap();
        if flushed.is_empty() {
            flushed = (flushes * 7 - 1).to_string();
        }
        served = pool.serve();
        python_nbd(
            READER,
            &[&served.uri(&volume), blocks, &seed, &flushed, &last],
        )
        .ok();
    }
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn a_kill_under_fio_keeps_what_was_flushed_before() {
    if !requires(&["fio"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("kept", "48M");
    pool.volume("load", "256M");
    let served = pool.serve();
    let kept = |served: &Served, extra: &str| {
        tool(
            "fio",
            &[
                "--name=kept",
                "--ioengine=nbd",
                &format!("--uri={}", served.uri("kept")),
                "--rw=randwrite",
                "--bs=4k",
                "--iodepth=16",
                "--size=48M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--randseed=42",
                "--verify_state_save=0",
                extra,
            ],
        )
        .ok();
    };
    kept(&served, "--do_verify=0");
    // The load flushes now and then, so there is always a flush in flight.
    let uri = format!("--uri={}", served.uri("load"));
    let mut load = Command::new("fio")
        .args([
            "--name=load",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=32",
        ])
        .args([
            "--size=256M",
            "--time_based",
            "--runtime=60",
            "--fsync=16",
            "--refill_buffers",
        ])
        .args(["--status-interval=1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("fio runs");
    let mut progress = BufReader::new(load.stdout.take().expect("stdout is piped")).lines();
    // Its first report of flushes that have been answered.
    loop {
        let line = progress.next().expect("fio reports").unwrap();
        if line.contains("fsync/fdatasync") {
            break;
        }
    }
    // fio's write to `kept` ended without a flush of its own; the load's
    // flushes covered it, as a flush covers every volume of the pool.
    served.kill();
    let _ = load.kill();
    load.wait().unwrap();
    let served = pool.serve();
    kept(&served, "--verify_only");
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn any_one_member_can_go() {
    if !requires(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let pool = TestPool::raid5();
    let image = pool.root.path().join("image");
    random_file(&image, 48 << 20, 23);
    pool.volume("vm", "48M");
    let served = pool.serve();
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("vm")]).ok();
    served.kill();
    for gone in 0..4 {
        let (copy, members) = pool.copy_members();
        let dir = copy.path().join("pool");
        let names: Vec<String> = members.iter().map(|path| text(path)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        run_on(&dir, "pool", "import", &names).ok();
        fs::remove_file(&members[gone]).unwrap();
        let served = Served::start(&dir, &[]);
        let status = run_on(&dir, "pool", "status", &["--json"]).json();
        assert_eq!(status["state"], "degraded");
        assert_eq!(status["members"][gone]["state"], "missing", "{status:#}");
        let uri = served.uri("vm");
        tool(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &text(&image), &uri],
        )
        .ok();
        // Writes go on without it, and survive a kill as well.
        let ran = tool(
            "qemu-io",
            &["-f", "raw", "-c", "write -P 9 1M 1M", "-c", "flush", &uri],
        );
        assert!(ran.ok().contains("wrote 1048576"));
        served.kill();
        let served = Served::start(&dir, &[]);
        let ran = tool(
            "qemu-io",
            &["-f", "raw", "-c", "read -P 9 1M 1M", &served.uri("vm")],
        );
        assert!(!ran.stdout.contains("failed"), "{ran:?}");
        served.stop();
        run_on(&dir, "pool", "check", &["--data"]).ok();
    }
}

#[test]
fn a_member_that_missed_writes_is_not_believed_when_it_returns() {
    if !requires(&["qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let away = pool.root.path().join("away.img");
    let member = &pool.members()[1];
    fs::rename(member, &away).unwrap();
    let served = pool.serve();
    let uri = served.uri("vm");
    let ran = tool(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 5 0 8M", "-c", "flush", &uri],
    );
    assert!(ran.ok().contains("wrote"));
    served.stop();
    fs::rename(&away, member).unwrap();
    let served = pool.serve();
    let status = pool.status();
    assert_eq!(status["state"], "degraded", "{status:#}");
    assert_eq!(status["members"][1]["state"], "failed", "{status:#}");
    let ran = tool(
        "qemu-io",
        &["-f", "raw", "-c", "read -P 5 0 8M", &served.uri("vm")],
    );
    assert!(!ran.stdout.contains("failed"), "{ran:?}");
    served.stop();
}

#[test]
fn a_lost_index_loses_no_data_and_dedup_comes_back() {
    if !requires(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let pool = TestPool::raid5();
    let image = pool.root.path().join("image");
    random_file(&image, 48 << 20, 31);
    pool.volume("one", "48M");
    pool.volume("two", "48M");
    let served = pool.serve();
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("one")]).ok();
    served.stop();
    fs::remove_dir_all(pool.dir.join("index")).unwrap();
    let served = pool.serve();
    let uri = served.uri("one");
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &text(&image), &uri],
    )
    .ok();
    while pool.status()["index_state"] != "ready" {
        std::thread::yield_now();
    }
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("two")]).ok();
    let status = pool.status();
    assert!(status["dedup_ratio"].as_f64().unwrap() > 1.9, "{status:#}");
    served.stop();
}
