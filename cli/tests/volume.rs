//! `tessera volume ...`, on a stopped and on a served pool: the same words.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Ran, TestPool, requires, tool};

/// Runs the same commands on a stopped and on a served pool and compares
/// every status and every word.
fn same_either_way(commands: &[&[&str]]) -> Vec<Ran> {
    let run_all = |pool: &TestPool| -> Vec<Ran> {
        commands
            .iter()
            .map(|command| pool.run("volume", command[0], &command[1..]))
            .collect()
    };
    let stopped = TestPool::raid5();
    let on_stopped = run_all(&stopped);
    let served_pool = TestPool::raid5();
    let served = served_pool.serve();
    let on_served = run_all(&served_pool);
    served.stop();
    for ((command, stopped), served) in commands.iter().zip(&on_stopped).zip(&on_served) {
        assert_eq!(stopped, served, "{command:?}");
    }
    on_stopped
}

#[test]
fn volumes_live_the_same_life_stopped_and_served() {
    let ran = same_either_way(&[
        &["list", "--json"],
        &["create", "vm1", "--size", "20G", "--json"],
        &[
            "create",
            "vm2",
            "--size",
            "1T",
            "--chunk-size",
            "64K",
            "--dedup",
            "off",
            "--compression",
            "none",
            "--json",
        ],
        &["create", "odd.One_-9", "--size", "4097"],
        &["list", "--json"],
        &["list"],
        &["show", "vm2", "--json"],
        &["show", "vm1"],
        &["resize", "vm1", "--size", "40G", "--json"],
        &["resize", "vm1", "--size", "10G"],
        &["resize", "vm1", "--size", "10G", "--force", "--dry-run"],
        &["show", "vm1", "--json"],
        &["resize", "vm1", "--size", "10G", "--force", "--json"],
        &["set", "vm1", "--dedup", "post", "--json"],
        &["set", "vm1", "--compression", "none", "--json"],
        &["set", "vm1"],
        &["set", "vm11", "--dedup", "off"],
        &["rename", "vm1", "web", "--json"],
        &["show", "vm1"],
        &["delete", "web", "--dry-run"],
        &["delete", "web", "--dry-run", "--json"],
        &["delete", "wbe"],
        &["delete", "web"],
        &["delete", "web"],
        &["list", "--json"],
    ]);
    let mut ran = ran.into_iter();
    let mut next = || ran.next().expect("one answer a command");
    assert_eq!(next().json(), serde_json::json!([]));
    let made = next().json();
    assert_eq!(made["name"], "vm1");
    assert_eq!(made["size_bytes"], 20u64 << 30);
    assert_eq!(
        (&made["chunk_bytes"], &made["logical_bytes"]),
        (&4096.into(), &0.into())
    );
    assert_eq!(
        (&made["dedup"], &made["compression"]),
        (&"inline".into(), &"lz4".into())
    );
    let second = next().json();
    assert_eq!(
        (&second["chunk_bytes"], &second["size_bytes"]),
        (&65536.into(), &(1u64 << 40).into())
    );
    assert_eq!(
        (&second["dedup"], &second["compression"]),
        (&"off".into(), &"none".into())
    );
    next().ok();
    let list = next().json();
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["odd.One_-9", "vm1", "vm2"]);
    let table = next().ok();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("20G") && table.contains("64K"), "{table}");
    assert_eq!(next().json(), second);
    assert!(next().ok().contains("20G"));
    assert_eq!(next().json()["size_bytes"], 40u64 << 30);
    assert!(next().refused().contains("--force"));
    assert!(next().ok().contains("Would shrink vm1 from 40G to 10G"));
    assert_eq!(next().json()["size_bytes"], 40u64 << 30);
    assert_eq!(next().json()["size_bytes"], 10u64 << 30);
    let modes = |volume: serde_json::Value| {
        let of = |key: &str| volume[key].as_str().unwrap().to_owned();
        (of("dedup"), of("compression"))
    };
    assert_eq!(modes(next().json()), ("post".into(), "lz4".into()));
    assert_eq!(modes(next().json()), ("post".into(), "none".into()));
    assert!(next().ok().contains("post"));
    assert!(next().refused().contains("did you mean vm1?"));
    let renamed = next().json();
    assert_eq!(
        (&renamed["name"], &renamed["id"]),
        (&"web".into(), &made["id"])
    );
    assert!(next().refused().contains("vm1"));
    assert!(next().ok().contains("Would delete web"));
    let plan = next().json();
    assert_eq!(
        (&plan["name"], &plan["deleted"]),
        (&"web".into(), &false.into())
    );
    assert!(next().refused().contains("did you mean web?"));
    let deleted = next();
    assert_eq!((deleted.code, deleted.stdout.as_str()), (Some(0), ""));
    assert!(next().refused().contains("web"));
    assert_eq!(next().json().as_array().unwrap().len(), 2);
}

