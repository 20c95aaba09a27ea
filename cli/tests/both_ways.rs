//! Every command that only looks says the same of a served pool as of a stopped
//! one, and every command is known to do its work both ways or to say why not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;

use common::{TestPool, random_file, requires, scratch, tessera, text, tool};
use serde_json::Value;

/// How a command finds its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It looks, served or stopped: with these arguments after the directory.
    Looks(&'static [&'static str]),
    /// It changes something, served or stopped (see the tests of its noun).
    Changes,
    /// It needs the members for itself, and refuses while they are served.
    Alone,
    /// It is about no pool that exists.
    NoPool,
}

use Way::{Alone, Changes, Looks, NoPool};

const COMMANDS: &[(&str, Way)] = &[
    ("pool create", NoPool),
    ("pool status", Looks(&["--json"])),
    ("pool import", NoPool),
    ("pool check", Looks(&["--data", "--json"])),
    ("pool repair", Alone),
    ("pool set", Looks(&["--json"])),
    ("volume create", Changes),
    ("volume list", Looks(&["--json"])),
    ("volume show", Looks(&["one", "--json"])),
    ("volume resize", Changes),
    ("volume rename", Changes),
    ("volume set", Changes),
    ("volume delete", Changes),
    ("snapshot create", Changes),
    ("snapshot list", Looks(&["one", "--json"])),
    ("snapshot delete", Changes),
    ("snapshot rollback", Changes),
    ("snapshot diff", Looks(&["one@s", "--json"])),
    ("clone", Changes),
    ("member list", Looks(&["--json"])),
    ("member fail", Changes),
    ("member remove", Changes),
    ("member replace", Changes),
    ("member re-add", Changes),
    ("member add-spare", Changes),
    ("scrub start", Changes),
    ("scrub status", Looks(&["--json"])),
    ("scrub cancel", Changes),
    ("gc start", Changes),
    ("gc status", Looks(&["--json"])),
    ("gc cancel", Changes),
    ("dedup start", Changes),
    ("dedup status", Looks(&["--json"])),
    ("dedup cancel", Changes),
    ("index status", Looks(&["--json"])),
    ("index drop", Changes),
    ("index rebuild", Changes),
    ("job list", Looks(&["--json"])),
    ("job follow", Looks(&["1", "--json"])),
    ("job pause", Changes),
    ("job resume", Changes),
    ("job cancel", Changes),
    ("serve", Alone),
    ("mount", Alone),
    ("attach", NoPool),
    ("detach", NoPool),
    ("config check", NoPool),
    ("config example", NoPool),
    ("estimate", NoPool),
    ("completions", NoPool),
    ("man", NoPool),
];

/// The commands that `--help` lists under `words`.
fn listed(words: &[&str]) -> Vec<String> {
    let help = tessera(words.iter().copied().chain(["--help"])).ok();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    commands
        .take_while(|line| line.starts_with(' '))
        // What is indented further goes on with the line before.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_is_known_here() {
    let mut found = BTreeSet::new();
    for name in listed(&[]) {
        let below = listed(&[&name]);
        if below.is_empty() {
            found.insert(name);
        } else {
            found.extend(below.iter().map(|verb| format!("{name} {verb}")));
        }
    }
    let known: BTreeSet<String> = COMMANDS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(found, known);
}

/// Without what is of the moment: who serves, and what opening a pool for
/// writing has advanced.
fn lasting(command: &str, mut answer: Value) -> Value {
    match command {
        "pool status" => {
            let status = answer.as_object_mut().unwrap();
            // Who only looks opens no index; whoever serves takes a segment
            // for its checkpoints.
            let of_the_moment = ["served", "server", "sequence", "index_entries", "index"];
            for key in of_the_moment.iter().chain(&[
                "free_bytes",
                "reclaimable_bytes",
                "counted_unix_ms",
                "segments",
            ]) {
                assert!(status.remove(*key).is_some(), "{key}");
            }
        }
        // Who only looks opens no index.
        "index status" => {
            let limit = answer["disk_limit_bytes"].take();
            answer = serde_json::json!({ "disk_limit_bytes": limit });
        }
        // Serving began an epoch, and the newest checkpoint has other pages.
        "pool check" => {
            for key in [
                "journal_batches_checked",
                "pages_checked",
                "pointers_checked",
            ] {
                let count = answer.as_object_mut().unwrap().remove(key).unwrap();
                assert!(count.is_u64(), "{key}");
            }
        }
        _ => {}
    }
    answer
}

#[test]
fn what_only_looks_says_the_same_of_a_served_pool() {
    let pool = TestPool::raid5();
    pool.volume("one", "64M");
    pool.volume("two", "1G");
    if requires(&["nbdcopy"]) {
        let files = scratch();
        let image = files.path().join("image");
        random_file(&image, 8 << 20, 4);
        let served = pool.serve();
        tool("nbdcopy", &["--flush", &text(&image), &served.uri("one")]).ok();
        served.stop();
    }
    pool.run("snapshot", "create", &["one@s"]).ok();
    pool.run("scrub", "start", &["--json"]).ok();
    let looks = || -> Vec<(&str, Option<i32>, Value)> {
        let looking = COMMANDS.iter().filter_map(|(name, way)| match way {
            Looks(arguments) => Some((*name, *arguments)),
            _ => None,
        });
        looking
            .map(|(name, arguments)| {
                let (noun, verb) = name.split_once(' ').unwrap();
                let ran = pool.run(noun, verb, arguments);
                let code = ran.code;
                (name, code, lasting(name, ran.json()))
            })
            .collect()
    };
    let stopped = looks();
    assert!(stopped == looks(), "looking has changed something");
    let served = pool.serve();
    let on_served = looks();
    served.stop();
    for (stopped, served) in stopped.iter().zip(&on_served) {
        assert_eq!(stopped, served);
        assert_eq!(stopped.1, Some(0), "{stopped:?}");
    }
}

#[test]
fn what_needs_the_members_alone_is_refused_in_a_sentence() {
    let pool = TestPool::raid5();
    let served = pool.serve();
    let dir = text(&pool.dir);
    let point = scratch();
    let mountpoint = text(point.path());
    let cases: [&[&str]; 4] = [
        &["pool", "repair", &dir, "--dry-run"],
        &["pool", "repair", &dir, "--yes"],
        &["serve", &dir, "--listen", "127.0.0.1:0"],
        &["mount", &dir, &mountpoint],
    ];
    for arguments in cases {
        let sentence = tessera(arguments).refused();
        assert!(sentence.contains("served"), "{arguments:?}: {sentence}");
    }
    served.stop();
}

#[test]
fn a_check_of_a_served_pool_names_damage_and_exits_with_2() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("one", "64M");
    let files = scratch();
    let image = files.path().join("image");
    random_file(&image, 4 << 20, 6);
    let served = pool.serve();
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("one")]).ok();
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
    let wanted = std::fs::read(&image).unwrap()[64 << 10..68 << 10].to_vec();
    let (member, at) = pool
        .members()
        .into_iter()
        .find_map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            let at = bytes.chunks(4096).position(|block| block == wanted)?;
            Some((path, at as u64 * 4096))
        })
        .unwrap();
    common::scribble(&member, at, 100);
    let ran = pool.run("pool", "check", &["--data"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stdout.contains("Chunk 16 of volume one"), "{ran:?}");
    let quick = pool.run("pool", "check", &["--json"]);
    assert_eq!(quick.code, Some(0), "{quick:?}");
    served.stop();
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(2));
}
