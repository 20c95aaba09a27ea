//! The fingerprint index is dropped and made anew under a real client.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{TestPool, random_file, requires, scratch, tool};

const SIZE: u64 = 48 << 20;

fn unique(pool: &TestPool) -> u64 {
    pool.status()["unique_bytes"].as_u64().unwrap()
}

fn state(pool: &TestPool) -> String {
    let index = pool.run("index", "status", &["--json"]).json();
    index["state"].as_str().unwrap().to_owned()
}

fn copy(file: &Path, uri: &str) {
    tool("nbdcopy", &[file.to_str().unwrap(), uri]).ok();
}

#[test]
fn a_dropped_index_stays_dropped_until_it_is_made_anew_and_clients_go_on() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let scratch = scratch();
    let file = scratch.path().join("file");
    random_file(&file, SIZE, 41);
    let pool = TestPool::raid5();
    for name in ["a", "b", "c", "d"] {
        pool.volume(name, "48M");
    }
    let served = pool.serve();
    copy(&file, &served.uri("a"));
    let once = unique(&pool);
    assert!(once > SIZE / 2, "{once}");
    assert_eq!(state(&pool), "ready");

    let dropped = pool.run("index", "drop", &["--json"]).json();
    assert_eq!(dropped["state"], "dropped", "{dropped:#}");
    assert_eq!(dropped["entries"], 0, "{dropped:#}");
    copy(&file, &served.uri("b"));
    assert_eq!(unique(&pool), 2 * once, "nothing is deduplicated");
    served.stop();

    // A setting of the pool, so that losing the directory changes nothing.
    assert!(!pool.dir.join("index/CURRENT").exists());
    let served = pool.serve();
    assert_eq!(state(&pool), "dropped");
    assert_eq!(pool.status()["index_state"], "dropped");
    let rebuilt = pool.run("index", "rebuild", &["--wait", "--json"]).json();
    assert_eq!(rebuilt["state"], "ready", "{rebuilt:#}");
    assert_eq!(rebuilt["progress"], 1.0, "{rebuilt:#}");
    copy(&file, &served.uri("c"));
    let stored = unique(&pool);
    assert!(stored < 2 * once + once / 50, "{stored}, {once} once");
    served.stop();

    // The same of a stopped pool.
    pool.run("index", "drop", &[]).ok();
    assert!(!pool.dir.join("index/CURRENT").exists());
    let rebuilt = pool.run("index", "rebuild", &["--json"]).json();
    assert_eq!(rebuilt["state"], "ready", "{rebuilt:#}");
    let served = pool.serve();
    copy(&file, &served.uri("d"));
    let stored = unique(&pool);
    assert!(stored < 2 * once + once / 25, "{stored}, {once} once");
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn a_disk_limit_is_kept_by_a_sample_that_still_finds_a_second_copy() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let scratch = scratch();
    let file = scratch.path().join("file");
    // 21845 chunks that are not zero: a limit of 1 MiB is for 11650.
    random_file(&file, 128 << 20, 42);
    let pool = TestPool::raid5();
    for name in ["a", "b"] {
        pool.volume(name, "128M");
    }
    let refused = pool.run("pool", "set", &["--index-disk", "1000"]).refused();
    assert!(refused.contains("at least"), "{refused}");
    let settings = pool.run("pool", "set", &["--index-disk", "1M", "--json"]);
    assert_eq!(settings.json()["index_disk_bytes"], 1 << 20);
    let served = pool.serve();
    copy(&file, &served.uri("a"));
    let once = unique(&pool);
    served.stop();
    let served = pool.serve();
    let index = pool.run("index", "status", &["--json"]).json();
    let number = |key: &str| index[key].as_u64().unwrap();
    assert!(number("kept_one_in") >= 2, "{index:#}");
    assert!(number("disk_bytes") <= 1 << 20, "{index:#}");
    assert_eq!(number("disk_limit_bytes"), 1 << 20);
    copy(&file, &served.uri("b"));
    let stored = unique(&pool);
    assert!(stored < once * 11 / 10, "{stored}, {once} once");
    served.stop();
}
