//! Requests and their answers, through a real socket, in every header style.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::atomic::Ordering;

use common::client::*;
use common::disk::{FlushMode, MemoryDisk};
use common::{Served, eventually, pattern};
use proptest::prelude::*;
use tessera_engine::disk::DiskError;
use tessera_nbd::ServerOptions;

const MIB: u64 = 1 << 20;

#[test]
fn what_is_written_is_read_back_at_every_size() {
    let served = Served::new(80 * MIB);
    for style in STYLES {
        let mut client = served.connect(style);
        assert_eq!(client.size, 80 * MIB);
        for (index, length) in [
            1,
            511,
            4096,
            65536,
            65537,
            300_001,
            1 << 20,
            5 << 20,
            32 << 20,
        ]
        .into_iter()
        .enumerate()
        {
            let offset = 4096 * index as u64 + 7;
            let data = pattern(index as u64 + length as u64, length);
            assert_eq!(client.write(0, offset, &data), 0);
            assert!(
                client.read(offset, length as u64) == data,
                "{style:?} {length}"
            );
            assert!(
                served.disk.contents(offset, length) == data,
                "{style:?} {length}"
            );
        }
    }
}

#[test]
fn empty_ranges_succeed_except_for_block_status() {
    let served = Served::new(MIB);
    for style in STYLES {
        let mut client = served.connect(style);
        for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::ZERO] {
            for offset in [0, MIB] {
                let reply = client.call(0, command, offset, 0);
                assert_eq!(
                    (reply.error, reply.data.len()),
                    (
                        0,
                        if style == Style::Simple && command == cmd::READ {
                            1
                        } else {
                            0
                        }
                    )
                );
            }
        }
        assert_eq!(client.write(FUA, 5, &[]), 0);
        assert_eq!(client.call(0, cmd::STATUS, 0, 0).error, EINVAL);
    }
}

