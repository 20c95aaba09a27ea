//! `tessera mount` and `tessera serve --mount`: how they start, what they leave
//! after a stop and after a kill, and what they refuse.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{
    Served, TestPool,
    mount::{Mounted, can_mount, is_mounted, mountpoint, write_file},
    tessera, text, tool,
};
use rustix::{
    fs::SeekFrom,
    mount::{MountFlags, UnmountFlags},
    process::{Pid, Signal, kill_process},
};

/// A mount that a test made itself.
struct Below(PathBuf);

impl Drop for Below {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn in_the_background_it_goes_on_until_it_is_told_to_stop() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "8M");
    let path = mountpoint(&pool);
    let (dir, point) = (text(&pool.dir), text(&path));
    let said = tessera(["mount", &dir, &point, "--daemon"]).ok();
    assert_eq!(said, format!("mounted on {point}\n"));
    let pid = pool.status()["server"]["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let file = write_file(&path.join("volumes").join("v"));
    file.write_all_at(b"still there", 4096).unwrap();
    // A session of its own: what ends the terminal does not end it.
    assert_eq!(rustix::process::getsid(Some(pid)), Ok(pid));
    drop(file);
    // What is wrong is said by the one in the foreground.
    let sentence = tessera(["mount", &dir, &point, "--daemon"]).refused();
    assert!(sentence.contains("is being served"), "{sentence}");
    kill_process(pid, Signal::TERM).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while is_mounted(&path) || !pool.status()["server"].is_null() {
        assert!(Instant::now() < deadline, "it does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_served_pool_is_mounted_too_and_both_see_the_same_bytes() {
    if !can_mount(&["qemu-io", "qemu-img"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "64M");
    let mounted = Mounted::serve(&pool);
    let (file, uri) = (write_file(&mounted.file("v")), mounted.uri("v"));
    let nbd = |command: &str| {
        let ran = tool("qemu-io", &["-f", "raw", "-t", "none", "-c", command, &uri]);
        assert!(!ran.stdout.contains("failed"), "{ran:?}");
        ran.ok()
    };
    let mut bytes = vec![0; 1 << 20];
    for (index, pattern) in [0x11u8, 0x22, 0x33, 0x44].into_iter().enumerate() {
        let at = (index as u64) * (5 << 20) + 512 * index as u64;
        nbd(&format!("write -P {pattern} {at} 1M"));
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes.iter().all(|byte| *byte == pattern), "at {at}");
        bytes.fill(!pattern);
        file.write_all_at(&bytes, at + 512).unwrap();
        nbd(&format!("read -P {} {} 1M", !pattern, at + 512));
        nbd(&format!("read -P {pattern} {at} 512"));
    }
    nbd("discard 5M 1M");
    file.read_exact_at(&mut bytes, 5 << 20).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(5 << 20));
    assert_eq!(hole, Ok(5 << 20));
    // A copy over one is what the other has.
    let copy = text(&pool.root.path().join("copy"));
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &uri, &copy],
    )
    .ok();
    let path = text(&mounted.file("v"));
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &path, &copy],
    )
    .ok();
    // A volume that an NBD client uses is not deleted under it.
    file.set_len(65 << 20).unwrap();
    let size = tool("qemu-img", &["info", "--output=json", &uri]).json();
    assert_eq!(size["virtual-size"], 65 << 20);
    drop(file);
    let server = &pool.status()["server"];
    assert_eq!(server["endpoints"].as_array().unwrap().len(), 2);
    mounted.stop(Signal::TERM);

    // Killed, it leaves a dead mount that the next one replaces.
    Mounted::serve(&pool).kill();
    let mounted = Mounted::serve(&pool);
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &copy, &path],
    );
    mounted.stop(Signal::INT);
    let (dir, nowhere) = (text(&pool.dir), text(&pool.root.path().join("nowhere")));
    let sentence = tessera(["serve", &dir, "--mount", &nowhere]).refused();
    assert!(sentence.contains("does not exist"), "{sentence}");
    let sentence = tessera(["serve", &dir, "--mount", &dir]).refused();
    assert!(sentence.contains("would hide"), "{sentence}");
}

