//! The simulation keeps its own promises; the suite that it shares with the
//! real backends is in `device/tests.rs`.

use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{super::*, *};

const BLOCK: u64 = BLOCK_BYTES as u64;
const SIZE: u64 = 64 * BLOCK;
const WRITE: OpenMode = OpenMode {
    writable: true,
    lock_patience: Duration::ZERO,
};

/// A world with one device `d` that is open for writing.
fn world(seed: u64) -> (SimWorld, Arc<SimBackend>, DeviceHandle) {
    let world = SimWorld::new(seed);
    world.add_device("d", SIZE);
    let backend = world.backend();
    let device = open(&backend).unwrap();
    (world, backend, device)
}

fn open(backend: &SimBackend) -> io::Result<DeviceHandle> {
    backend.open(Path::new("d"), WRITE)
}

fn filled(byte: u8, blocks: u64) -> BufSlice {
    let mut buffer = AlignedBuf::zeroed(usize::try_from(blocks * BLOCK).unwrap());
    buffer.fill(byte);
    buffer.into()
}

fn write_op(device: DeviceHandle, block: u64, byte: u8, blocks: u64, durable: bool) -> Io {
    let data = vec![filled(byte, blocks)];
    let op = IoOp::Write { data, durable };
    Io {
        device,
        offset: block * BLOCK,
        op,
        outcome: None,
    }
}

fn do_one(backend: &SimBackend, mut io: Io) -> io::Result<Io> {
    backend.run(std::slice::from_mut(&mut io), &Patient);
    io.outcome.take().unwrap().map(|()| io)
}

fn write(backend: &SimBackend, device: DeviceHandle, block: u64, byte: u8) -> io::Result<()> {
    do_one(backend, write_op(device, block, byte, 1, false)).map(drop)
}

fn write_durable(
    backend: &SimBackend,
    device: DeviceHandle,
    block: u64,
    byte: u8,
) -> io::Result<()> {
    do_one(backend, write_op(device, block, byte, 1, true)).map(drop)
}

fn other(backend: &SimBackend, device: DeviceHandle, block: u64, op: IoOp) -> io::Result<()> {
    let (offset, outcome) = (block * BLOCK, None);
    do_one(
        backend,
        Io {
            device,
            offset,
            op,
            outcome,
        },
    )
    .map(drop)
}

fn sync(backend: &SimBackend, device: DeviceHandle) -> io::Result<()> {
    other(backend, device, 0, IoOp::Sync)
}

/// The byte that fills a block, if one does.
fn read(backend: &SimBackend, device: DeviceHandle, block: u64) -> io::Result<Option<u8>> {
    let op = IoOp::Read(AlignedBuf::zeroed(BLOCK_BYTES));
    let io = Io {
        device,
        offset: block * BLOCK,
        op,
        outcome: None,
    };
    let io = do_one(backend, io)?;
    let IoOp::Read(buffer) = io.op else {
        panic!("a read stays a read")
    };
    Ok(buffer
        .iter()
        .all(|byte| *byte == buffer[0])
        .then_some(buffer[0]))
}

fn errno(outcome: io::Result<()>) -> Option<i32> {
    outcome.unwrap_err().raw_os_error()
}

fn sectors(world: &SimWorld, block: u64) -> Vec<Vec<u8>> {
    let bytes = world.peek("d", block * BLOCK, BLOCK_BYTES);
    bytes.chunks(512).map(<[u8]>::to_vec).collect()
}

#[test]
fn what_was_synced_survives_every_power_cut() {
    for seed in 0..100 {
        let (world, backend, device) = world(seed);
        write(&backend, device, 1, 1).unwrap();
        sync(&backend, device).unwrap();
        write_durable(&backend, device, 2, 2).unwrap();
        assert_eq!(world.unflushed_blocks("d"), 0);
        world.power_cut(seed);
        world.power_on();
        let device = open(&backend).unwrap();
        assert_eq!(read(&backend, device, 1).unwrap(), Some(1));
        assert_eq!(read(&backend, device, 2).unwrap(), Some(2));
    }
}