#[test]
fn trim_and_zero_leave_zeroes_and_tell_the_truth_about_it() {
    let served = Served::new(MIB);
    for style in [Style::Structured, Style::Extended] {
        let mut client = served.connect(style);
        assert_eq!(client.write(0, 0, &pattern(1, 1 << 20)), 0);
        assert_eq!(client.call(0, cmd::TRIM, 4096, 8192).error, 0);
        assert_eq!(client.call(FAST_ZERO, cmd::ZERO, 16384, 4096).error, 0);
        assert_eq!(
            client
                .call(NO_HOLE | FAST_ZERO, cmd::ZERO, 32768, 4096)
                .error,
            0
        );
        let reply = client.call(0, cmd::STATUS, 0, MIB);
        let expected = [
            (4096, 0),
            (8192, 3),
            (4096, 0),
            (4096, 3),
            (12288, 0),
            (4096, 2),
            (MIB - 36864, 0),
        ];
        assert_eq!(reply.extents, expected);
        let one = client.call(REQ_ONE, cmd::STATUS, 5000, 100_000);
        assert_eq!(one.extents, [(12288 - 5000, 3)]);
        let clipped = client.call(REQ_ONE, cmd::STATUS, 5000, 100);
        assert_eq!(clipped.extents, [(100, 3)]);
        assert!(client.read(4096, 8192).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn extended_block_status_takes_a_payload_and_64_bit_ranges() {
    let disk = MemoryDisk::null("disk", 1 << 60);
    let served = Served::with(disk, ServerOptions::default());
    let mut client = served.connect(Style::Extended);
    assert_eq!(client.flags & (1 << 12), 1 << 12);
    assert_eq!(
        client.call(0, cmd::STATUS, 5, 1 << 59).extents,
        [(1 << 59, 0)]
    );
    for command in [cmd::TRIM, cmd::ZERO, cmd::CACHE] {
        assert_eq!(client.call(0, command, 0, 1 << 60).error, 0);
    }
    let mut ask = |ids: &[u32]| {
        let mut payload = (1u64 << 50).to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        let mut bytes = Vec::new();
        let cookie = client.put(
            &mut bytes,
            PAYLOAD_LEN,
            cmd::STATUS,
            9,
            payload.len() as u64,
        );
        bytes.extend(payload);
        client.socket.write_all(&bytes).unwrap();
        client.reply(cookie)
    };
    assert_eq!(ask(&[1]).extents, [(1 << 50, 0)]);
    assert_eq!(ask(&[2]).error, EINVAL);
    assert_eq!(ask(&[1, 1]).error, EINVAL);
    assert_eq!(ask(&[7; 10_000]).error, EINVAL);
    assert_eq!(ask(&[1]).error, 0);
}

#[test]
fn many_extents_are_cut_off_and_clients_can_go_on() {
    let pages = 70_000;
    let served = Served::new(pages * 4096);
    let mut client = served.connect(Style::Structured);
    for page in (0..pages).step_by(2) {
        client.put_and_forget(page);
    }
    client.finish();
    let mut at = 0;
    let mut extents = 0;
    let mut answers = 0;
    while at < pages * 4096 {
        let reply = client.call(0, cmd::STATUS, at, pages * 4096 - at);
        assert!(!reply.extents.is_empty());
        extents += reply.extents.len() as u64;
        at += reply.extents.iter().map(|(length, _)| length).sum::<u64>();
        answers += 1;
    }
    assert_eq!((extents, at), (pages, pages * 4096));
    assert_eq!(answers, 2);
}

/// Quick one-byte writes in large portions.
trait Bulk {
    fn put_and_forget(&mut self, page: u64);
    fn finish(&mut self);
}

impl Bulk for Client {
    fn put_and_forget(&mut self, page: u64) {
        let cookie = self.send_write(0, page * 4096, &[1]);
        if page.is_multiple_of(128) {
            assert_eq!(self.reply(cookie).error, 0);
        }
    }
    fn finish(&mut self) {
        assert_eq!(self.call(0, cmd::FLUSH, 0, 0).error, 0);
    }
}

#[test]
fn long_reads_come_in_chunks_unless_the_client_forbids_it() {
    let served = Served::new(40 * MIB);
    let data = pattern(3, 32 << 20);
    let mut writer = served.connect(Style::Simple);
    assert_eq!(writer.write(0, 4097, &data), 0);
    for style in [Style::Structured, Style::Extended] {
        let mut client = served.connect(style);
        let reply = client.call(0, cmd::READ, 4097, 32 * MIB);
        assert!(reply.chunks > 1);
        // Chunks after the first begin at multiples of every chunk size.
        assert!(reply.data[1..].iter().all(|(at, _)| at % 65536 == 0));
        assert!(reply.bytes(4097) == data);
        let reply = client.call(DF, cmd::READ, 4097, 32 * MIB);
        assert_eq!((reply.error, reply.chunks), (0, 1));
        assert!(reply.bytes(4097) == data);
    }
}

#[test]
fn without_spare_memory_everything_still_works_in_smaller_steps() {
    let options = ServerOptions {
        buffer_bytes: 0,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", 8 * MIB), options);
    for style in STYLES {
        let mut client = served.connect(style);
        let data = pattern(9, 3 << 20);
        let mut bytes = Vec::new();
        let cookies: Vec<_> = (0..3)
            .map(|_| client.put_write(&mut bytes, 0, 777, &data))
            .collect();
        let read = client.put(&mut bytes, 0, cmd::READ, 0, 4096);
        client.socket.write_all(&bytes).unwrap();
        for cookie in cookies {
            assert_eq!(client.reply(cookie).error, 0);
        }
        assert_eq!(client.reply(read).error, 0);
        assert!(client.read(777, 3 << 20) == data);
    }
}

#[test]
fn a_failing_read_is_an_error_and_the_next_one_works() {
    let served = Served::new(8 * MIB);
    served
        .disk
        .fail(5 * MIB..5 * MIB + 1, DiskError::Io("rotten".into()));
    for style in STYLES {
        let mut client = served.connect(style);
        // Small, large, and so large that the first chunks go out before.
        for (offset, length) in [(5 * MIB, 512), (4 * MIB, 2 * MIB), (0, 8 * MIB)] {
            let reply = client.call(0, cmd::READ, offset, length);
            assert_eq!(reply.error, EIO, "{style:?} {offset}+{length}");
            if style != Style::Simple {
                assert_eq!(reply.message, "Input/output error: rotten");
            }
            assert_eq!(client.read(0, 512).len(), 512);
        }
    }
}

#[test]
fn a_write_that_fails_in_the_middle_is_answered_once_at_its_end() {
    let served = Served::new(8 * MIB);
    served.disk.fail(3 * MIB..3 * MIB + 1, DiskError::NoSpace);
    for style in STYLES {
        let mut client = served.connect(style);
        let data = pattern(5, 6 << 20);
        let mut bytes = Vec::new();
        let failing = client.put_write(&mut bytes, FUA, 0, &data);
        let fine = client.put_write(&mut bytes, 0, 0, &data[..1000]);
        client.socket.write_all(&bytes).unwrap();
        assert_eq!(client.reply(failing).error, ENOSPC);
        assert_eq!(client.reply(fine).error, 0);
        assert!(client.read(0, 1000) == data[..1000]);
    }
}

#[test]
fn refused_writes_do_not_upset_what_follows() {
    let served = Served::new(MIB);
    for style in STYLES {
        let mut client = served.connect(style);
        let mut bytes = Vec::new();
        let data = pattern(8, 2 << 20);
        let past_the_end = client.put_write(&mut bytes, 0, MIB - 1, &data);
        let unknown_flag = client.put_write(&mut bytes, 1 << 9, 0, &data[..5]);
        let fine = client.put_write(&mut bytes, 0, 0, &data[..MIB as usize]);
        client.socket.write_all(&bytes).unwrap();
        assert_eq!(client.reply(past_the_end).error, ENOSPC);
        assert_eq!(client.reply(unknown_flag).error, EINVAL);
        assert_eq!(client.reply(fine).error, 0);
        assert!(client.read(0, MIB) == data[..MIB as usize]);
    }
}

#[test]
fn an_oversize_write_is_drained_and_an_absurd_one_ends_the_connection() {
    let served = Served::new(100 * MIB);
    for style in STYLES {
        let mut client = served.connect(style);
        let data = vec![1; (32 << 20) + 1];
        assert_eq!(client.write(0, 0, &data), EINVAL);
        assert_eq!(served.disk.contents(0, 1), [0]);
        assert_eq!(client.write(0, 0, &[0]), 0);
        let flags = if style == Style::Extended {
            PAYLOAD_LEN
        } else {
            0
        };
        client.send(flags, cmd::WRITE, 0, (64 << 20) + 1);
        client.assert_closed();
    }
}

#[test]
fn oversize_reads_are_refused() {
    let served = Served::new(100 * MIB);
    for (style, error) in [
        (Style::Simple, EINVAL),
        (Style::Structured, EOVERFLOW),
        (Style::Extended, EOVERFLOW),
    ] {
        let mut client = served.connect(style);
        assert_eq!(client.call(0, cmd::READ, 0, 32 * MIB + 1).error, error);
        assert_eq!(client.read(0, 1), [0]);
    }
}

#[test]
fn an_extended_payload_on_a_command_without_one_is_consumed() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Extended);
    for command in [cmd::READ, cmd::TRIM, cmd::FLUSH, cmd::ZERO, cmd::CACHE, 99] {
        let mut bytes = Vec::new();
        let cookie = client.put(&mut bytes, PAYLOAD_LEN, command, 0, 100_000);
        bytes.extend(vec![0x55; 100_000]);
        client.socket.write_all(&bytes).unwrap();
        assert_eq!(client.reply(cookie).error, EINVAL);
    }
    assert_eq!(client.read(0, 1), [0]);
}

#[test]
fn an_extended_write_without_the_payload_flag_is_still_a_write() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Extended);
    let mut bytes = Vec::new();
    let cookie = client.put(&mut bytes, 0, cmd::WRITE, 5, 3);
    bytes.extend(b"abc");
    client.socket.write_all(&bytes).unwrap();
    assert_eq!(client.reply(cookie).error, 0);
    assert_eq!(client.read(5, 3), b"abc");
}

