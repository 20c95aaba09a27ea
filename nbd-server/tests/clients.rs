//! Real NBD clients against a disk in memory.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::disk::{FlushMode, MemoryDisk};
use common::{Served, pattern, requires};
use tessera_engine::disk::DiskError;
use tessera_nbd::ServerOptions;

const MIB: u64 = 1 << 20;

/// Runs a tool to its end; its standard output.
fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {output:#?}");
    String::from_utf8(output.stdout).unwrap()
}

fn output(command: &mut Command) -> Output {
    // A client that hangs must not hang the tests.
    let mut limited = Command::new("timeout");
    limited
        .arg("120")
        .arg(command.get_program())
        .args(command.get_args());
    limited.output().unwrap()
}

/// A file with data, holes, zeroes and data again.
fn sample(path: &Path) -> Vec<u8> {
    let mut bytes = pattern(11, 5 << 20);
    bytes.resize(9 << 20, 0);
    bytes.extend(pattern(12, 3 << 20));
    bytes.extend(vec![0; 1 << 20]);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn nbdinfo_sees_everything_that_works() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let served = Served::new(64 * MIB);
    let json = run(Command::new("nbdinfo").args(["--json", &served.uri]));
    for expected in [
        r#""protocol": "newstyle-fixed""#,
        r#""structured": true"#,
        r#""description": "A disk in memory""#,
        r#""base:allocation""#,
        r#""is_rotational": false"#,
        r#""is_read_only": false"#,
        r#""can_cache": true"#,
        r#""can_df": true"#,
        r#""can_fast_zero": true"#,
        r#""can_flush": true"#,
        r#""can_fua": true"#,
        r#""can_multi_conn": true"#,
        r#""can_trim": true"#,
        r#""can_zero": true"#,
        r#""block_size_minimum": 1"#,
        r#""block_size_preferred": 4096"#,
        r#""block_size_maximum": 33554432"#,
        r#""export-size": 67108864"#,
    ] {
        assert!(json.contains(expected), "{expected} not in {json}");
    }
    let list = run(Command::new("nbdinfo").args(["--list", &served.uri]));
    assert!(list.contains("export=\"disk\""), "{list}");

    let options = ServerOptions {
        read_only: true,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    for (capability, there) in [
        ("write", false),
        ("trim", false),
        ("zero", false),
        ("read", true),
    ] {
        let output = output(Command::new("nbdinfo").args(["--can", capability, &served.uri]));
        assert_eq!(output.status.success(), there, "{capability}: {output:?}");
    }
    assert!(
        output(Command::new("nbdinfo").args(["--is", "read-only", &served.uri]))
            .status
            .success()
    );
}

#[test]
fn nbdcopy_copies_both_ways_and_the_map_is_true() {
    if !requires(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let served = Served::new(13 * MIB);
    served.disk.set_flush_mode(FlushMode::Thread);
    let (source, target) = (served.path("source"), served.path("target"));
    let bytes = sample(&source);
    run(Command::new("nbdcopy")
        .arg("--flush")
        .arg(&source)
        .arg(&served.uri));
    assert!(served.disk.contents(0, bytes.len()) == bytes);
    assert!(served.server.stats().flushes > 0);
    run(Command::new("nbdcopy").arg(&served.uri).arg(&target));
    assert!(std::fs::read(&target).unwrap() == bytes);
    let map = run(Command::new("nbdinfo").args(["--map", &served.uri]));
    let lines: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    assert_eq!(
        lines,
        [
            ["0", "5242880", "0"],
            ["5242880", "4194304", "3"],
            ["9437184", "3145728", "0"],
            ["12582912", "1048576", "3"],
        ]
    );
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !requires(&["qemu-img"]) {
        return;
    }
    let served = Served::new(13 * MIB);
    let source = served.path("source");
    let bytes = sample(&source);
    let qemu_img = |arguments: &[&str]| {
        run(Command::new("qemu-img")
            .args(arguments)
            .arg(&source)
            .arg(&served.uri))
    };
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw"]);
    assert!(served.disk.contents(0, bytes.len()) == bytes);
    assert!(qemu_img(&["compare", "-f", "raw", "-F", "raw"]).contains("identical"));
    // Whole transfers of 32 MiB and out of order.
    qemu_img(&["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw"]);
    assert!(qemu_img(&["compare", "-f", "raw", "-F", "raw"]).contains("identical"));
    let map =
        run(Command::new("qemu-img").args(["map", "-f", "raw", "--output=json", &served.uri]));
    assert!(map.contains(r#""start": 5242880, "length": 4194304, "depth": 0, "present": true, "zero": true, "data": false"#), "{map}");
    // A changed byte is found.
    std::fs::write(&source, {
        let mut other = bytes;
        other[10_000_000] ^= 1;
        other
    })
    .unwrap();
    let different = output(
        Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", "raw"])
            .arg(&source)
            .arg(&served.uri),
    );
    assert_eq!(different.status.code(), Some(1));
}

#[test]
fn qemu_io_reads_writes_zeroes_and_discards() {
    if !requires(&["qemu-io"]) {
        return;
    }
    let served = Served::new(80 * MIB);
    served.disk.set_flush_mode(FlushMode::Thread);
    let run_io = |commands: &[&str]| {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]);
        commands.iter().for_each(|line| {
            command.args(["-c", line]);
        });
        let text = run(command.arg(&served.uri));
        assert!(!text.contains("failed"), "{text}");
    };
    run_io(&[
        "write -P 1 0 64k",
        "write -P 2 1000 512",
        "read -P 2 1000 512",
        "read -P 1 1512 10000",
        "write -f -P 3 1M 32M",
        "read -P 3 1M 32M",
        "write -z 2M 1M",
        "write -z -u 4M 1M",
        "discard 6M 1M",
        "flush",
        "read -P 0 2M 1M",
        "read -P 0 4M 1M",
        "read -P 3 3M 1M",
        "aio_write -P 5 40M 1M",
        "aio_write -P 6 41M 1M",
        "aio_flush",
        "read -P 5 40M 1M",
        "read -P 6 41M 1M",
        "length",
    ]);
    // Through qemu's own client: NO_HOLE without `-u`, a hole with it.
    use tessera_engine::disk::{Disk, ExtentKind};
    let kinds = |offset| served.disk.extents(offset, MIB, 9).unwrap()[0].kind;
    assert_eq!(kinds(2 * MIB), ExtentKind::Zero);
    assert_eq!(kinds(4 * MIB), ExtentKind::Hole);
}

#[test]
fn qemu_reports_the_error_of_the_disk() {
    if !requires(&["qemu-io"]) {
        return;
    }
    let served = Served::new(MIB);
    served.disk.fail(65536..65537, DiskError::NoSpace);
    let result =
        output(Command::new("qemu-io").args(["-f", "raw", "-c", "write 64k 4k", &served.uri]));
    let text = String::from_utf8_lossy(&result.stdout).into_owned()
        + &String::from_utf8_lossy(&result.stderr);
    assert!(text.contains("No space left on device"), "{text}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !requires(&["fio"]) {
        return;
    }
    let served = Served::new(16 * MIB);
    served.disk.set_flush_mode(FlushMode::Thread);
    for (block, depth) in [("4k", "32"), ("512-300k", "16")] {
        run(Command::new("fio").args([
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", served.uri),
            "--rw=randrw",
            &format!(
                "--bsrange={}",
                if block.contains('-') {
                    block.into()
                } else {
                    format!("{block}-{block}")
                }
            ),
            &format!("--iodepth={depth}"),
            "--size=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=64",
            "--randseed=7",
        ]));
    }
}

/// What a well-behaved library will not send unless its checks are turned off.
const NEGATIVE_CASES: &str = r#"
import errno, nbd, sys

def connect(uri, structured=True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    return h

def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (call, arguments, error)
        return
    raise AssertionError((call, arguments, "did not fail"))

for structured in (True, False):
    h = connect(sys.argv[1], structured)
    size = h.get_size()
    fails(errno.EINVAL, h.pread, 512, size)
    fails(errno.EINVAL, h.pread, 2, size - 1)
    fails(errno.EINVAL, h.pread, 512, 2**63 - 512)
    fails(errno.ENOSPC, h.pwrite, b"x" * 512, size)
    fails(errno.ENOSPC, h.pwrite, b"x" * 100000, size - 1)
    fails(errno.EINVAL, h.trim, 512, size)
    fails(errno.EINVAL, h.zero, 512, size)
    fails(errno.EINVAL, h.cache, 512, size)
    fails(errno.EINVAL, h.pread, 512, 0, 1 << 10)
    fails(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
    fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_NO_HOLE)
    fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_REQ_ONE)
    fails(errno.EINVAL, h.block_status, 512, size, lambda *a: 0)
    # The connection has survived all of it.
    h.pwrite(b"still here", 5, nbd.CMD_FLAG_FUA)
    assert h.pread(10, 5) == b"still here"
    h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(4096, 0) == bytearray(4096)
    h.flush()
    if structured:
        assert h.pread(65536, 0, nbd.CMD_FLAG_DF) == bytearray(65536)
        extents = []
        h.block_status(size, 0, lambda context, offset, entries, error: extents.extend(entries))
        assert sum(extents[::2]) == size, extents
        fails(errno.EINVAL, h.block_status, 0, 0, lambda *a: 0)
    else:
        fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
    h.shutdown()

# A read-only server, second argument.
h = connect(sys.argv[2])
fails(errno.EPERM, h.pwrite, b"x", 0)
fails(errno.EPERM, h.trim, 512, 0)
fails(errno.EPERM, h.zero, 512, 0)
h.shutdown()

# Negotiation by hand.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
names = []
h.opt_list(lambda name, description: names.append(name) and 0 or 0)
assert names == ["disk"], names
h.set_export_name("nonesuch")
fails(errno.ENOENT, h.opt_info)
h.set_export_name("disk")
h.opt_info()
assert h.get_size() == 1 << 20
h.opt_go()
assert h.get_protocol() == "newstyle-fixed"
assert h.can_multi_conn() and h.can_fua() and not h.is_rotational()
h.shutdown()
print("all as expected")
"#;

#[test]
fn libnbd_without_its_checks_meets_the_errors_of_the_protocol() {
    let python = "/usr/bin/python3";
    let importable = Command::new(python).args(["-c", "import nbd"]).output();
    if !importable.is_ok_and(|output| output.status.success())
        && !requires(&["python3-libnbd (import nbd)"])
    {
        return;
    }
    let served = Served::new(MIB);
    let options = ServerOptions {
        read_only: true,
        ..ServerOptions::default()
    };
    let read_only = Served::with(MemoryDisk::new("disk", MIB), options);
    let script = served.path("negative.py");
    std::fs::write(&script, NEGATIVE_CASES).unwrap();
    let text = run(Command::new(python)
        .arg(&script)
        .args([&served.uri, &read_only.uri]));
    assert_eq!(text.trim(), "all as expected");
}