#[test]
fn a_durable_write_makes_nothing_else_durable() {
    let lost = (0..100).any(|seed| {
        let (world, backend, device) = world(seed);
        write(&backend, device, 1, 1).unwrap();
        write_durable(&backend, device, 2, 2).unwrap();
        world.power_cut(seed);
        world.peek("d", BLOCK, BLOCK_BYTES)[0] == 0
    });
    assert!(lost);
}

#[test]
fn unflushed_sectors_become_old_or_new_or_a_version_between() {
    let (mut seen, mut mixed) = (BTreeSet::new(), false);
    for seed in 0..300 {
        let (world, backend, device) = world(seed);
        world.tear_sectors(false);
        write(&backend, device, 1, 1).unwrap();
        sync(&backend, device).unwrap();
        write(&backend, device, 1, 2).unwrap();
        write(&backend, device, 1, 3).unwrap();
        world.power_cut(seed);
        let after = sectors(&world, 1);
        for sector in &after {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}");
            seen.insert(sector[0]);
        }
        mixed |= after.iter().any(|sector| *sector != after[0]);
    }
    assert_eq!(seen, BTreeSet::from([1, 2, 3]));
    assert!(mixed, "a block is not written in one piece");
}

#[test]
fn sectors_tear_only_where_that_is_allowed_and_only_unflushed_ones() {
    let torn = (0..300).any(|seed| {
        let (world, backend, device) = world(seed);
        write(&backend, device, 1, 1).unwrap();
        write_durable(&backend, device, 2, 7).unwrap();
        world.power_cut(seed);
        assert!(sectors(&world, 2).concat().iter().all(|byte| *byte == 7));
        let after = sectors(&world, 1);
        after
            .iter()
            .any(|sector| sector.iter().any(|byte| *byte != sector[0]))
    });
    assert!(torn);
}

#[test]
fn a_later_write_can_survive_an_earlier_one() {
    let reordered = (0..100).any(|seed| {
        let (world, backend, device) = world(seed);
        world.tear_sectors(false);
        write(&backend, device, 1, 1).unwrap();
        write(&backend, device, 2, 2).unwrap();
        world.power_cut(seed);
        let filled = |block: u64, byte| sectors(&world, block).concat().iter().all(|b| *b == byte);
        filled(1, 0) && filled(2, 2)
    });
    assert!(reordered);
}

#[test]
fn without_power_everything_fails_and_old_handles_stay_dead() {
    let (world, backend, device) = world(1);
    write_durable(&backend, device, 0, 1).unwrap();
    world.power_cut(0);
    assert!(!world.has_power());
    assert!(read(&backend, device, 0).is_err());
    assert!(open(&backend).is_err());
    assert!(backend.create_file(Path::new("new"), SIZE).is_err());
    backend.close(device);
    assert_eq!(backend.facts(device).size_bytes, SIZE);
    world.power_on();
    assert!(read(&backend, device, 0).is_err());
    let device = open(&backend).unwrap();
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
}

#[test]
fn the_power_is_cut_at_exactly_the_operation_asked_for() {
    for cut in 1..=6 {
        let (world, backend, device) = world(cut);
        let before = world.operations();
        world.cut_after(cut);
        let mut batch: Vec<Io> = (0..5)
            .map(|block| write_op(device, block, 9, 1, true))
            .collect();
        backend.run(&mut batch, &Patient);
        let done = batch
            .iter()
            .filter(|io| io.outcome.as_ref().unwrap().is_ok());
        assert_eq!(done.count() as u64, (cut - 1).min(5));
        assert_eq!(world.has_power(), cut > 5);
        assert_eq!(world.operations() - before, cut.min(5));
        // What was acknowledged as durable is there.
        for io in &batch {
            let is_there = world.peek("d", io.offset, BLOCK_BYTES) == [9; BLOCK_BYTES];
            assert!(is_there || io.outcome.as_ref().unwrap().is_err());
        }
    }
}

#[test]
fn the_operation_that_the_cut_interrupts_may_or_may_not_have_happened() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let (world, backend, device) = world(seed);
        world.tear_sectors(false);
        world.cut_after(1);
        write_durable(&backend, device, 0, 1).unwrap_err();
        let after = sectors(&world, 0).concat();
        seen.insert((after.contains(&0), after.contains(&1)));
    }
    let all = [(true, false), (false, true), (true, true)];
    assert_eq!(seen, BTreeSet::from(all));
}