#[test]
fn garbage_instead_of_a_request_ends_the_connection() {
    let served = Served::new(MIB);
    for style in STYLES {
        let mut client = served.connect(style);
        let before = client.send_write(0, 0, b"kept");
        client
            .socket
            .write_all(b"this is not a request header")
            .unwrap();
        // What came before it is still answered.
        assert_eq!(client.reply(before).error, 0);
        client.assert_closed();
    }
    assert_eq!(served.connect(Style::Simple).read(0, 4), b"kept");
}

#[test]
fn requests_that_wait_are_executed_as_one_batch() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    served.disk.close_gate();
    let first = client.send_write(0, 0, &[1; 512]);
    eventually("the first batch is at the disk", || {
        served.disk.at_gate.load(Ordering::SeqCst) == 1
    });
    let mut bytes = Vec::new();
    let cookies: Vec<_> = (1..=100)
        .map(|index| client.put_write(&mut bytes, 0, index * 512, &[2; 512]))
        .collect();
    client.socket.write_all(&bytes).unwrap();
    served.disk.open_gate();
    assert_eq!(client.reply(first).error, 0);
    for cookie in cookies {
        assert_eq!(client.reply(cookie).error, 0);
    }
    assert_eq!(served.disk.requests.load(Ordering::SeqCst), 101);
    assert_eq!(served.disk.batches.load(Ordering::SeqCst), 2);
}

