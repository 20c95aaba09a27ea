//! Reads that are executed while the answers before them are being sent.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::client::*;
use common::disk::MemoryDisk;
use common::{Served, eventually, pattern};
use tempfile::TempDir;
use tessera_engine::disk::{
    Disk, DiskCatalog, DiskError, DiskInfo, Extent, FlushDone, Operation, Request,
};
use tessera_nbd::{Drained, Server, ServerOptions};

const MIB: u64 = 1 << 20;
const DISK: u64 = 16 * MIB;
/// Never reached unless a test has failed.
const LONG: Duration = Duration::from_secs(60);

/// A server whose windows hold one read of 1 MiB, and what its disk holds.
fn served() -> (Served, Vec<u8>) {
    let options = ServerOptions {
        window_bytes: (1 << 20) + (64 << 10),
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", DISK), options);
    let data = pattern(11, 16 << 20);
    let mut client = served.connect(Style::Structured);
    assert_eq!(client.write(0, 0, &data), 0);
    client.send(0, cmd::DISC, 0, 0);
    client.assert_closed();
    eventually("the writer is gone", || {
        served.server.stats().connections_open == 0
    });
    served.disk.batches.store(0, Ordering::SeqCst);
    (served, data)
}

fn part(data: &[u8], offset: u64, length: u64) -> &[u8] {
    &data[offset as usize..(offset + length) as usize]
}

/// Sends reads of 1 MiB from the beginning of the disk.
fn send_reads(client: &mut Client, count: u64) -> Vec<u64> {
    let mut bytes = Vec::new();
    let cookies = (0..count)
        .map(|index| client.put(&mut bytes, 0, cmd::READ, index * MIB, MIB))
        .collect();
    client.socket.write_all(&bytes).unwrap();
    cookies
}

fn check_reads(client: &mut Client, cookies: &[u64], data: &[u8]) {
    for (index, cookie) in cookies.iter().enumerate() {
        let offset = index as u64 * MIB;
        let reply = client.reply(*cookie);
        assert_eq!(reply.error, 0, "{}", reply.message);
        assert!(reply.bytes(offset) == part(data, offset, MIB), "{index}");
    }
}

#[test]
fn three_windows_are_read_while_the_client_has_not_taken_the_one_before() {
    for style in STYLES {
        let (served, data) = served();
        let mut client = served.connect(style);
        // More than the socket holds: the first answer is stuck in it.
        let cookies = send_reads(&mut client, 16);
        eventually("the windows behind it are read", || {
            served.disk.batches.load(Ordering::SeqCst) >= 4
        });
        // And no further one: memory is bounded.
        assert_eq!(served.disk.batches.load(Ordering::SeqCst), 4);
        check_reads(&mut client, &cookies, &data);
    }
}

#[test]
fn an_answer_is_sent_while_the_next_window_is_at_the_disk() {
    let (served, data) = served();
    let mut client = served.connect(Style::Structured);
    served.disk.close_gate_to(MIB..DISK);
    let cookies = send_reads(&mut client, 4);
    check_reads(&mut client, &cookies[..1], &data);
    eventually("the windows behind it are at the disk together", || {
        served.disk.at_gate.load(Ordering::SeqCst) == 3
    });
    served.disk.open_gate();
    for (index, cookie) in cookies.iter().enumerate().skip(1) {
        let offset = index as u64 * MIB;
        assert!(client.reply(*cookie).bytes(offset) == part(&data, offset, MIB));
    }
}

#[test]
fn the_chunks_of_one_long_read_are_read_ahead_too() {
    for style in [Style::Structured, Style::Extended] {
        let (served, data) = served();
        let mut client = served.connect(style);
        let cookie = client.send(0, cmd::READ, 777, DISK - 777);
        eventually("a second chunk is read", || {
            served.disk.batches.load(Ordering::SeqCst) >= 2
        });
        assert!(client.reply(cookie).bytes(777) == data[777..]);
    }
}

#[test]
fn reads_of_all_lengths_with_writes_between_them_are_answered_right() {
    for style in STYLES {
        let (served, mut data) = served();
        let mut client = served.connect(style);
        let mut bytes = Vec::new();
        let mut reads = Vec::new();
        let mut others = Vec::new();
        for round in 0..40u64 {
            // Reads below 8 MiB, writes above: nothing in flight overlaps.
            let length = [1, 4096, 65536, 300_000, MIB, 3 * MIB][round as usize % 6];
            let offset = round * 131_072 + round;
            reads.push((
                client.put(&mut bytes, 0, cmd::READ, offset, length),
                offset,
                length,
            ));
            if round % 5 == 4 {
                let new = pattern(round, 200_000);
                let at = 9 * MIB + round * 65_536;
                data[at as usize..][..new.len()].copy_from_slice(&new);
                others.push(client.put_write(&mut bytes, FUA, at, &new));
            }
            if round % 7 == 6 {
                others.push(client.put(&mut bytes, 0, cmd::FLUSH, 0, 0));
            }
        }
        let mut socket = client.socket.duplicate();
        std::thread::scope(|scope| {
            scope.spawn(move || socket.write_all(&bytes).unwrap());
            for (cookie, offset, length) in reads {
                assert!(
                    client.reply(cookie).bytes(offset) == part(&data, offset, length),
                    "{style:?} {offset}+{length}"
                );
            }
            for cookie in others {
                assert_eq!(client.reply(cookie).error, 0);
            }
        });
        assert!(client.read(9 * MIB, 4 * MIB) == part(&data, 9 * MIB, 4 * MIB));
    }
}

#[test]
fn a_failure_in_a_window_read_ahead_is_the_answer_to_its_request_alone() {
    for style in STYLES {
        let (served, data) = served();
        served.disk.fail(
            5 * MIB + 9..5 * MIB + 10,
            DiskError::Io("a lost stripe".into()),
        );
        let mut client = served.connect(style);
        let cookies = send_reads(&mut client, 12);
        for (index, cookie) in cookies.iter().enumerate() {
            let offset = index as u64 * MIB;
            let reply = client.reply(*cookie);
            if index == 5 {
                assert_eq!(reply.error, EIO);
            } else {
                assert_eq!(reply.error, 0);
                assert!(reply.bytes(offset) == part(&data, offset, MIB));
            }
        }
        // A long read ends at its first error; what follows it goes on.
        let failing = client.send(0, cmd::READ, 0, DISK);
        let fine = client.send(0, cmd::READ, 8 * MIB, MIB);
        assert_eq!(client.reply(failing).error, EIO);
        assert!(client.reply(fine).bytes(8 * MIB) == part(&data, 8 * MIB, MIB));
    }
}

#[test]
fn disconnecting_behind_reads_gets_all_their_answers() {
    let (served, data) = served();
    let mut client = served.connect(Style::Structured);
    let cookies = send_reads(&mut client, 5);
    client.send(0, cmd::DISC, 0, 0);
    check_reads(&mut client, &cookies, &data);
    client.assert_closed();
}

#[test]
fn garbage_behind_reads_ends_the_connection_after_their_answers() {
    let (served, data) = served();
    let mut client = served.connect(Style::Structured);
    let cookies = send_reads(&mut client, 3);
    client.socket.write_all(&[0xaa; 64]).unwrap();
    check_reads(&mut client, &cookies, &data);
    client.assert_closed();
}

#[test]
fn a_client_that_vanishes_keeps_its_place_until_the_disk_is_left() {
    let (served, data) = served();
    let mut client = served.connect(Style::Structured);
    served.disk.close_gate_to(MIB..DISK);
    let cookies = send_reads(&mut client, 4);
    check_reads(&mut client, &cookies[..1], &data);
    eventually("the windows behind it are at the disk", || {
        served.disk.at_gate.load(Ordering::SeqCst) == 3
    });
    drop(client);
    // So a server that has shut down is not inside a disk any more.
    assert_eq!(served.server.shutdown(Duration::ZERO).stuck, 1);
    served.disk.open_gate();
    eventually("it is gone", || served.server.stats().connections_open == 0);
}

#[test]
fn a_window_that_is_being_read_is_answered_before_a_shutdown_ends() {
    let (served, data) = served();
    let mut client = served.connect(Style::Structured);
    served.disk.close_gate_to(MIB..DISK);
    let cookies = send_reads(&mut client, 4);
    eventually("the windows behind it are at the disk", || {
        served.disk.at_gate.load(Ordering::SeqCst) == 3
    });
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| served.server.shutdown(LONG));
        check_reads(&mut client, &cookies[..1], &data);
        assert!(!shutdown.is_finished());
        served.disk.open_gate();
        for (index, cookie) in cookies.iter().enumerate().skip(1) {
            let offset = index as u64 * MIB;
            assert!(client.reply(*cookie).bytes(offset) == part(&data, offset, MIB));
        }
        client.assert_closed();
        assert_eq!(shutdown.join().unwrap(), Drained { cut: 0, stuck: 0 });
    });
}

