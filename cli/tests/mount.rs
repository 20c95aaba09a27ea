//! `tessera mount`: volumes as files under real tools, and what is left after
//! a stop and after a kill.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Served, TestPool, command, random_file, requires, tessera, text, tool};
use rustix::{
    fs::SeekFrom,
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    process::{Pid, Signal, kill_process},
};

/// Whether file systems can be mounted here. Containers often have no
/// /dev/fuse, which is nobody's fault; where it is, the tools must be too.
fn can_mount(tools: &[&str]) -> bool {
    let device = fs::metadata("/dev/fuse").is_ok_and(|found| found.file_type().is_char_device());
    if !device || OpenOptions::new().write(true).open("/dev/fuse").is_err() {
        eprintln!("skipped: /dev/fuse is not here or not ours to open");
        return false;
    }
    requires(&[&["fusermount3"], tools].concat())
}

/// A mounting process; killed and unmounted when dropped.
struct Mounted {
    child: Child,
    path: PathBuf,
}

impl Mounted {
    #[track_caller]
    fn start(pool: &TestPool, arguments: &[&str]) -> Self {
        let path = mountpoint(pool);
        let mut command = command(["mount", &text(&pool.dir), &text(&path)]);
        command.args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mounted = Self { child, path };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, format!("mounted on {}\n", text(&mounted.path)));
        mounted
    }

    fn file(&self, volume: &str) -> PathBuf {
        self.path.join("volumes").join(volume)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// It must end well and leave nothing mounted.
    #[track_caller]
    fn stop(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the mount ended with {status}");
        assert!(!is_mounted(&self.path));
        assert_eq!(fs::read_dir(&self.path).unwrap().count(), 0);
    }

    /// kill -9: the mount stays, dead.
    #[track_caller]
    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
        assert!(is_mounted(&self.path));
        assert_eq!(
            rustix::fs::statfs(&self.path).map(|_| ()),
            Err(Errno::NOTCONN)
        );
        // Left as it is for the next start: nothing for `drop` to do.
        self.path = PathBuf::new();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // All of these fail when it has ended well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.path.as_os_str().is_empty() {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

/// A mount that a test made itself.
struct Below(PathBuf);

impl Drop for Below {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn mountpoint(pool: &TestPool) -> PathBuf {
    let path = pool.root.path().join("mnt");
    let _exists = fs::create_dir(&path);
    path
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

fn write_file(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

#[test]
fn a_volume_is_a_file_that_cannot_be_managed() {
    if !can_mount(&[]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("a", "64M");
    pool.volume("b", "1G");
    let mounted = Mounted::start(&pool, &[]);
    let names = |path: &Path| {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&mounted.path), ["volumes"]);
    assert_eq!(names(&mounted.path.join("volumes")), ["a", "b"]);
    let file = fs::metadata(mounted.file("b")).unwrap();
    assert_eq!((file.len(), file.mode()), (1 << 30, 0o100_600));
    assert_eq!(file.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(
        fs::metadata(mounted.file("c")).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    let space = rustix::fs::statvfs(&mounted.path).unwrap();
    assert_eq!(
        space.f_blocks * space.f_frsize / 4096,
        pool.status()["capacity_bytes"].as_u64().unwrap() / 4096
    );

    let refused = |done: std::io::Result<()>| {
        assert_eq!(
            done.unwrap_err().raw_os_error(),
            Some(Errno::PERM.raw_os_error())
        );
    };
    refused(File::create_new(mounted.file("c")).map(|_| ()));
    refused(fs::remove_file(mounted.file("a")));
    refused(fs::rename(mounted.file("a"), mounted.file("c")));
    refused(fs::create_dir(mounted.path.join("d")));
    let file = write_file(&mounted.file("a"));
    refused(file.set_len(1));
    refused(file.set_len(65 << 20));
    file.set_len(64 << 20).unwrap();
    // Its end is as fixed as a disk's.
    assert_eq!(file.write_at(b"123456", (64 << 20) - 4).unwrap(), 4);
    let full = file.write_at(b"1", 64 << 20).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(file);

    // Management goes on through the control socket, and is seen.
    pool.volume("c", "8M");
    assert_eq!(fs::metadata(mounted.file("c")).unwrap().len(), 8 << 20);
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
