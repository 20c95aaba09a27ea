//! `tessera mount`: volumes as files under real tools, and what is left after
//! a stop and after a kill.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{
    Served, TestPool,
    mount::{Mounted, can_mount, is_mounted, mountpoint, write_file},
    random_file, tessera, text, tool,
};
use rustix::{
    fs::{SeekFrom, XattrFlags},
    io::Errno,
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

fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> Errno {
    Errno::from_raw_os_error(done.unwrap_err().raw_os_error().unwrap())
}

fn names(path: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn attribute(path: &Path, key: &str) -> Result<String, Errno> {
    let mut value = [0; 64];
    let name = format!("user.tessera.{key}");
    let length = rustix::fs::getxattr(path, name, &mut value[..])?;
    Ok(String::from_utf8(value[..length].to_vec()).unwrap())
}

fn set_attribute(path: &Path, key: &str, value: &str) -> Result<(), Errno> {
    let name = format!("user.tessera.{key}");
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty())
}

#[test]
fn a_volume_is_a_file_with_the_end_of_a_disk() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("a", "64M");
    pool.volume("b", "1G");
    let mounted = Mounted::start(&pool, &["--foreground"]);
    assert_eq!(names(&mounted.path), ["volumes"]);
    assert_eq!(names(&mounted.path.join("volumes")), ["a", "b"]);
    let file = fs::metadata(mounted.file("b")).unwrap();
    assert_eq!((file.len(), file.mode()), (1 << 30, 0o100_600));
    assert_eq!(file.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(errno(fs::metadata(mounted.file("c"))), Errno::NOENT);
    let space = rustix::fs::statvfs(&mounted.path).unwrap();
    let status = pool.status();
    let bytes = |key: &str| status[key].as_u64().unwrap() / 4096 * 4096;
    assert_eq!(space.f_blocks * space.f_frsize, bytes("capacity_bytes"));
    assert_eq!(space.f_bavail * space.f_frsize, bytes("free_bytes"));
    assert_eq!(errno(fs::create_dir(mounted.path.join("d"))), Errno::PERM);
    assert_eq!(errno(File::create_new(mounted.path.join("f"))), Errno::PERM);

    let file = write_file(&mounted.file("a"));
    assert_eq!(file.write_at(b"123456", (64 << 20) - 4).unwrap(), 4);
    assert_eq!(errno(file.write_at(b"1", 64 << 20)), Errno::NOSPC);
    // Opening it to be overwritten empties it as little as a disk.
    drop(File::create(mounted.file("a")).unwrap());
    let mut end = [0; 4];
    file.read_exact_at(&mut end, (64 << 20) - 4).unwrap();
    assert_eq!(&end, b"1234");
    assert_eq!(file.metadata().unwrap().len(), 64 << 20);
    drop(file);

    // Management goes on through the control socket, and is seen at once.
    pool.volume("c", "8M");
    assert_eq!(fs::metadata(mounted.file("c")).unwrap().len(), 8 << 20);
    pool.run("volume", "resize", &["c", "--size", "9M"]).ok();
    assert_eq!(fs::metadata(mounted.file("c")).unwrap().len(), 9 << 20);
    pool.run("volume", "rename", &["c", "d"]).ok();
    assert_eq!(errno(fs::metadata(mounted.file("c"))), Errno::NOENT);
    pool.run("volume", "delete", &["d"]).ok();
    assert_eq!(names(&mounted.path.join("volumes")), ["a", "b"]);
    mounted.stop(Signal::TERM);
}

#[test]
fn what_is_done_to_a_file_is_done_to_its_volume() {
    if !can_mount(&["cp", "cmp"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("kept", "8M");
    let mounted = Mounted::start(&pool, &[]);
    let file = |name: &str| mounted.file(name);
    let size = |name: &str| {
        let shown = pool.run("volume", "show", &[name, "--json"]).json();
        shown["size_bytes"].as_u64().unwrap()
    };

    // Created, written as it grows, and as long as what was written.
    let image = pool.root.path().join("image");
    random_file(&image, 12_345_678, 5);
    tool(
        "cp",
        &["--sparse=never", &text(&image), &text(&file("new"))],
    )
    .ok();
    assert_eq!(size("new"), 12_345_678);
    tool("cmp", &[&text(&image), &text(&file("new"))]).ok();
    // From then on its end is fixed.
    let new = write_file(&file("new"));
    assert_eq!(errno(new.write_at(b"x", 12_345_678)), Errno::NOSPC);
    drop(new);
    // A log, opened anew for every line: created empty, then appended to.
    drop(File::create_new(file("log")).unwrap());
    let mut log = OpenOptions::new().append(true).open(file("log")).unwrap();
    for line in ["one\n", "two\n", "three\n"] {
        log.write_all(line.as_bytes()).unwrap();
    }
    drop(log);
    assert_eq!(
        fs::read_to_string(file("log")).unwrap(),
        "one\ntwo\nthree\n"
    );
    assert_eq!(size("log"), 14);
    fs::remove_file(file("log")).unwrap();
    // Created by its size alone, as qemu-img and truncate do.
    let sized = File::create_new(file("sized")).unwrap();
    assert_eq!(sized.metadata().unwrap().len(), 0);
    sized.set_len(1 << 40).unwrap();
    assert_eq!(size("sized"), 1 << 40);
    drop(sized);

    // Longer always, shorter only where it is allowed.
    let kept = write_file(&file("kept"));
    kept.write_all_at(&[7; 8192], 0).unwrap();
    kept.set_len(9 << 20).unwrap();
    assert_eq!(size("kept"), 9 << 20);
    assert_eq!(errno(kept.set_len(4096)), Errno::PERM);
    assert_eq!(size("kept"), 9 << 20);
    set_attribute(&file("kept"), "shrink", "yes").unwrap();
    kept.set_len(4100).unwrap();
    assert_eq!(size("kept"), 4100);
    kept.set_len(8192).unwrap();
    let mut bytes = [1; 8192];
    kept.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!((bytes[4099], bytes[4100], bytes[8191]), (7, 0, 0));
    drop(kept);

    // Names.
    fs::rename(file("sized"), file("renamed")).unwrap();
    assert_eq!(size("renamed"), 1 << 40);
    assert_eq!(errno(fs::rename(file("new"), file("kept"))), Errno::EXIST);
    assert_eq!(errno(File::create_new(file("a b"))), Errno::INVAL);
    assert_eq!(
        errno(fs::rename(file("new"), mounted.path.join("new"))),
        Errno::PERM
    );
    let reader = File::open(file("renamed")).unwrap();
    assert_eq!(errno(fs::remove_file(file("renamed"))), Errno::BUSY);
    drop(reader);
    fs::remove_file(file("renamed")).unwrap();
    assert_eq!(names(&mounted.path.join("volumes")), ["kept", "new"]);
    mounted.stop(Signal::TERM);
    let listed = pool.run("volume", "list", &["--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}

#[test]
fn extended_attributes_tell_of_volumes_and_of_those_to_come() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "8M");
    let mounted = Mounted::start(&pool, &[]);
    let (file, volumes) = (mounted.file("v"), mounted.path.join("volumes"));
    write_file(&file).write_all_at(&[7; 1 << 20], 0).unwrap();
    // 256 equal chunks.
    assert_eq!(attribute(&file, "ratio").as_deref(), Ok("256.00"));
    assert_eq!(attribute(&file, "mapped-bytes").as_deref(), Ok("1048576"));
    assert_eq!(attribute(&file, "dedup").as_deref(), Ok("inline"));
    assert_eq!(attribute(&file, "chunk-size").as_deref(), Ok("4096"));
    assert_eq!(attribute(&file, "colour"), Err(Errno::NODATA));
    assert_eq!(set_attribute(&file, "chunk-size", "8192"), Err(Errno::PERM));
    assert_eq!(set_attribute(&file, "shrink", "maybe"), Err(Errno::INVAL));
    assert_eq!(set_attribute(&file, "colour", "red"), Err(Errno::OPNOTSUPP));
    let mut list = vec![0; 1024];
    let length = rustix::fs::listxattr(&file, &mut list[..]).unwrap();
    let list = String::from_utf8(list[..length].to_vec()).unwrap();
    for name in list.trim_end_matches('\0').split('\0') {
        let key = name.strip_prefix("user.tessera.").unwrap();
        assert!(attribute(&file, key).is_ok(), "{key}");
    }

    for (key, value) in [
        ("chunk-size", "65536"),
        ("dedup", "off"),
        ("compression", "none"),
    ] {
        set_attribute(&volumes, key, value).unwrap();
    }
    drop(File::create_new(mounted.file("new")).unwrap());
    let shown = pool.run("volume", "show", &["new", "--json"]).json();
    assert_eq!(shown["chunk_bytes"], 65536);
    assert_eq!(
        (&shown["dedup"], &shown["compression"]),
        (&"off".into(), &"none".into())
    );
    assert_eq!(
        attribute(&mounted.file("new"), "dedup").as_deref(),
        Ok("off")
    );
    mounted.stop(Signal::TERM);
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
fn a_file_system_on_a_file_is_sound_and_comes_back() {
    if !can_mount(&["mkfs.ext4", "e2fsck", "debugfs", "dd", "cmp"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("fs", "128M");
    pool.volume("raw", "48M");
    let image = pool.root.path().join("image");
    random_file(&image, 48 << 20, 11);
    let mounted = Mounted::start(&pool, &[]);
    let volume = text(&mounted.file("fs"));
    tool("mkfs.ext4", &["-q", "-F", &volume]).ok();
    let command = format!("write {} stored", text(&image));
    tool("debugfs", &["-w", "-R", &command, &volume]).ok();
    tool("e2fsck", &["-f", "-n", &volume]).ok();

    let raw = text(&mounted.file("raw"));
    let (from, to) = (format!("if={}", text(&image)), format!("of={raw}"));
    tool("dd", &[&from, &to, "bs=1M", "conv=notrunc,fsync"]).ok();
    tool("cmp", &[&text(&image), &raw]).ok();
    mounted.stop(Signal::INT);

    let mounted = Mounted::start(&pool, &["--read-only"]);
    tool("e2fsck", &["-f", "-n", &volume]).ok();
    tool("cmp", &[&text(&image), &raw]).ok();
    let write = OpenOptions::new().write(true).open(&raw).unwrap_err();
    assert_eq!(write.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    mounted.stop(Signal::TERM);
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}

#[test]
fn holes_are_made_and_found_and_copied_as_holes() {
    if !can_mount(&["fallocate", "cp", "cmp"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "32M");
    let mounted = Mounted::start(&pool, &[]);
    let path = mounted.file("v");
    let file = write_file(&path);
    let seek = |from: SeekFrom| rustix::fs::seek(&file, from);
    assert_eq!(seek(SeekFrom::Data(0)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    file.write_all_at(&vec![0x77; 8 << 20], 4 << 20).unwrap();
    tool(
        "fallocate",
        &["-p", "-o", "6M", "-l", "1M", path.to_str().unwrap()],
    )
    .ok();
    tool(
        "fallocate",
        &["-z", "-n", "-o", "9M", "-l", "1M", path.to_str().unwrap()],
    )
    .ok();
    // Runs of data and of holes, in MiB, before and after a restart.
    let runs = |file: &File| {
        let mut ends = Vec::new();
        let mut at = 0;
        while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) {
            at = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap();
            ends.push((data >> 20, at >> 20));
        }
        ends
    };
    assert_eq!(runs(&file), [(4, 6), (7, 9), (10, 12)]);
    let mut byte = [0xff];
    for (at, want) in [(6 << 20, 0), ((7 << 20) - 1, 0), (7 << 20, 0x77)] {
        file.read_exact_at(&mut byte, at).unwrap();
        assert_eq!(byte, [want], "at {at}");
    }
    drop(file);
    let copy = pool.root.path().join("copy");
    tool("cp", &["--sparse=auto", &text(&path), &text(&copy)]).ok();
    tool("cmp", &[&text(&path), &text(&copy)]).ok();
    assert_eq!(
        runs(&File::open(&copy).unwrap()),
        [(4, 6), (7, 9), (10, 12)]
    );
    mounted.stop(Signal::TERM);
    let mounted = Mounted::start(&pool, &[]);
    assert_eq!(
        runs(&File::open(&path).unwrap()),
        [(4, 6), (7, 9), (10, 12)]
    );
    mounted.stop(Signal::TERM);
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