#[test]
fn a_sync_does_not_cover_writes_of_its_own_batch() {
    let (world, backend, device) = world(3);
    write(&backend, device, 0, 1).unwrap();
    let sync = Io {
        device,
        offset: 0,
        op: IoOp::Sync,
        outcome: None,
    };
    let mut batch = vec![write_op(device, 1, 2, 1, false), sync];
    backend.run(&mut batch, &Patient);
    assert_eq!(world.unflushed_blocks("d"), 1);
}

#[test]
fn a_killed_process_loses_its_locks_and_nothing_else() {
    let (world, backend, device) = world(1);
    write(&backend, device, 0, 1).unwrap();
    world.kill_process();
    assert!(read(&backend, device, 0).is_err());
    let device = open(&backend).unwrap();
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
    assert_eq!(world.unflushed_blocks("d"), 1);
}

#[test]
fn rot_changes_stored_bytes() {
    let (world, backend, device) = world(1);
    write_durable(&backend, device, 0, 0).unwrap();
    let fault = Fault::BitRot {
        offset: 100,
        mask: 0x11,
    };
    world.inject("d", fault);
    assert_eq!(read(&backend, device, 0).unwrap(), None);
    assert_eq!(world.peek("d", 99, 3), [0, 0x11, 0]);
    // Unflushed bytes rot too.
    write(&backend, device, 0, 0).unwrap();
    world.inject("d", fault);
    assert_eq!(world.peek("d", 100, 1), [0x11]);
}

#[test]
fn misdirected_and_lost_writes_report_success_once() {
    let (world, backend, device) = world(1);
    world.inject("d", Fault::MisdirectNextWrite { target: 5 * BLOCK });
    write(&backend, device, 0, 1).unwrap();
    assert_eq!(read(&backend, device, 0).unwrap(), Some(0));
    assert_eq!(read(&backend, device, 5).unwrap(), Some(1));
    world.inject("d", Fault::LoseNextWrite);
    write(&backend, device, 6, 2).unwrap();
    assert_eq!(read(&backend, device, 6).unwrap(), Some(0));
    write(&backend, device, 6, 3).unwrap();
    assert_eq!(read(&backend, device, 6).unwrap(), Some(3));
}

#[test]
fn unreadable_blocks_are_mended_by_rewriting_them() {
    let (world, backend, device) = world(1);
    let (offset, length) = (2 * BLOCK, 3 * BLOCK);
    world.inject("d", Fault::ReadErrors { offset, length });
    assert!(read(&backend, device, 1).is_ok());
    for block in 2..5 {
        assert_eq!(
            errno(read(&backend, device, block).map(drop)),
            Some(libc::EIO)
        );
    }
    write(&backend, device, 3, 1).unwrap();
    assert!(read(&backend, device, 2).is_err());
    assert_eq!(read(&backend, device, 3).unwrap(), Some(1));
    assert!(read(&backend, device, 4).is_err());
    assert!(read(&backend, device, 5).is_ok());
}

#[test]
fn write_errors_last_until_healed() {
    let (world, backend, device) = world(1);
    let (offset, length) = (BLOCK, BLOCK);
    world.inject("d", Fault::WriteErrors { offset, length });
    assert_eq!(errno(write(&backend, device, 1, 1)), Some(libc::EIO));
    assert_eq!(errno(write(&backend, device, 1, 1)), Some(libc::EIO));
    write(&backend, device, 2, 1).unwrap();
    world.heal("d");
    write(&backend, device, 1, 1).unwrap();
}

#[test]
fn a_failed_sync_drops_what_was_not_durable_and_then_succeeds() {
    let (world, backend, device) = world(1);
    write_durable(&backend, device, 0, 1).unwrap();
    write(&backend, device, 0, 2).unwrap();
    world.inject("d", Fault::FailNextSync);
    assert_eq!(errno(sync(&backend, device)), Some(libc::EIO));
    // The trap of fsync: the next one knows nothing of the loss.
    sync(&backend, device).unwrap();
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
    world.inject("d", Fault::FailNextSync);
    assert!(write_durable(&backend, device, 0, 3).is_err());
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
}

