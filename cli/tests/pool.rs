//! `tessera pool ...` as a user meets it: right and wrong command lines on
//! real files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{fs, os::unix::fs::symlink, path::Path};

use common::{
    MEMBER_BYTES, Served, TestPool, contents, random_file, requires, run_on, scratch, scribble,
    tessera, text, tool,
};

#[test]
fn every_level_makes_a_pool_that_shows_its_state() {
    for (level, files) in [
        ("single", 1),
        ("raid0", 2),
        ("raid1", 2),
        ("raid5", 3),
        ("raid6", 4),
        ("raid10", 4),
    ] {
        let pool = TestPool::create(level, files);
        let status = pool.status();
        assert_eq!(status["level"], level);
        assert_eq!(status["state"], "online", "{status:#}");
        assert_eq!(status["served"], false);
        assert_eq!(status["server"], serde_json::Value::Null);
        let members = status["members"].as_array().expect("members is a list");
        assert_eq!(members.len(), files);
        for (index, member) in members.iter().enumerate() {
            assert_eq!(member["index"], index);
            assert_eq!(member["state"], "online");
            let path = member["path"].as_str().expect("a path");
            assert!(Path::new(path).is_absolute(), "{path}");
            assert!(path.ends_with(&format!("/disk{index}.img")), "{path}");
            assert_eq!(fs::metadata(path).unwrap().len(), MEMBER_BYTES);
        }
        for key in [
            "capacity_bytes",
            "free_bytes",
            "logical_bytes",
            "unique_bytes",
            "stored_bytes",
        ] {
            assert!(status[key].is_u64(), "{key}: {status:#}");
        }
        for key in ["dedup_ratio", "compression_ratio"] {
            assert_eq!(status[key].as_f64(), Some(1.0), "{key}: {status:#}");
        }
        assert!(["io_uring", "threads"].contains(&status["io_engine"].as_str().unwrap()));
        assert!(!status["uuid"].as_str().unwrap().is_empty());
        let (free, capacity) = (
            status["free_bytes"].as_u64().unwrap(),
            status["capacity_bytes"].as_u64().unwrap(),
        );
        assert!(0 < free && free <= capacity && capacity < files as u64 * MEMBER_BYTES);
        let shown = pool.run("pool", "status", &[]).ok();
        assert!(
            shown.contains("online") && shown.contains("disk0.img"),
            "{shown}"
        );
    }
}

#[test]
fn the_device_implementation_can_be_chosen() {
    let pool = TestPool::raid5();
    let status = pool
        .run("pool", "status", &["--json", "--io", "threads"])
        .json();
    assert_eq!(status["io_engine"], "threads");
}

