//! What people do with a mounted volume: file systems on it, directly and
//! through loop devices, fio with verification, qemu's tools.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{
    TestPool,
    mount::{FileSystem, Loop, Mounted, can_loop, can_mount},
    random_file, requires, scribble, text, tool,
};
use rustix::process::Signal;

/// A real tree of files: the kernel's headers, or this project's sources.
fn tree() -> PathBuf {
    let headers = PathBuf::from("/usr/include/linux");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    if headers.is_dir() {
        headers
    } else {
        root.join("engine")
    }
}

/// Makes a file system on `device` and checks one that has been unmounted.
struct Kind {
    make: &'static [&'static str],
    check: &'static [&'static str],
}

const KINDS: [Kind; 3] = [
    Kind {
        make: &["mkfs.ext4", "-q", "-F"],
        check: &["e2fsck", "-f", "-n"],
    },
    Kind {
        make: &["mkfs.xfs", "-q", "-f"],
        check: &["xfs_repair", "-n"],
    },
    Kind {
        make: &["mkfs.btrfs", "-q", "-f"],
        check: &["btrfs", "check"],
    },
];

fn run(command: &[&str], device: &str) {
    let (program, arguments) = command.split_first().unwrap();
    tool(program, &[arguments, &[device]].concat()).ok();
}

/// Fills it with a tree and empties part of it, twice mounted.
fn use_file_system(kind: &Kind, device: &str, at: &Path, options: &str) {
    let options = |more: &str| match options {
        "" => more.to_owned(),
        options => format!("{options},{more}"),
    };
    let files = FileSystem::mount(device, at, &options("discard"));
    let from = text(&tree());
    let [first, second] = ["first", "second"].map(|name| text(&at.join(name)));
    tool("cp", &["-a", &from, &first]).ok();
    tool("cp", &["-a", &from, &second]).ok();
    fs::remove_dir_all(&first).unwrap();
    tool("fstrim", &[&text(at)]).ok();
    files.unmount();
    run(kind.check, device);
    let files = FileSystem::mount(device, at, &options("ro"));
    tool("diff", &["-r", &from, &second]).ok();
    assert!(!Path::new(&first).exists());
    files.unmount();
}