#[test]
fn a_vanished_device_can_come_back() {
    let (world, backend, device) = world(1);
    write(&backend, device, 0, 1).unwrap();
    world.inject("d", Fault::Vanish);
    assert_eq!(
        errno(read(&backend, device, 0).map(drop)),
        Some(libc::ENODEV)
    );
    assert_eq!(errno(sync(&backend, device)), Some(libc::ENODEV));
    backend.close(device);
    assert_eq!(open(&backend).unwrap_err().kind(), io::ErrorKind::NotFound);
    world.heal("d");
    let device = open(&backend).unwrap();
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
}

#[test]
fn a_full_device_takes_rewrites_but_no_new_blocks() {
    let (world, backend, device) = world(1);
    other(&backend, device, 0, IoOp::Preallocate { length: 2 * BLOCK }).unwrap();
    assert_eq!(world.allocated_blocks("d"), 2);
    world.inject("d", Fault::NoSpace { blocks_left: 1 });
    write(&backend, device, 0, 1).unwrap();
    write(&backend, device, 9, 1).unwrap();
    assert_eq!(errno(write(&backend, device, 10, 1)), Some(libc::ENOSPC));
    other(&backend, device, 9, IoOp::Discard { length: BLOCK }).unwrap();
    assert_eq!(read(&backend, device, 9).unwrap(), Some(0));
    write(&backend, device, 10, 1).unwrap();
}

/// Gives up when asked for the `after`-th time.
struct Impatient {
    after: u32,
    asked: AtomicU32,
}

impl Verdict for Impatient {
    fn abandon(&self, _device: DeviceHandle) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.after
    }
}