#[test]
fn what_was_synced_survives_a_kill_and_the_dead_mount_is_replaced() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "32M");
    let mut want = vec![0u8; 4 << 20];
    for (index, byte) in want.iter_mut().enumerate() {
        *byte = u8::try_from(index * 31 % 251).unwrap();
    }
    for round in 0..3u64 {
        let mounted = Mounted::start(&pool, &[]);
        let at = round * (8 << 20);
        let file = write_file(&mounted.file("v"));
        file.write_all_at(&want, at).unwrap();
        file.sync_all().unwrap();
        // One write of its own that asks to be durable when it returns.
        let synchronous = rustix::fs::open(
            mounted.file("v"),
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::DSYNC,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
        let tail = at + (6 << 20);
        assert_eq!(rustix::io::pwrite(&synchronous, b"durable", tail), Ok(7));
        mounted.kill();
        drop((file, synchronous));

        let mounted = Mounted::start(&pool, &[]);
        let file = File::open(mounted.file("v")).unwrap();
        let mut got = vec![0; want.len()];
        for round in 0..=round {
            file.read_exact_at(&mut got, round * (8 << 20)).unwrap();
            assert!(got == want, "round {round} was lost");
        }
        let mut got = [0; 7];
        file.read_exact_at(&mut got, tail).unwrap();
        assert_eq!(&got, b"durable");
        drop(file);
        mounted.stop(Signal::TERM);
    }
}

#[test]
fn who_does_not_leave_is_cut_off_and_keeps_what_was_answered() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "8M");
    let mounted = Mounted::start(&pool, &[]);
    let path = mounted.file("v");
    let file = write_file(&path);
    file.write_all_at(b"answered, never synced", 4096).unwrap();
    mounted.stop(Signal::TERM);
    let mut buffer = [0; 22];
    assert!(file.read_exact_at(&mut buffer, 4096).is_err());
    assert!(file.write_all_at(b"x", 0).is_err());
    drop(file);
    // Closed clean: a reader that may not write finds it all the same.
    let mounted = Mounted::start(&pool, &["--read-only"]);
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut buffer, 4096)
        .unwrap();
    assert_eq!(&buffer, b"answered, never synced");
    mounted.stop(Signal::TERM);
}

#[test]
fn unmounting_from_outside_ends_the_process_well() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "8M");
    // Something else is mounted below, and has to stay.
    let below = mountpoint(&pool);
    if rustix::mount::mount("below", &below, "tmpfs", MountFlags::empty(), None).is_err() {
        eprintln!("skipped: only root can mount something below");
        return;
    }
    let below = Below(below);
    let mut mounted = Mounted::start(&pool, &[]);
    tool("fusermount3", &["-u", &text(&mounted.path)]).ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = mounted.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the process goes on unmounted");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    assert!(pool.status()["server"].is_null());
    assert!(is_mounted(&below.0), "what was below was unmounted too");
    mounted.path = PathBuf::new();
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_sentence() {
    let pool = TestPool::raid5();
    let dir = text(&pool.dir);
    let refused = |mountpoint: &Path, says: &str| {
        let sentence = tessera(["mount", &dir, &text(mountpoint)]).refused();
        assert!(sentence.contains(says), "{sentence}");
    };
    refused(&pool.root.path().join("nothing"), "does not exist");
    refused(&pool.dir.join("pool.toml"), "is not a directory");
    // The pool would lose sight of its own files.
    refused(&pool.dir, "would hide");
    refused(pool.root.path(), "would hide");
    let free = mountpoint(&pool);
    let nowhere = text(&pool.root.path().join("no-pool"));
    let sentence = tessera(["mount", &nowhere, &text(&free)]).refused();
    assert!(sentence.contains("no pool"), "{sentence}");

    let served = Served::start(&pool.dir, &[]);
    let how = format!("at {} by process {}", served.uris[0], served.pid());
    refused(&free, &how);
    served.stop();
}

#[test]
fn a_mounted_pool_is_said_to_be_mounted() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    let other = TestPool::raid5();
    let mounted = Mounted::start(&pool, &[]);
    let dir = text(&pool.dir);
    let elsewhere = other.root.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let sentence = tessera(["mount", &dir, &text(&elsewhere)]).refused();
    assert!(sentence.contains(&text(&mounted.path)), "{sentence}");
    let sentence = tessera(["serve", &dir]).refused();
    assert!(sentence.contains("is being served"), "{sentence}");
    // And its mount point is taken.
    let sentence = tessera(["mount", &text(&other.dir), &text(&mounted.path)]).refused();
    assert!(sentence.contains("is busy"), "{sentence}");
    let server = &pool.status()["server"];
    assert_eq!(server["pid"], mounted.child.id());
    assert_eq!(
        server["endpoints"],
        serde_json::json!([text(&mounted.path)])
    );
    let mut text = String::new();
    let listing = Command::new("mount").output().unwrap().stdout;
    listing.as_slice().read_to_string(&mut text).unwrap();
    assert!(text.contains("tessera on "), "{text}");
    mounted.stop(Signal::TERM);
}