#[test]
fn wrong_volume_commands_say_why_and_change_nothing() {
    let long = "x".repeat(129);
    let wrong: Vec<Vec<&str>> = vec![
        vec!["create", "vm", "--size", "2G"],
        vec!["create", "", "--size", "1G"],
        vec!["create", ".hidden", "--size", "1G"],
        vec!["create", "--size", "1G", "--", "-dash"],
        vec!["create", "a/b", "--size", "1G"],
        vec!["create", "a b", "--size", "1G"],
        vec!["create", "ü", "--size", "1G"],
        vec!["create", "a\nb", "--size", "1G"],
        vec!["create", &long, "--size", "1G"],
        vec!["create", "new", "--size", "0"],
        vec!["create", "new", "--size", "8E"],
        vec!["create", "new", "--size", "16E"],
        vec!["create", "new", "--size", "12Q"],
        vec!["create", "new", "--size", "-5"],
        vec!["create", "new"],
        vec!["create", "new", "--size", "1G", "--chunk-size", "0"],
        vec!["create", "new", "--size", "1G", "--chunk-size", "2K"],
        vec!["create", "new", "--size", "1G", "--chunk-size", "5000"],
        vec!["create", "new", "--size", "1G", "--chunk-size", "128K"],
        vec!["create", "new", "--size", "1G", "--dedup", "maybe"],
        vec!["create", "new", "--size", "1G", "--compression", "zip"],
        vec!["show", "absent"],
        vec!["show", "../vm"],
        vec!["resize", "absent", "--size", "2G"],
        vec!["resize", "vm", "--size", "0", "--force"],
        vec!["resize", "vm", "--size", "512M"],
        vec!["resize", "vm", "--size", "8E"],
        vec!["resize", "vm"],
        vec!["rename", "absent", "new"],
        vec!["rename", "vm", "other"],
        vec!["rename", "vm", "a/b"],
        vec!["rename", "vm", ""],
        vec!["rename", "vm"],
        vec!["delete", "absent"],
        vec!["delete", "absent", "--dry-run"],
        vec!["delete", "vm", "extra"],
        vec!["destroy", "vm"],
    ];
    let list: &[&str] = &["list", "--json"];
    let mut commands: Vec<&[&str]> = vec![
        &["create", "vm", "--size", "1G"],
        &["create", "other", "--size", "1G"],
        list,
    ];
    for command in &wrong {
        commands.push(command);
        commands.push(list);
    }
    let ran = same_either_way(&commands);
    let before = ran[2].clone().ok();
    for (command, pair) in wrong.iter().zip(ran[3..].chunks(2)) {
        pair[0].clone().refused();
        assert_eq!(pair[1].clone().ok(), before, "{command:?}");
    }
}

#[test]
fn what_was_changed_while_served_is_there_after_a_restart_and_after_a_kill() {
    let pool = TestPool::raid5();
    let served = pool.serve();
    pool.volume("kept", "1G");
    pool.volume("gone", "1G");
    pool.run("volume", "delete", &["gone"]).ok();
    pool.run("volume", "rename", &["kept", "renamed"]).ok();
    pool.run("volume", "resize", &["renamed", "--size", "3G"])
        .ok();
    let during = pool.run("volume", "list", &["--json"]).ok();
    served.kill();
    let served = pool.serve();
    assert_eq!(pool.run("volume", "list", &["--json"]).ok(), during);
    served.stop();
    assert_eq!(pool.run("volume", "list", &["--json"]).ok(), during);
}

#[test]
fn a_chunk_size_of_64k_reads_back_what_4k_writes_left() {
    if !requires(&["qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.run(
        "volume",
        "create",
        &["vm", "--size", "64M", "--chunk-size", "64K"],
    )
    .ok();
    let served = pool.serve();
    let uri = served.uri("vm");
    let ran = tool(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 1 0 128k",
            "-c",
            "write -P 2 61k 7k",
            "-c",
            "flush",
            "-c",
            "read -P 1 0 61k",
            "-c",
            "read -P 2 61k 7k",
            "-c",
            "read -P 1 68k 60k",
            &uri,
        ],
    );
    assert!(!ran.stdout.contains("failed"), "{ran:?}");
    ran.ok();
    served.stop();
}
