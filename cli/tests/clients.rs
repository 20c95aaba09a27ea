//! Real clients against a served RAID 5 pool.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;

use common::{TestPool, python_nbd, random_file, requires, text, tool};

const IMAGE_BYTES: u64 = 96 << 20;

#[test]
fn nbdinfo_sees_exports_flags_and_holes() {
    if !requires(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("one", "1G");
    pool.volume("two", "16T");
    let served = pool.serve();
    let list = tool("nbdinfo", &["--list", "--json", &served.uris[0]]).json();
    let mut names: Vec<_> = list["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|export| export["export-name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["one", "two"]);
    let two = &tool("nbdinfo", &["--json", &served.uri("two")]).json()["exports"][0];
    assert_eq!(two["export-size"], 16u64 << 40);
    for flag in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_multi_conn",
        "can_df",
    ] {
        assert_eq!(two[flag], true, "{flag}: {two:#}");
    }
    assert_eq!(two["is_read_only"], false);
    let ran = tool(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 7 1M 64k", &served.uri("one")],
    );
    assert!(ran.ok().contains("wrote 65536"));
    let map = tool("nbdinfo", &["--map", "--json", &served.uri("one")]).json();
    let runs: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            (
                run["offset"].as_u64(),
                run["length"].as_u64(),
                run["type"].as_u64(),
            )
        })
        .collect();
    assert_eq!(
        runs,
        [
            (Some(0), Some(1 << 20), Some(3)),
            (Some(1 << 20), Some(64 << 10), Some(0)),
            (
                Some((1 << 20) + (64 << 10)),
                Some((1 << 30) - (1 << 20) - (64 << 10)),
                Some(3)
            ),
        ]
    );
    // With two volumes there is no default export, and no third one.
    assert_ne!(tool("nbdinfo", &["--size", &served.uris[0]]).code, Some(0));
    assert_ne!(
        tool("nbdinfo", &["--size", &served.uri("three")]).code,
        Some(0)
    );
    served.stop();
}

#[test]
fn an_image_comes_back_bit_for_bit_and_its_copy_takes_no_space() {
    if !requires(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let pool = TestPool::raid5();
    let image = pool.root.path().join("image");
    random_file(&image, IMAGE_BYTES, 11);
    for name in ["one", "two"] {
        pool.volume(name, &IMAGE_BYTES.to_string());
    }
    let served = pool.serve();
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("one")]).ok();
    let first = pool.status();
    let arguments = [
        "convert",
        "-n",
        "-f",
        "raw",
        "-O",
        "raw",
        &text(&image),
        &served.uri("two"),
    ];
    tool("qemu-img", &arguments).ok();
    let both = pool.status();
    // The middle third is a hole, and zeroes are never stored.
    let data = IMAGE_BYTES - IMAGE_BYTES / 3 / 4096 * 4096;
    assert_eq!(first["logical_bytes"], data, "{first:#}");
    assert_eq!(both["logical_bytes"], 2 * data, "{both:#}");
    let unique = both["unique_bytes"].as_u64().unwrap();
    assert!(unique < data + data / 100, "{both:#}");
    assert!(both["dedup_ratio"].as_f64().unwrap() > 1.98, "{both:#}");
    for name in ["one", "two"] {
        let arguments = [
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &text(&image),
            &served.uri(name),
        ];
        tool("qemu-img", &arguments).ok();
    }
    served.stop();
    let served = pool.serve();
    let back = pool.root.path().join("back");
    tool("nbdcopy", &[&served.uri("two"), &text(&back)]).ok();
    assert!(
        fs::read(&image).unwrap() == fs::read(&back).unwrap(),
        "the copy differs"
    );
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}

#[test]
fn compressible_data_is_stored_smaller() {
    if !requires(&["nbdcopy"]) {
        return;
    }
    let pool = TestPool::raid5();
    let image = pool.root.path().join("text");
    let lines: String = (0..400_000)
        .map(|n| format!("line {n} of a long and dull text\n"))
        .collect();
    fs::write(&image, &lines).unwrap();
    pool.volume("lz4", "64M");
    pool.run(
        "volume",
        "create",
        &[
            "plain",
            "--size",
            "64M",
            "--dedup",
            "off",
            "--compression",
            "none",
        ],
    )
    .ok();
    let served = pool.serve();
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("lz4")]).ok();
    let status = pool.status();
    assert!(
        status["compression_ratio"].as_f64().unwrap() > 1.8,
        "{status:#}"
    );
    tool("nbdcopy", &["--flush", &text(&image), &served.uri("plain")]).ok();
    let grown =
        pool.status()["stored_bytes"].as_u64().unwrap() - status["stored_bytes"].as_u64().unwrap();
    assert!(
        grown >= lines.len() as u64,
        "neither dedup nor compression was asked for: {grown}"
    );
    served.stop();
}