#[test]
fn a_stalled_write_is_given_up_and_lands_late() {
    let (world, backend, device) = world(1);
    world.inject("d", Fault::Stall { asks: 5 });
    let verdict = Impatient {
        after: 3,
        asked: AtomicU32::new(0),
    };
    let mut batch = vec![write_op(device, 1, 7, 2, false)];
    backend.run(&mut batch, &verdict);
    assert_eq!(verdict.asked.load(Ordering::Relaxed), 3);
    let outcome = batch[0].outcome.as_ref().unwrap().as_ref();
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(matches!(&batch[0].op, IoOp::Write { data, .. } if data.is_empty()));
    world.heal("d");
    assert_eq!(read(&backend, device, 1).unwrap(), Some(0));
    write(&backend, device, 1, 8).unwrap();
    // R5: the lock stays while the write is in flight.
    backend.close(device);
    assert_eq!(
        open(&backend).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert_eq!(world.stalled_operations("d"), 1);
    world.release_stalled("d");
    let device = open(&backend).unwrap();
    assert_eq!(read(&backend, device, 1).unwrap(), Some(7));
    assert_eq!(read(&backend, device, 2).unwrap(), Some(7));
}

#[test]
fn a_stall_that_is_waited_out_does_no_harm() {
    let (world, backend, device) = world(1);
    world.inject("d", Fault::Stall { asks: 5 });
    let verdict = Impatient {
        after: 6,
        asked: AtomicU32::new(0),
    };
    let mut batch = vec![write_op(device, 1, 7, 1, false)];
    backend.run(&mut batch, &verdict);
    assert_eq!(verdict.asked.load(Ordering::Relaxed), 5);
    assert!(batch[0].outcome.as_ref().unwrap().is_ok());
}

#[test]
fn a_verdict_may_look_at_the_world() {
    struct Curious(SimWorld, Cell<u64>);
    impl Verdict for Curious {
        fn abandon(&self, _device: DeviceHandle) -> bool {
            self.1.set(self.0.operations());
            false
        }
    }
    let (world, backend, device) = world(1);
    world.inject("d", Fault::Stall { asks: 1 });
    let verdict = Curious(world, Cell::new(0));
    let mut batch = vec![write_op(device, 1, 7, 1, false)];
    backend.run(&mut batch, &verdict);
    assert_eq!(verdict.1.get(), 1);
}

#[test]
fn a_restored_world_repeats_itself_to_the_bit() {
    let (world, backend, device) = world(42);
    write(&backend, device, 3, 1).unwrap();
    let snapshot = world.snapshot();
    let play = || {
        world.restore(&snapshot);
        let device = open(&backend).unwrap();
        let mut batch: Vec<Io> = (0..20)
            .map(|n| write_op(device, n % 7, n as u8, 1, n % 5 == 0))
            .collect();
        backend.run(&mut batch, &Patient);
        world.cut_after(2);
        sync(&backend, device).unwrap();
        write(&backend, device, 1, 99).unwrap_err();
        let contents = world.peek("d", 0, usize::try_from(SIZE).unwrap());
        (world.trace_hash(), world.operations(), contents)
    };
    let first = play();
    assert_eq!(play(), first);
    world.restore(&snapshot);
    world.reseed(7);
    let device = open(&backend).unwrap();
    let mut batch: Vec<Io> = (0..20)
        .map(|n| write_op(device, n, n as u8, 1, false))
        .collect();
    backend.run(&mut batch, &Patient);
    assert_ne!(world.trace_hash(), first.0, "another seed, another order");
}

#[test]
fn the_trace_tells_different_contents_apart() {
    let trace = |byte| {
        let (world, backend, device) = world(1);
        write(&backend, device, 0, byte).unwrap();
        world.trace_hash()
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn a_snapshot_is_not_changed_by_what_follows() {
    let (world, backend, device) = world(1);
    write_durable(&backend, device, 0, 1).unwrap();
    write(&backend, device, 1, 1).unwrap();
    let snapshot = world.snapshot();
    write_durable(&backend, device, 0, 2).unwrap();
    write(&backend, device, 1, 2).unwrap();
    world.inject("d", Fault::BitRot { offset: 0, mask: 1 });
    world.power_cut(0);
    world.restore(&snapshot);
    assert!(world.has_power());
    let device = open(&backend).unwrap();
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
    assert_eq!(read(&backend, device, 1).unwrap(), Some(1));
    assert_eq!(world.unflushed_blocks("d"), 1);
}

#[test]
fn a_stale_copy_can_be_put_back() {
    let (world, backend, device) = world(1);
    write_durable(&backend, device, 0, 1).unwrap();
    let stale = world.image("d");
    write_durable(&backend, device, 0, 2).unwrap();
    world.resize("d", 2 * BLOCK);
    world.restore_image("d", &stale);
    assert_eq!(read(&backend, device, 0).unwrap(), Some(1));
    assert!(read(&backend, device, 63).is_ok());
}

#[test]
fn a_device_that_shrinks_loses_its_end() {
    let (world, backend, device) = world(1);
    write(&backend, device, 10, 1).unwrap();
    world.resize("d", 10 * BLOCK);
    assert!(read(&backend, device, 10).is_err());
    assert!(write(&backend, device, 10, 1).is_err());
    world.resize("d", SIZE);
    assert_eq!(read(&backend, device, 10).unwrap(), Some(0));
}

#[test]
fn a_link_reaches_the_same_device() {
    let (world, backend, device) = world(1);
    world.link("alias", "d");
    let alias = Path::new("alias");
    assert_eq!(
        backend.open(alias, WRITE).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    let identity = backend.facts(device).identity;
    backend.close(device);
    let device = backend.open(alias, WRITE).unwrap();
    assert_eq!(backend.facts(device).identity, identity);
}

#[test]
fn counters_count() {
    let (world, backend, device) = world(1);
    do_one(&backend, write_op(device, 0, 1, 3, false)).unwrap();
    write_durable(&backend, device, 0, 1).unwrap();
    read(&backend, device, 0).unwrap();
    sync(&backend, device).unwrap();
    other(&backend, device, 0, IoOp::Discard { length: BLOCK }).unwrap();
    let expected = SimCounters {
        reads: 1,
        read_bytes: BLOCK,
        writes: 2,
        written_bytes: 4 * BLOCK,
        durable_writes: 1,
        syncs: 1,
        discards: 1,
        preallocations: 0,
    };
    assert_eq!(world.counters("d"), expected);
    assert_eq!(world.operations(), 5);
}

#[test]
#[should_panic(expected = "block-aligned")]
fn an_operation_off_the_blocks_is_a_bug() {
    let (_world, backend, device) = world(1);
    let op = IoOp::Discard { length: 512 };
    let _ = other(&backend, device, 0, op);
}