#[test]
fn members_can_be_files_that_exist() {
    let root = scratch();
    let paths: Vec<String> = (0..3)
        .map(|i| {
            let path = root.path().join(format!("member{i}"));
            fs::File::create(&path)
                .unwrap()
                .set_len(MEMBER_BYTES)
                .unwrap();
            text(&path)
        })
        .collect();
    let dir = root.path().join("pool");
    let made = run_on(
        &dir,
        "pool",
        "create",
        &[
            "--level",
            "raid5",
            "--stripe-unit",
            "16K",
            &paths[2],
            &paths[0],
            &paths[1],
            "--json",
        ],
    )
    .json();
    assert_eq!(made["stripe_unit_bytes"], 16384);
    let order: Vec<_> = made["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["path"])
        .collect();
    assert_eq!(order, [&paths[2], &paths[0], &paths[1]]);
}

#[test]
fn a_wrong_create_says_why_and_makes_nothing() {
    let root = scratch();
    let at = |name: &str| text(&root.path().join(name));
    for name in ["a", "b", "c", "d"] {
        fs::File::create(at(name))
            .unwrap()
            .set_len(MEMBER_BYTES)
            .unwrap();
    }
    fs::File::create(at("tiny")).unwrap().set_len(8192).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink(at("a"), at("link")).unwrap();
    fs::hard_link(at("a"), at("hard")).unwrap();
    let before = contents(root.path());
    let dir = at("pool");
    let (a, b, c, d) = (&at("a"), &at("b"), &at("c"), &at("d"));
    let cases: &[&[&str]] = &[
        &["--level", "raid5", a, b],
        &["--level", "raid6", a, b, c],
        &["--level", "raid10", a, b, c],
        &["--level", "raid1", a],
        &["--level", "single", a, b],
        &["--level", "raid4", a, b, c],
        &["--level", "raid5"],
        &[a, b, c],
        &["--level", "raid5", a, b, &at("absent")],
        &["--level", "raid5", a, b, a],
        &["--level", "raid5", a, b, &at("link")],
        &["--level", "raid5", a, b, &at("hard")],
        &["--level", "raid5", a, b, &at("folder")],
        &["--level", "raid5", a, b, "/dev/null"],
        &["--level", "raid5", a, b, &at("tiny")],
        &["--level", "raid5", "--stripe-unit", "0", a, b, c],
        &["--level", "raid5", "--stripe-unit", "2K", a, b, c],
        &["--level", "raid5", "--stripe-unit", "48K", a, b, c],
        &["--level", "raid5", "--stripe-unit", "2M", a, b, c],
        &["--level", "raid5", "--stripe-unit", "8G", a, b, c],
        &["--level", "raid5", "--files", "2", "--file-size", "256M"],
        &["--level", "raid5", "--files", "0", "--file-size", "256M"],
        &["--level", "raid5", "--files", "65", "--file-size", "256M"],
        &[
            "--level",
            "raid5",
            "--files",
            "4294967295",
            "--file-size",
            "256M",
        ],
        &["--level", "raid5", "--files", "4", "--file-size", "0"],
        &["--level", "raid5", "--files", "4", "--file-size", "64K"],
        &["--level", "raid5", "--files", "4", "--file-size", "-1"],
        &["--level", "raid5", "--files", "4"],
        &["--level", "raid5", "--file-size", "1G", a, b, c],
        &[
            "--level",
            "raid5",
            "--files",
            "4",
            "--file-size",
            "1G",
            a,
            b,
            c,
            d,
        ],
    ];
    for case in cases {
        run_on(Path::new(&dir), "pool", "create", case).refused();
        assert_eq!(contents(root.path()), before, "{case:?}");
        assert!(!Path::new(&dir).exists(), "{case:?}");
    }
    // Where the directory should be is a file; where its parent should be, nothing.
    for dir in [a, &format!("{a}/pool")] {
        run_on(
            Path::new(dir),
            "pool",
            "create",
            &["--level", "raid1", c, d],
        )
        .refused();
        assert_eq!(contents(root.path()), before, "{dir}");
    }
}

#[test]
fn a_dry_run_makes_nothing_and_says_what_it_would() {
    let root = scratch();
    let dir = root.path().join("pool");
    let arguments = [
        "--level",
        "raid5",
        "--files",
        "3",
        "--file-size",
        "1G",
        "--dry-run",
    ];
    let plan = run_on(&dir, "pool", "create", &arguments).ok();
    assert!(
        plan.contains("disk2.img") && plan.contains("1G") && plan.contains("raid5"),
        "{plan}"
    );
    assert!(!dir.exists());
    let json = run_on(
        &dir,
        "pool",
        "create",
        &[&arguments[..], &["--json"]].concat(),
    )
    .json();
    assert_eq!(
        (&json["level"], &json["dry_run"]),
        (&"raid5".into(), &true.into())
    );
    assert_eq!(json["members"][2]["create_bytes"], 1 << 30);
    assert!(!dir.exists());
}

#[test]
fn a_pool_is_not_made_over_another_one() {
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let before = contents(pool.root.path());
    let new_files = ["--level", "raid5", "--files", "4", "--file-size", "256M"];
    pool.run("pool", "create", &new_files).refused();
    pool.run("pool", "create", &[&new_files[..], &["--dry-run"]].concat())
        .refused();
    // Members of a pool are not taken for another one, unless told to.
    let members: Vec<String> = pool.members().iter().map(|path| text(path)).collect();
    let other = pool.root.path().join("other");
    let mut arguments = vec!["--level", "raid5"];
    arguments.extend(members.iter().map(String::as_str));
    run_on(&other, "pool", "create", &arguments).refused();
    assert!(!other.exists());
    assert_eq!(contents(pool.root.path()), before);
    arguments.push("--force");
    run_on(&other, "pool", "create", &arguments).ok();
    run_on(&other, "volume", "show", &["vm"]).refused();
}

#[test]
fn members_alone_are_a_pool_again_in_any_order() {
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let uuid = pool.status()["uuid"].clone();
    let (moved, members) = pool.copy_members();
    let names: Vec<String> = members.iter().map(|path| text(path)).collect();
    let dir = moved.path().join("elsewhere");
    let arguments = [&names[2], &names[0], &names[3], &names[1], "--json"];
    let imported = run_on(&dir, "pool", "import", &arguments.map(|a| a as &str)).json();
    assert_eq!(imported["uuid"], uuid);
    assert_eq!(imported["state"], "online");
    let paths: Vec<&str> = imported["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, names);
    assert_eq!(
        run_on(&dir, "volume", "show", &["vm", "--json"]).json()["size_bytes"],
        1u64 << 30
    );
    run_on(&dir, "pool", "check", &["--data"]).ok();
}

#[test]
fn import_with_one_member_less_is_degraded_and_with_two_less_refused() {
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let (moved, members) = pool.copy_members();
    let names: Vec<String> = members.iter().map(|path| text(path)).collect();
    let before = contents(moved.path());
    let dir = moved.path().join("elsewhere");
    run_on(&dir, "pool", "import", &[&names[0], &names[1]]).refused();
    assert_eq!(contents(moved.path()), before);
    let imported = run_on(
        &dir,
        "pool",
        "import",
        &[&names[3], &names[0], &names[1], "--json"],
    )
    .json();
    assert_eq!(imported["state"], "degraded");
    assert_eq!(imported["members"][2]["state"], "missing");
    run_on(&dir, "volume", "show", &["vm"]).ok();
}

#[test]
fn a_wrong_import_says_why_and_changes_nothing() {
    let (one, two) = (TestPool::raid5(), TestPool::raid5());
    let (a, b): (Vec<String>, Vec<String>) = (
        one.members().iter().map(|path| text(path)).collect(),
        two.members().iter().map(|path| text(path)).collect(),
    );
    let root = scratch();
    let at = |name: &str| text(&root.path().join(name));
    random_file(Path::new(&at("noise")), MEMBER_BYTES, 7);
    fs::File::create(at("empty")).unwrap();
    let before = (
        contents(one.root.path()),
        contents(two.root.path()),
        contents(root.path()),
    );
    let dir = root.path().join("pool");
    let cases: &[&[&str]] = &[
        &[&a[0], &a[1], &b[2], &b[3]],
        &[&a[0], &a[1], &a[1], &a[2]],
        &[&a[0], &a[1], &a[2], &at("noise")],
        &[&a[0], &a[1], &a[2], &at("empty")],
        &[&a[0], &a[1], &a[2], &at("absent")],
        &[&a[0], &a[1], &a[2], root.path().to_str().unwrap()],
        &[&at("noise")],
        &[&a[0]],
    ];
    for case in cases {
        run_on(&dir, "pool", "import", case).refused();
        let after = (
            contents(one.root.path()),
            contents(two.root.path()),
            contents(root.path()),
        );
        assert_eq!(after, before, "{case:?}");
    }
}

#[test]
fn a_healthy_pool_passes_its_check_which_changes_nothing() {
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let before = contents(&pool.dir);
    let report = pool.run("pool", "check", &["--data", "--json"]).json();
    for key in [
        "superblocks_checked",
        "journal_batches_checked",
        "pages_checked",
        "pointers_checked",
        "chunks_checked",
        "bytes_checked",
    ] {
        assert!(report[key].is_u64(), "{key}: {report:#}");
    }
    assert!(report["superblocks_checked"].as_u64() > Some(0));
    assert_eq!(report["problems"], serde_json::json!([]));
    assert!(pool.run("pool", "check", &[]).ok().contains("no problems"));
    assert_eq!(contents(&pool.dir), before);
}

#[test]
fn a_check_that_finds_rot_ends_with_status_2_and_changes_nothing() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let image = pool.root.path().join("image");
    random_file(&image, 32 << 20, 3);
    let served = pool.serve();
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("vm")]).ok();
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
    // Beyond the journal and well within what 32 MiB of data occupy: rot here
    // hits data on this member whatever the exact layout is.
    let member = &pool.members()[1];
    let data = data_range(member);
    scribble(member, data.0 + (data.1 - data.0) / 2, 1 << 20);
    let before = contents(&pool.dir);
    let ran = pool.run("pool", "check", &["--data", "--json"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(!report["problems"].as_array().unwrap().is_empty());
    let ran = pool.run("pool", "check", &["--data"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stdout.contains("PROBLEM"), "{ran:?}");
    assert_eq!(contents(&pool.dir), before);
}

/// The longest run of allocated bytes in the second half of the member's
/// allocated runs: the journal and the superblocks lie before it.
fn data_range(member: &Path) -> (u64, u64) {
    let file = fs::File::open(member).unwrap();
    let mut runs = Vec::new();
    let mut offset = 0;
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        runs.push((start, end));
        offset = end;
    }
    // The end copies of the superblock come last and are small.
    let end = runs
        .iter()
        .rev()
        .find(|(start, end)| end - start > 1 << 20)
        .expect("data")
        .1;
    (end - (4 << 20), end)
}

#[test]
fn what_needs_a_stopped_pool_is_refused_while_it_is_served() {
    let pool = TestPool::raid5();
    let members: Vec<String> = pool.members().iter().map(|path| text(path)).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let served = pool.serve();
    assert!(
        pool.run("pool", "import", &members)
            .refused()
            .contains("served")
    );
    let new_files = [
        "--level",
        "raid5",
        "--files",
        "4",
        "--file-size",
        "256M",
        "--force",
    ];
    pool.run("pool", "create", &new_files).refused();
    assert!(
        tessera(["serve", &text(&pool.dir)])
            .refused()
            .contains("served")
    );
    // The members cannot be had behind the server's back either.
    let other = pool.root.path().join("other");
    run_on(&other, "pool", "import", &members).refused();
    assert!(!other.exists());
    assert_eq!(pool.status()["served"], true);
    served.stop();
    pool.run("pool", "check", &[]).ok();
}

#[test]
fn a_holder_that_does_not_answer_is_named_as_the_reason() {
    let pool = TestPool::raid5();
    let served = pool.serve();
    fs::remove_file(pool.dir.join("control.sock")).unwrap();
    for sentence in [
        pool.run("pool", "status", &[]).refused(),
        pool.run("volume", "create", &["vm", "--size", "1G"])
            .refused(),
    ] {
        assert!(sentence.contains("control.sock"), "{sentence}");
    }
    served.stop();
    assert_eq!(pool.status()["volumes"], 0);
}

#[test]
fn what_is_no_pool_is_named() {
    let root = scratch();
    fs::write(root.path().join("file"), "x").unwrap();
    fs::create_dir(root.path().join("empty")).unwrap();
    fs::create_dir(root.path().join("torn")).unwrap();
    fs::write(root.path().join("torn/pool.toml"), "uuid = [").unwrap();
    let before = contents(root.path());
    for name in ["absent", "file", "empty", "torn"] {
        let dir = root.path().join(name);
        for (noun, verb, rest) in [
            ("pool", "status", &[][..]),
            ("pool", "check", &[]),
            ("volume", "list", &[]),
            ("volume", "create", &["vm", "--size", "1G"]),
            ("volume", "delete", &["vm"]),
        ] {
            let sentence = run_on(&dir, noun, verb, rest).refused();
            assert!(sentence.contains(&text(&dir)), "{sentence}");
        }
        tessera(["serve", &text(&dir)]).refused();
        assert_eq!(contents(root.path()), before, "{name}");
    }
}

#[test]
fn a_pool_whose_members_are_all_gone_is_refused() {
    let pool = TestPool::raid5();
    for member in pool.members().iter().take(2) {
        fs::remove_file(member).unwrap();
    }
    let before = contents(&pool.dir);
    for ran in [
        pool.run("pool", "status", &[]),
        pool.run("volume", "list", &[]),
        tessera(["serve", &text(&pool.dir)]),
    ] {
        let sentence = ran.refused();
        assert!(
            sentence.contains("disk0.img") || sentence.contains("member"),
            "{sentence}"
        );
    }
    assert_eq!(contents(&pool.dir), before);
}

#[test]
fn looking_at_a_stopped_pool_changes_nothing() {
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    // Unclean, so that there is something to recover.
    let served = Served::start(&pool.dir, &[]);
    pool.volume("late", "1G");
    served.kill();
    for socket in ["control.sock", "nbd.sock"] {
        let _ = fs::remove_file(pool.dir.join(socket));
    }
    let before: Vec<_> = pool
        .members()
        .iter()
        .map(|path| fs::metadata(path).unwrap().modified().unwrap())
        .collect();
    pool.run("pool", "status", &[]).ok();
    let list = pool.run("volume", "list", &["--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list:#}");
    pool.run("volume", "show", &["late"]).ok();
    pool.run("volume", "delete", &["late", "--dry-run"]).ok();
    let after: Vec<_> = pool
        .members()
        .iter()
        .map(|path| fs::metadata(path).unwrap().modified().unwrap())
        .collect();
    assert_eq!(after, before);
}