#[test]
fn qemu_io_reads_what_it_wrote_discarded_and_zeroed() {
    if !requires(&["qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let served = pool.serve();
    let uri = served.uri("vm");
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw", "-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let ran = tool("qemu-io", &arguments);
        assert!(!ran.stdout.contains("failed"), "{ran:?}");
        ran.ok()
    };
    io(&[
        "write -P 0xaa 0 1M",
        "write -P 0xbb 512 512",
        "write -f -P 0xcc 3000 5001",
        "flush",
    ]);
    io(&[
        "read -P 0xaa 0 512",
        "read -P 0xbb 512 512",
        "read -P 0xaa 1024 1976",
    ]);
    io(&["read -P 0xcc 3000 5001", "read -P 0xaa 8001 1040575"]);
    io(&[
        "discard 64k 64k",
        "read -P 0 64k 64k",
        "read -P 0xaa 128k 64k",
    ]);
    io(&[
        "write -z 200000 7777",
        "read -P 0 200000 7777",
        "read -P 0xaa 207777 1000",
    ]);
    io(&["write -z -u 300k 100k", "read -P 0 300k 100k"]);
    io(&["read -P 0 1M 1M", "read -P 0 1023M 1M"]);
    served.stop();
    let served = pool.serve();
    let uri = served.uri("vm");
    let ran = tool(
        "qemu-io",
        &["-f", "raw", "-c", "read -P 0xcc 3000 5001", &uri],
    );
    assert!(!ran.stdout.contains("failed"), "{ran:?}");
    served.stop();
}

#[test]
fn fio_verifies_its_own_writes() {
    if !requires(&["fio"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "256M");
    let served = pool.serve();
    let uri = format!("--uri={}", served.uri("vm"));
    for (block, depth, duplicates) in [("4k", "32", "0"), ("1M", "8", "50"), ("512-20k", "16", "0")]
    {
        let mut arguments = vec![
            "--name=verify".to_owned(),
            "--ioengine=nbd".to_owned(),
            uri.clone(),
            "--rw=randwrite".to_owned(),
            format!("--iodepth={depth}"),
            "--size=48M".to_owned(),
            "--verify=crc32c".to_owned(),
            "--verify_fatal=1".to_owned(),
            "--verify_state_save=0".to_owned(),
        ];
        arguments.push(match block.contains('-') {
            true => format!("--bsrange={block}"),
            false => format!("--bs={block}"),
        });
        if block.contains('-') {
            arguments.push("--bs_unaligned=1".to_owned());
        }
        if duplicates != "0" {
            arguments.push(format!("--dedupe_percentage={duplicates}"));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tool("fio", &arguments).ok();
    }
    served.stop();
}

#[test]
fn a_terabyte_of_nothing_is_discarded_at_once_and_a_full_pool_still_serves() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    // 3 members of 256 MiB in RAID 5 hold less than the 600 MiB tried here.
    let pool = TestPool::create("raid5", 3);
    pool.volume("vm", "16T");
    let served = pool.serve();
    let script = "
import os
h.connect_uri(sys.argv[1])
step = 1 << 30
h.zero(step, 0)
for offset in range(0, 16 << 40, 1 << 40):
    h.trim((1 << 32) - 4096, offset)
first = os.urandom(1 << 20)
h.pwrite(first, 0)
h.flush()
written = 0
try:
    for n in range(1, 600):
        h.pwrite(os.urandom(1 << 20), n << 20)
        written = n
except nbd.Error as error:
    assert error.errno == 'ENOSPC', error
else:
    raise SystemExit('the pool took more than it has')
assert written > 100, written
h.flush()
assert h.pread(1 << 20, 0) == first
h.trim((written + 2) << 20, 1 << 20)
h.flush()
assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)
assert h.pread(1 << 20, 0) == first
";
    python_nbd(script, &[&served.uri("vm")]).ok();
    served.stop();
    pool.run("pool", "check", &["--data"]).ok();
}