#[test]
fn a_flush_is_answered_when_the_disk_says_so_and_holds_up_nobody() {
    let served = Served::new(MIB);
    served.disk.set_flush_mode(FlushMode::Held);
    for style in STYLES {
        let mut client = served.connect(style);
        let flush = client.send(0, cmd::FLUSH, 0, 0);
        let durable = client.send_write(FUA, 0, b"durable");
        // A read overtakes both.
        assert_eq!(client.read(0, 1).len(), 1);
        let order = client.send(0, cmd::READ, 0, 7);
        assert_eq!(client.reply(order).bytes(0), b"durable");
        // Both came before the read, so they are with the disk by now, in one
        // batch or in two.
        let held = served.disk.held_flushes();
        assert!(held == 1 || held == 2, "{held}");
        assert!(!client.is_answered(flush) && !client.is_answered(durable));
        served.disk.release_flushes();
        for cookie in [flush, durable] {
            assert_eq!(client.reply(cookie).error, 0);
        }
    }
}

#[test]
fn a_disk_may_work_ahead_when_writes_are_answered_and_nothing_has_arrived() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    let ahead = || served.disk.worked_ahead.load(Ordering::SeqCst);
    assert_eq!(client.read(0, 4096).len(), 4096);
    assert_eq!(client.call(0, cmd::FLUSH, 0, 0).error, 0);
    assert_eq!(ahead(), 0, "there is nothing to commit");
    for count in 1..4 {
        assert_eq!(client.write(0, 0, &pattern(count, 4096)), 0);
        eventually("the disk is asked", || ahead() as u64 == count);
        assert_eq!(client.read(0, 4096).len(), 4096);
        assert_eq!(ahead() as u64, count, "once for each batch of writes");
    }
}

