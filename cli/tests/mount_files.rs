//! Volumes as files: what each call does to a volume, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use common::{
    TestPool,
    mount::{Mounted, can_mount, write_file},
    random_file, text, tool,
};
use rustix::{
    fs::{SeekFrom, XattrFlags},
    io::Errno,
    process::Signal,
};

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
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
    assert_eq!(names(&mounted.path), ["snapshots", "volumes"]);
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
    // What a volume stores and shares, and its own ratios although another
    // volume is full of the same.
    let (copy, twice) = (mounted.file("copy"), mounted.file("new"));
    drop(File::create_new(&copy).unwrap());
    write_file(&copy).write_all_at(&noise(64 << 10), 0).unwrap();
    write_file(&twice)
        .write_all_at(&noise(64 << 10), 0)
        .unwrap();
    for (key, value) in [
        ("unique-bytes", "65536"),
        ("stored-bytes", "65536"),
        ("exclusive-bytes", "65536"),
        ("shared-bytes", "0"),
        ("ratio", "1.00"),
        ("compression-ratio", "1.00"),
    ] {
        assert_eq!(attribute(&copy, key).as_deref(), Ok(value), "{key}");
    }
    // Who may be cut off is kept.
    assert_eq!(attribute(&file, "shrink").as_deref(), Ok("no"));
    set_attribute(&file, "shrink", "yes").unwrap();
    let shown = pool.run("volume", "show", &["v", "--json"]).json();
    assert_eq!(shown["allow_shrink"], true);
    mounted.stop(Signal::TERM);
    let mounted = Mounted::start(&pool, &[]);
    assert_eq!(attribute(&file, "shrink").as_deref(), Ok("yes"));
    write_file(&file).set_len(4 << 20).unwrap();
    pool.run("volume", "set", &["v", "--allow-shrink", "off"])
        .ok();
    assert_eq!(attribute(&file, "shrink").as_deref(), Ok("no"));
    let refused = rustix::fs::ftruncate(write_file(&file), 1 << 20);
    assert_eq!(refused, Err(Errno::PERM));
    mounted.stop(Signal::TERM);
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