/// Reads zeroes, and panics beyond the first MiB.
struct Fragile;

impl Disk for Fragile {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            name: "fragile".into(),
            description: String::new(),
            size: DISK,
            read_only: false,
            chunk_size: 4096,
        }
    }

    fn execute(&self, batch: &mut [Request<'_>]) {
        for request in batch {
            if let Operation::Read { offset, buffer } = &mut request.operation {
                if *offset >= MIB {
                    std::panic::resume_unwind(Box::new("a broken invariant, on purpose"));
                }
                buffer.fill(0);
            }
        }
    }

    fn flush(&self, done: FlushDone) {
        done(Ok(()));
    }

    fn extents(&self, _: u64, length: u64, _: usize) -> Result<Vec<Extent>, DiskError> {
        Err(DiskError::Io(format!("nobody asks for {length}")))
    }
}

impl DiskCatalog for Fragile {
    fn names(&self) -> Vec<String> {
        vec!["fragile".into()]
    }

    fn open(&self, _: &str) -> Option<Arc<dyn Disk>> {
        Some(Arc::new(Fragile))
    }
}

#[test]
fn a_disk_that_panics_while_reading_ahead_ends_only_its_own_connection() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("s");
    let options = ServerOptions {
        window_bytes: (1 << 20) + (64 << 10),
        ..ServerOptions::default()
    };
    let server = Server::new(Arc::new(Fragile), options);
    server.listen_unix(&socket).unwrap();
    let mut witness = Client::connect(&socket, Style::Structured);
    // More often than there are helpers: none of them is lost.
    for _ in 0..100 {
        let mut victim = Client::connect(&socket, Style::Structured);
        let cookies = send_reads(&mut victim, 2);
        assert_eq!(victim.reply(cookies[0]).bytes(0).len(), 1 << 20);
        victim.assert_closed();
    }
    assert_eq!(witness.read(0, MIB).len(), 1 << 20);
}
