//! Members that fail, are replaced, brought back and corrupted while real
//! clients use the pool, and while it is killed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use common::{Served, TestPool, requires, scribble, text, tool};
use serde_json::Value;

/// Where data lies in a member of a test pool, in bytes: well behind superblock
/// and journal, well before the end.
const DATA_AT: u64 = 8 << 20;

/// Writes random blocks of a volume and remembers what it has written; `verify`
/// reads all of it back.
fn fio(served: &Served, volume: &str, extra: &[&str]) -> Command {
    let mut command = Command::new("fio");
    command
        .args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=4k"])
        .args(["--iodepth=16", "--size=48M", "--verify=crc32c"])
        .args(["--verify_fatal=1", "--randseed=7", "--verify_state_save=0"])
        .arg(format!("--uri={}", served.uri(volume)))
        .args(extra)
        .stdin(Stdio::null());
    command
}

fn fill(served: &Served, volume: &str) {
    let output = fio(served, volume, &["--do_verify=0", "--end_fsync=1"]).output();
    assert!(output.unwrap().status.success());
}

fn verify(served: &Served, volume: &str) {
    let output = fio(served, volume, &["--verify_only"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}

/// fio that goes on until it is killed, failing at the first error.
struct Load(Child);

impl Load {
    fn start(served: &Served, volume: &str) -> Self {
        let child = Command::new("fio")
            // One process, so that none is left when it is killed.
            .arg("--thread")
            .args(["--name=busy", "--ioengine=nbd", "--rw=randrw", "--bs=4k"])
            .args(["--iodepth=8", "--size=64M", "--time_based"])
            .args(["--runtime=600", "--fsync=32", "--refill_buffers"])
            .arg(format!("--uri={}", served.uri(volume)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("fio runs"))
    }

    /// No client has seen an error so far.
    #[track_caller]
    fn assert_undisturbed(&mut self) {
        let ended = self.0.try_wait().unwrap();
        assert!(ended.is_none(), "a client met an error: {ended:?}");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn states(status: &Value) -> Vec<String> {
    let members = status["members"].as_array().unwrap();
    members
        .iter()
        .map(|member| member["state"].as_str().unwrap().to_owned())
        .collect()
}

fn new_disk(pool: &TestPool, name: &str) -> String {
    text(&pool.root.path().join(name))
}

/// A pool whose volume `kept` holds what fio verifies, and `busy` takes load.
fn filled(level: &str, files: usize) -> (TestPool, Served) {
    let pool = TestPool::create(level, files);
    pool.volume("kept", "64M");
    pool.volume("busy", "64M");
    let served = pool.serve();
    fill(&served, "kept");
    (pool, served)
}

#[test]
fn a_member_fails_and_is_replaced_under_load_at_every_redundant_level() {
    if !requires(&["fio"]) {
        return;
    }
    for (level, files) in [("raid1", 2), ("raid5", 4), ("raid6", 4), ("raid10", 4)] {
        let (pool, served) = filled(level, files);
        let mut load = Load::start(&served, "busy");
        pool.run("member", "fail", &["1"]).ok();
        let status = pool.status();
        assert_eq!(status["state"], "degraded", "{level}");
        assert_eq!(states(&status)[1], "failed", "{level}");
        load.assert_undisturbed();
        let job = pool
            .run(
                "member",
                "replace",
                &["1", &new_disk(&pool, "new.img"), "--wait", "--json"],
            )
            .json();
        assert_eq!(job["state"], "done", "{level}: {job:#}");
        assert_eq!(job["progress"], 1.0, "{level}: {job:#}");
        load.assert_undisturbed();
        drop(load);
        let status = pool.status();
        assert_eq!(status["state"], "online", "{level}: {status:#}");
        // What the new one holds is needed now: another goes.
        pool.run("member", "fail", &["0"]).ok();
        verify(&served, "kept");
        served.stop();
        pool.run("pool", "check", &["--data"]).ok();
    }
}

#[test]
fn a_healthy_member_is_replaced_without_ever_being_degraded() {
    if !requires(&["fio"]) {
        return;
    }
    let (pool, served) = filled("raid5", 4);
    let old = text(&pool.members()[2]);
    let job = pool.run(
        "member",
        "replace",
        &[&old, &new_disk(&pool, "new.img"), "--wait", "--json"],
    );
    assert_eq!(job.json()["state"], "done");
    let status = pool.status();
    assert_eq!(status["state"], "online", "{status:#}");
    assert_eq!(
        status["members"][2]["path"],
        Value::String(new_disk(&pool, "new.img"))
    );
    verify(&served, "kept");
    served.stop();
    // The old one is none of the pool's any more, and is not missed.
    fs::remove_file(old).unwrap();
    let served = pool.serve();
    assert_eq!(pool.status()["state"], "online");
    verify(&served, "kept");
    served.stop();
}

#[test]
fn a_spare_takes_over_by_itself() {
    if !requires(&["fio"]) {
        return;
    }
    let (pool, served) = filled("raid6", 5);
    let spare = new_disk(&pool, "spare.img");
    pool.run("member", "add-spare", &[&spare]).ok();
    assert!(states(&pool.status()).contains(&"spare".to_owned()));
    let mut load = Load::start(&served, "busy");
    pool.run("member", "fail", &["3"]).ok();
    while pool.status()["state"] != "online" {
        load.assert_undisturbed();
        std::thread::yield_now();
    }
    drop(load);
    let status = pool.status();
    assert_eq!(status["members"][3]["path"], Value::String(spare));
    verify(&served, "kept");
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn a_member_that_was_away_gets_only_what_it_missed() {
    if !requires(&["fio"]) {
        return;
    }
    let (pool, served) = filled("raid5", 4);
    served.stop();
    let member = pool.members()[1].clone();
    let away = pool.root.path().join("away.img");
    fs::rename(&member, &away).unwrap();
    let served = pool.serve();
    assert_eq!(states(&pool.status())[1], "missing");
    let ran = tool(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 5 0 1M",
            "-c",
            "flush",
            &served.uri("busy"),
        ],
    );
    assert!(ran.ok().contains("wrote"));
    fs::rename(&away, &member).unwrap();
    let job = pool
        .run("member", "re-add", &["1", "--wait", "--json"])
        .json();
    assert_eq!(job["state"], "done", "{job:#}");
    let copied = job["bytes_done"].as_u64().unwrap();
    let stored = pool.status()["stored_bytes"].as_u64().unwrap();
    assert!(copied < stored / 4, "copied {copied} of {stored}: {job:#}");
    assert_eq!(pool.status()["state"], "online");
    // What it missed is on it now.
    pool.run("member", "fail", &["2"]).ok();
    verify(&served, "kept");
    let ran = tool(
        "qemu-io",
        &["-f", "raw", "-c", "read -P 5 0 1M", &served.uri("busy")],
    );
    assert!(!ran.stdout.contains("failed"), "{ran:?}");
    served.stop();
}

#[test]
fn rot_on_one_member_is_found_charged_to_it_and_mended_by_a_scrub() {
    if !requires(&["fio"]) {
        return;
    }
    for (level, files) in [("raid1", 2), ("raid5", 4), ("raid6", 4), ("raid10", 4)] {
        let (pool, served) = filled(level, files);
        served.stop();
        let victim = pool.members()[1].clone();
        for block in 0..64 {
            scribble(&victim, DATA_AT + block * (192 << 10), 4096);
        }
        let served = pool.serve();
        let scrub = pool.run("scrub", "start", &["--wait", "--json"]).json();
        assert_eq!(scrub["state"], "done", "{level}: {scrub:#}");
        assert_eq!(scrub["lost"], 0, "{level}: {scrub:#}");
        for member in scrub["members"].as_array().unwrap() {
            let found = member["found"].as_u64().unwrap();
            if member["index"] == 1 {
                assert!(found > 0, "{level}: {scrub:#}");
                assert_eq!(member["repaired"], found, "{level}: {scrub:#}");
            } else {
                assert_eq!(found, 0, "{level}: {scrub:#}");
            }
        }
        // Nothing is left to find, and every other member can be missed.
        let again = pool.run("scrub", "start", &["--wait", "--json"]).json();
        assert_eq!(again["found"], 0, "{level}: {again:#}");
        pool.run("member", "fail", &["0"]).ok();
        verify(&served, "kept");
        served.stop();
        pool.run("pool", "check", &["--data"]).ok();
    }
}

#[test]
fn a_rebuild_goes_on_after_a_kill() {
    if !requires(&["fio"]) {
        return;
    }
    let (pool, served) = filled("raid5", 4);
    // Slow enough to be killed in the middle.
    pool.run("pool", "set", &["--rebuild-rate", "4M"]).ok();
    pool.run("member", "fail", &["1"]).ok();
    let job = pool
        .run(
            "member",
            "replace",
            &["1", &new_disk(&pool, "new.img"), "--json"],
        )
        .json();
    assert_eq!(job["state"], "running", "{job:#}");
    let id = job["id"].as_u64().unwrap();
    served.kill();
    let served = pool.serve();
    let jobs = pool.run("job", "list", &["--json"]).json();
    let found = jobs.as_array().unwrap().iter().find(|job| job["id"] == id);
    assert_eq!(found.unwrap()["state"], "running", "{jobs:#}");
    pool.run("pool", "set", &["--rebuild-rate", "0"]).ok();
    let job = pool
        .run("job", "follow", &[&id.to_string(), "--json"])
        .json();
    assert_eq!(job["state"], "done", "{job:#}");
    assert_eq!(pool.status()["state"], "online");
    pool.run("member", "fail", &["0"]).ok();
    verify(&served, "kept");
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn kills_removals_rot_and_replacements_in_a_row_lose_nothing() {
    if !requires(&["fio"]) {
        return;
    }
    let (pool, mut served) = filled("raid6", 5);
    for round in 0..4u64 {
        let mut load = Load::start(&served, "busy");
        let target = (round % 5) as usize;
        let path = pool.status()["members"][target]["path"]
            .as_str()
            .unwrap()
            .to_owned();
        match round % 2 {
            // A member's file is damaged under the server's feet, then the
            // server is killed.
            0 => {
                for block in 0..32 {
                    let at = DATA_AT + (block * 7 + round) * (128 << 10);
                    scribble(path.as_ref(), at, 4096);
                }
            }
            // A member is failed by hand, and the server killed while it is
            // degraded.
            _ => {
                pool.run("member", "fail", &[&path]).ok();
                load.assert_undisturbed();
            }
        }
        served.kill();
        drop(load);
        served = pool.serve();
        verify(&served, "kept");
        if round % 2 == 1 {
            let new = new_disk(&pool, &format!("new{round}.img"));
            let job = pool
                .run(
                    "member",
                    "replace",
                    &[&target.to_string(), &new, "--wait", "--json"],
                )
                .json();
            assert_eq!(job["state"], "done", "{job:#}");
        }
        let scrub = pool.run("scrub", "start", &["--wait", "--json"]).json();
        assert_eq!(scrub["lost"], 0, "{scrub:#}");
        assert_eq!(pool.status()["state"], "online");
        verify(&served, "kept");
    }
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn a_stopped_pool_is_looked_after_in_the_same_words() {
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let listed = pool.run("member", "list", &["--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 4);
    assert_eq!(
        pool.run("scrub", "status", &["--json"]).json()["state"],
        "idle"
    );
    let scrub = pool.run("scrub", "start", &["--json"]).json();
    assert_eq!(scrub["state"], "done", "{scrub:#}");
    assert_eq!(
        pool.run("scrub", "status", &["--json"]).json()["state"],
        "done"
    );
    pool.run("member", "fail", &["3"]).ok();
    let new = new_disk(&pool, "new.img");
    let job = pool.run("member", "replace", &["3", &new, "--json"]).json();
    assert_eq!(job["state"], "done", "{job:#}");
    assert_eq!(pool.status()["state"], "online");
    let spare = new_disk(&pool, "spare.img");
    pool.run("member", "add-spare", &[&spare]).ok();
    pool.run("member", "remove", &[&spare]).ok();
    assert_eq!(states(&pool.status()), ["online"; 4]);
    let settings = pool
        .run("pool", "set", &["--read-errors", "5", "--json"])
        .json();
    assert_eq!(settings["read_errors_per_hour"], 5);
    let settings = pool.run("pool", "set", &["--json"]).json();
    assert_eq!(settings["read_errors_per_hour"], 5);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let pool = TestPool::raid5();
    let foreign = TestPool::raid5();
    let taken = text(&foreign.members()[0]);
    let before = pool.run("member", "list", &[]).ok();
    for (arguments, names) in [
        (&["member", "fail", "9"][..], "no member 9"),
        (&["member", "fail", "/nowhere.img"], "/nowhere.img"),
        (&["member", "replace", "1", &taken], "force"),
        (&["member", "replace", "1", "/dev/null"], "/dev/null"),
        (
            &["member", "replace", "1", "/nowhere/x.img"],
            "/nowhere/x.img",
        ),
        (&["member", "re-add", "1"], "1"),
        (&["member", "add-spare", &taken], "force"),
        (&["scrub", "cancel"], "scrub"),
        (&["job", "pause", "77"], "77"),
        (&["job", "follow"], "no jobs"),
    ] {
        let sentence = pool
            .run(arguments[0], arguments[1], &arguments[2..])
            .refused();
        assert!(sentence.contains(names), "{arguments:?}: {sentence}");
    }
    assert_eq!(pool.run("member", "list", &[]).ok(), before);
    assert_eq!(pool.status()["state"], "online");
    foreign.run("pool", "check", &[]).ok();
    // One more than RAID 5 survives.
    pool.run("member", "fail", &["0"]).ok();
    let sentence = pool.run("member", "fail", &["1"]).refused();
    assert!(sentence.contains('1'), "{sentence}");
}