#[test]
fn requests_of_one_batch_share_a_flush() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    served.disk.close_gate();
    let first = client.send_write(0, 0, &[1]);
    eventually("the first batch is at the disk", || {
        served.disk.at_gate.load(Ordering::SeqCst) == 1
    });
    let mut bytes = Vec::new();
    let mut cookies: Vec<_> = (0..20)
        .map(|index| client.put_write(&mut bytes, FUA, index * 512, &[2; 512]))
        .collect();
    cookies.push(client.put(&mut bytes, 0, cmd::FLUSH, 0, 0));
    cookies.push(client.put(&mut bytes, FUA, cmd::TRIM, 0, 4096));
    cookies.push(client.put(&mut bytes, FUA, cmd::ZERO, 0, 4096));
    client.socket.write_all(&bytes).unwrap();
    served.disk.open_gate();
    assert_eq!(client.reply(first).error, 0);
    for cookie in cookies {
        assert_eq!(client.reply(cookie).error, 0);
    }
    assert_eq!(served.disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn fua_on_commands_that_write_nothing_is_accepted_and_flushes_nothing() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    for command in [cmd::READ, cmd::CACHE, cmd::STATUS] {
        assert_eq!(client.call(FUA, command, 0, 4096).error, 0);
    }
    assert_eq!(served.disk.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(served.disk.prefetched.load(Ordering::SeqCst), 4096);
}

#[test]
fn a_failing_flush_fails_flush_and_fua_but_not_the_rest() {
    let served = Served::new(MIB);
    served.disk.fail_flushes(DiskError::Io("no journal".into()));
    for style in STYLES {
        let mut client = served.connect(style);
        assert_eq!(client.call(0, cmd::FLUSH, 0, 0).error, EIO);
        assert_eq!(client.write(FUA, 0, b"x"), EIO);
        assert_eq!(client.write(0, 0, b"x"), 0);
    }
}

#[test]
fn more_flushes_than_may_be_in_flight_are_all_answered() {
    let served = Served::new(MIB);
    served.disk.set_flush_mode(FlushMode::Thread);
    let mut client = served.connect(Style::Structured);
    let mut bytes = Vec::new();
    let cookies: Vec<_> = (0..5000)
        .map(|_| client.put(&mut bytes, 0, cmd::FLUSH, 0, 0))
        .collect();
    let mut socket = client.socket.duplicate();
    std::thread::scope(|scope| {
        scope.spawn(move || socket.write_all(&bytes).unwrap());
        for cookie in cookies {
            assert_eq!(client.reply(cookie).error, 0);
        }
    });
}

#[test]
fn disconnecting_waits_for_the_flush_in_flight() {
    let served = Served::new(MIB);
    served.disk.set_flush_mode(FlushMode::Held);
    let mut client = served.connect(Style::Structured);
    let flush = client.send(0, cmd::FLUSH, 0, 0);
    client.send(0, cmd::DISC, 0, 0);
    eventually("the flush is with the disk", || {
        served.disk.held_flushes() == 1
    });
    served.disk.release_flushes();
    assert_eq!(client.reply(flush).error, 0);
    client.assert_closed();
    eventually("the connection is gone", || {
        served.server.stats().connections_open == 0
    });
}

#[test]
fn a_client_that_stops_sending_still_gets_its_answers() {
    let served = Served::new(MIB);
    served.disk.close_gate();
    let mut client = served.connect(Style::Structured);
    let write = client.send_write(FUA, 0, b"last words");
    client.socket.write_all(&[0x25]).unwrap();
    client.socket.stop_writing();
    served.disk.open_gate();
    assert_eq!(client.reply(write).error, 0);
    client.assert_closed();
}

#[test]
fn a_resized_disk_is_seen_by_connected_clients() {
    let served = Served::new(2 * MIB);
    served.disk.resize(MIB);
    let mut client = served.connect(Style::Structured);
    assert_eq!(client.size, MIB);
    assert_eq!(client.write(0, MIB, b"x"), ENOSPC);
    served.disk.resize(2 * MIB);
    assert_eq!(client.write(0, MIB, b"x"), 0);
    served.disk.resize(4096);
    assert_eq!(client.write(0, MIB, b"x"), ENOSPC);
    assert_eq!(client.call(0, cmd::READ, 4096, 1).error, EINVAL);
}

#[test]
fn a_read_only_server_refuses_writes_and_says_so() {
    let options = ServerOptions {
        read_only: true,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    for style in STYLES {
        let mut client = served.connect(style);
        assert_eq!(client.flags & 2, 2);
        assert_eq!(client.flags & (1 << 5 | 1 << 6 | 1 << 11), 0);
        assert_eq!(client.write(0, 0, &[1; 100_000]), EPERM);
        assert_eq!(client.call(0, cmd::TRIM, 0, 512).error, EPERM);
        assert_eq!(client.call(0, cmd::ZERO, 0, 512).error, EPERM);
        assert_eq!(client.call(0, cmd::FLUSH, 0, 0).error, 0);
        assert_eq!(client.read(0, 3), [0; 3]);
    }
}

#[test]
fn counters_add_up() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    client.write(0, 0, &[1; 300_000]);
    client.read(0, 1000);
    client.call(0, cmd::FLUSH, 0, 0);
    client.call(0, cmd::READ, MIB, 1);
    let stats = served.server.stats();
    assert_eq!((stats.requests, stats.errors, stats.flushes), (4, 1, 1));
    assert_eq!((stats.bytes_written, stats.bytes_read), (300_000, 1000));
    assert_eq!((stats.connections_accepted, stats.connections_open), (1, 1));
}

#[derive(Debug, Clone)]
enum Op {
    Read(u64, u64),
    Write(u64, usize, u16),
    Zero(u64, u64, u16, u16),
}

const DISK: u64 = 600_000;

fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![4 => 0..5000u64, 2 => 0..150_000u64, 1 => 0..DISK];
    let range = (0..DISK, length).prop_map(|(at, length)| (at, length.min(DISK - at)));
    prop_oneof![
        3 => range.clone().prop_map(|(at, length)| Op::Read(at, length)),
        4 => (range.clone(), 0..2u16).prop_map(|((at, length), fua)| Op::Write(at, length as usize, fua)),
        1 => (range, 0..2u16, prop_oneof![Just(cmd::TRIM), Just(cmd::ZERO)])
            .prop_map(|((at, length), fua, command)| Op::Zero(at, length, fua, command)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Any sequence, sent in any portions with any pauses, reads like an array.
    /// Requests in flight together do not overlap, as with any sane client: a
    /// request waits for the replies to the others unless it is a read.
    #[test]
    fn a_connection_behaves_like_an_array(
        ops in prop::collection::vec(op(), 1..40),
        style in 0..3usize,
        memory in prop_oneof![Just(0usize), Just(64 << 20)],
        portion in prop_oneof![Just(usize::MAX), 1000..200_000usize],
    ) {
        let options = ServerOptions { buffer_bytes: memory, ..ServerOptions::default() };
        let served = Served::with(MemoryDisk::new("disk", DISK), options);
        served.disk.set_flush_mode(FlushMode::Thread);
        let mut client = served.connect(STYLES[style]);
        let mut model = vec![0u8; DISK as usize];
        let mut reads: Vec<(u64, u64, Vec<u8>)> = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let mut bytes = Vec::new();
            let cookie = match *op {
                Op::Read(at, length) => {
                    let cookie = client.put(&mut bytes, 0, cmd::READ, at, length);
                    let expected = model[at as usize..(at + length) as usize].to_vec();
                    reads.push((cookie, at, expected));
                    None
                }
                Op::Write(at, length, fua) => {
                    let data = pattern(index as u64, length);
                    model[at as usize..at as usize + length].copy_from_slice(&data);
                    Some(client.put_write(&mut bytes, fua, at, &data))
                }
                Op::Zero(at, length, fua, command) => {
                    model[at as usize..(at + length) as usize].fill(0);
                    Some(client.put(&mut bytes, fua, command, at, length))
                }
            };
            if cookie.is_some() {
                for (cookie, at, expected) in reads.drain(..) {
                    prop_assert!(client.reply(cookie).bytes(at) == expected);
                }
            }
            for part in bytes.chunks(portion) {
                client.socket.write_all(part).unwrap();
            }
            if let Some(cookie) = cookie {
                prop_assert_eq!(client.reply(cookie).error, 0);
            }
        }
        for (cookie, at, expected) in reads {
            prop_assert!(client.reply(cookie).bytes(at) == expected);
        }
        prop_assert!(client.read(0, DISK) == model);
    }
}