fn a_file_system_is_sound(kind: &Kind) {
    if !can_loop(&["fstrim", kind.make[0], kind.check[0]]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("direct", "400M");
    pool.volume("loop", "400M");
    let mounted = Mounted::start(&pool, &[]);
    let at = pool.root.path().join("files");
    // Made and checked on the file itself.
    let file = text(&mounted.file("direct"));
    run(kind.make, &file);
    use_file_system(kind, &file, &at, "loop");
    // Through a loop device that bypasses the page cache, as recommended.
    let device = Loop::over(&mounted.file("loop"), &["--direct-io=on"]);
    run(kind.make, &device.0);
    use_file_system(kind, &device.0, &at, "");
    drop(device);
    mounted.stop(Signal::TERM);
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}

#[test]
fn ext4_holds_a_tree() {
    a_file_system_is_sound(&KINDS[0]);
}

#[test]
fn xfs_holds_a_tree() {
    a_file_system_is_sound(&KINDS[1]);
}

#[test]
fn btrfs_holds_a_tree() {
    a_file_system_is_sound(&KINDS[2]);
}

/// What happens to the member of this index before the server is killed.
#[derive(Debug, Clone, Copy)]
enum Harm {
    None,
    Failed(usize),
    Rotten(usize),
    Deleted(usize),
}

impl Harm {
    fn happen(self, pool: &TestPool) {
        let path = |member: usize| {
            let members = pool.status()["members"].clone();
            PathBuf::from(members[member]["path"].as_str().unwrap())
        };
        match self {
            Self::None => {}
            Self::Failed(member) => {
                pool.run("member", "fail", &[&member.to_string()]).ok();
            }
            Self::Deleted(member) => fs::remove_file(path(member)).unwrap(),
            Self::Rotten(member) => {
                // Beyond superblocks and journal.
                let first = 8 << 20;
                for block in 0..64 {
                    scribble(&path(member), first + block * (128 << 10), 4096);
                }
            }
        }
    }

    fn mend(self, pool: &TestPool) {
        match self {
            Self::None => {}
            Self::Failed(member) | Self::Deleted(member) => {
                let new = text(&pool.root.path().join(format!("new{member}.img")));
                let member = member.to_string();
                let arguments = [&member, &new, "--wait", "--json"];
                let job = pool.run("member", "replace", &arguments).json();
                assert_eq!(job["state"], "done", "{job:#}");
            }
            Self::Rotten(member) => {
                let scrub = pool.run("scrub", "start", &["--wait", "--json"]).json();
                assert_eq!(scrub["lost"], 0, "{scrub:#}");
                // By the scrub, or by a read before.
                let repaired = &pool.status()["members"][member]["repaired"];
                assert_ne!(*repaired, 0, "{repaired}");
            }
        }
        assert_eq!(pool.status()["state"], "online", "{self:?}");
    }
}

/// Again and again: files are copied, something happens to a member, and the
/// server is killed in the middle.
fn a_file_system_survives_kills(kind: &Kind, harms: &[Harm]) {
    if !can_loop(&["sync", kind.make[0], kind.check[0]]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "400M");
    let at = pool.root.path().join("files");
    let (from, kept) = (text(&tree()), text(&at.join("kept")));
    let recipe = ["--direct-io=on", "--sector-size", "4096"];
    for (round, harm) in harms.iter().enumerate() {
        let mounted = Mounted::start(&pool, &[]);
        let device = Loop::over(&mounted.file("v"), &recipe);
        if round == 0 {
            run(kind.make, &device.0);
        }
        let files = FileSystem::mount(&device.0, &at, "defaults");
        if round == 0 {
            tool("cp", &["-a", &from, &kept]).ok();
            tool("sync", &["-f", &text(&at)]).ok();
        }
        harm.happen(&pool);
        // In the middle of this.
        let torn = at.join(format!("torn{round}"));
        let mut more = Command::new("sh")
            .args(["-c", "cp -a \"$0\" \"$1\" && sync -f \"$1\"", &from])
            .arg(&torn)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while fs::read_dir(&torn).map_or(0, Iterator::count) < 100 {
            if more.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::yield_now();
        }
        mounted.kill();
        more.wait().unwrap();
        drop(files);
        drop(device);

        let mounted = Mounted::start(&pool, &[]);
        let device = Loop::over(&mounted.file("v"), &recipe);
        // The file system replays its own journal, and then nothing is left to mend.
        FileSystem::mount(&device.0, &at, "defaults").unmount();
        run(kind.check, &device.0);
        let files = FileSystem::mount(&device.0, &at, "ro");
        tool("diff", &["-r", &from, &kept]).ok();
        files.unmount();
        harm.mend(&pool);
        drop(device);
        mounted.stop(Signal::TERM);
    }
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}

#[test]
fn ext4_survives_kills_of_its_server_while_members_fail_rot_and_vanish() {
    let harms = [
        Harm::None,
        Harm::Failed(1),
        Harm::Rotten(2),
        Harm::Deleted(0),
    ];
    a_file_system_survives_kills(&KINDS[0], &harms);
}

#[test]
fn xfs_survives_a_kill_of_its_server() {
    a_file_system_survives_kills(&KINDS[1], &[Harm::None]);
}

#[test]
fn btrfs_survives_a_kill_of_its_server() {
    a_file_system_survives_kills(&KINDS[2], &[Harm::None]);
}

#[test]
fn fio_verifies_what_it_wrote_by_every_way_of_the_kernel() {
    if !can_mount(&["fio"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("v", "64M");
    let mounted = Mounted::start(&pool, &[]);
    let path = text(&mounted.file("v"));
    for (engine, more) in [
        ("libaio", &["--direct=1", "--iodepth=16"][..]),
        ("io_uring", &["--direct=1", "--iodepth=16"]),
        ("mmap", &["--fsync=64"]),
        ("psync", &["--bsrange=512-256k", "--bs_unaligned"]),
    ] {
        let file = format!("--filename={path}");
        let engine = format!("--ioengine={engine}");
        let common = [
            "--name=verify",
            "--rw=randrw",
            "--bs=4k",
            "--size=64M",
            "--io_size=48M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--randrepeat=0",
            &file,
            &engine,
        ];
        tool("fio", &[&common, more].concat()).ok();
    }
    mounted.stop(Signal::TERM);
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}

#[test]
fn qemu_tools_make_fill_compare_and_empty_a_mounted_image() {
    if !can_mount(&[]) || !requires(&["qemu-img", "qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    let mounted = Mounted::start(&pool, &[]);
    let image = text(&pool.root.path().join("image"));
    random_file(Path::new(&image), 24 << 20, 3);
    let (raw, qcow) = (text(&mounted.file("raw")), text(&mounted.file("qcow")));
    let img = |arguments: &[&str]| tool("qemu-img", arguments).ok();
    img(&[
        "convert", "-f", "raw", "-O", "raw", "-t", "none", "-T", "none", &image, &raw,
    ]);
    img(&["compare", "-f", "raw", "-F", "raw", &image, &raw]);
    assert_eq!(fs::metadata(&raw).unwrap().len(), 24 << 20);
    // The hole in its middle third is one there too.
    let map = tool("qemu-img", &["map", "-f", "raw", "--output=json", &raw]).json();
    let holes = map.as_array().unwrap().iter();
    let bytes: u64 = holes
        .filter(|run| run["data"] == false)
        .map(|run| run["length"].as_u64().unwrap())
        .sum();
    assert_eq!(bytes, 8 << 20);
    let io = |format: &str, file: &str, command: &str| {
        let ran = tool(
            "qemu-io",
            &[
                "-f", format, "-t", "none", "-d", "unmap", "-c", command, file,
            ],
        );
        assert!(!ran.stdout.contains("failed"), "{ran:?}");
        ran.ok()
    };
    for command in [
        "write -P 0x5a 1M 512k",
        "write -z 2M 1M",
        "discard 4M 1M",
        "read -P 0x5a 1M 512k",
        "read -P 0 2M 1M",
        "read -P 0 4M 1M",
    ] {
        io("raw", &raw, command);
    }
    // Formats that grow their file: it is the volume that has an end.
    img(&["create", "-q", "-f", "qcow2", &qcow, "16M"]);
    tool("truncate", &["-s", "64M", &qcow]).ok();
    io("qcow2", &qcow, "write -P 0x77 3M 2M");
    io("qcow2", &qcow, "read -P 0x77 3M 2M");
    img(&["check", "-q", &qcow]);
    mounted.stop(Signal::TERM);
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}
