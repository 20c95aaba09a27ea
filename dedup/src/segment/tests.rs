//! The appender and the writer together, on simulated devices.

use std::sync::Arc;

use tessera_raid::{
    LayoutId, Level, SegmentRead,
    device::{AlignedBuf, BLOCK_BYTES},
};

use super::*;
use crate::{
    EntryKind,
    summary::Owner,
    testkit::{TestPool, noise},
};

struct Pipe {
    pool: TestPool,
    appender: Appender,
    writer: Arc<StripeWriter>,
    spare: Vec<AlignedBuf>,
    table: Arc<SegmentTable>,
}

impl Pipe {
    fn new() -> Self {
        let pool = TestPool::new(Level::Raid5, 3);
        let table = Arc::new(SegmentTable::new(pool.array.slot_count(), LayoutId(0)));
        let (appender, writer, _) = pipeline(&pool.array, &table, Generations::new(1, 1000));
        Self {
            pool,
            appender,
            writer,
            spare: Vec::new(),
            table,
        }
    }

    /// Appends 4 KiB of noise and tells where they went.
    fn append(&mut self, seed: u64) -> Appended {
        let stripe_bytes = self.pool.array.stripe_data_bytes() as usize;
        while self.spare.len() < 2 {
            self.spare.push(AlignedBuf::zeroed(stripe_bytes));
        }
        let bytes = noise(seed, 4096);
        let chunk = NewChunk {
            kind: EntryKind::Raw,
            bytes: &bytes,
            checksum: crc32c::crc32c(&bytes),
            logical_bytes: 4096,
            fingerprint: None,
            owner: Owner {
                tree: 1,
                index: seed,
                level: 0,
            },
        };
        self.appender
            .append(Stream::Data, &chunk, &mut self.spare, 0)
            .unwrap()
    }

    /// Appends to a stripe of its own and tells the ticket of it.
    fn append_alone(&mut self, seed: u64) -> (Appended, Ticket) {
        let appended = self.append(seed);
        self.appender.close_stripe(Stream::Data);
        (appended, self.appender.last_ticket())
    }

    fn settle(&self) {
        self.writer.sync_up_to(self.appender.last_ticket()).unwrap();
    }

    /// What the members hold at a place.
    fn read(&self, appended: &Appended) -> Vec<u8> {
        let record = self.table.record(appended.entry.segment).unwrap();
        let mut reads = [SegmentRead {
            placement: record.placement(),
            offset: appended.entry.position,
            buffer: AlignedBuf::zeroed(BLOCK_BYTES),
            outcome: Ok(()),
        }];
        self.pool.array.read(&mut reads);
        let [read] = reads;
        read.outcome.unwrap();
        read.buffer.to_vec()
    }
}

/// R14: a closed stripe is never rewritten, not even for the summary that
/// would have shared it.
#[test]
fn closing_any_stripe_keeps_its_chunks_whatever_follows() {
    let segment_bytes = u64::from(Pipe::new().pool.array.segment_data_bytes());
    // One chunk more each time, so every stripe of a segment, its last one
    // included, is closed early once, and later chunks push the summary out.
    for chunks in 1..segment_bytes / 4096 {
        let mut pipe = Pipe::new();
        let first: Vec<Appended> = (0..chunks).map(|seed| pipe.append(seed)).collect();
        pipe.appender.close_stripe(Stream::Data);
        let later: Vec<Appended> = (chunks..chunks + 3).map(|seed| pipe.append(seed)).collect();
        pipe.appender.seal(Stream::Data);
        pipe.settle();
        for (seed, appended) in (0..).zip(first.iter().chain(&later)) {
            assert!(
                pipe.read(appended) == noise(seed, 4096),
                "chunk {seed} after closing at {chunks}"
            );
        }
    }
}

/// A clean stop closes a stripe although little is in it, and the records of a
/// map segment may be lost with it. Stop after stop, the segment still ends
/// with a summary in a stripe that was not closed before.
#[test]
fn a_segment_resumed_without_records_ends_like_any_other() {
    let mut pipe = Pipe::new();
    let stripes = pipe.pool.array.segment_data_bytes() / pipe.pool.array.stripe_data_bytes();
    let mut all = Vec::new();
    for seed in 0..u64::from(3 * stripes) {
        let appended = pipe.append(seed);
        pipe.appender.close_stripe(Stream::Data);
        let id = appended.entry.segment;
        let record = pipe.table.record(id).unwrap();
        if record.state == SegmentState::Open {
            pipe.appender.resume(Stream::Data, id, record, Vec::new());
            pipe.appender.reserve_run(Stream::Data, 1).unwrap();
        }
        all.push(appended);
    }
    pipe.settle();
    for (seed, appended) in (0..).zip(&all) {
        assert!(pipe.read(appended) == noise(seed, 4096), "chunk {seed}");
    }
}

/// R14: a ticket stands for everything before it, whichever of several steps
/// ends first, and what a failed step leaves behind is written by the next one.
#[test]
fn tickets_complete_in_order_though_steps_do_not() {
    let mut pipe = Pipe::new();
    let (first, first_ticket) = pipe.append_alone(1);
    let writer = Arc::clone(&pipe.writer);
    let failing = writer.begin().unwrap().unwrap();
    let (second, second_ticket) = pipe.append_alone(2);

    assert!(writer.step().unwrap());
    assert!(pipe.read(&second) == noise(2, 4096));
    assert!(writer.written() < first_ticket, "the first is under way");
    drop(failing);
    assert!(writer.written() < first_ticket, "the first has failed");

    assert!(writer.step().unwrap());
    assert_eq!(writer.written(), second_ticket);
    assert!(pipe.read(&first) == noise(1, 4096));
    assert!(!writer.step().unwrap());
}

/// R9: a segment is punched by one caller, and before anybody can use it again.
#[test]
fn a_cleared_segment_is_punched_once() {
    let table = SegmentTable::new(4, LayoutId(0));
    let (id, _) = table.open(Stream::Data, crate::Generation(1), 0).unwrap();
    table.update(id, |record| record.state = SegmentState::Sealed);
    table.release(id, 7);
    // One checkpoint says that it is released, the next one that it is free.
    for _ in 0..2 {
        assert!(table.take_punchable(|_| true).is_empty());
        table.take_dirty();
        table.checkpoint_is_durable();
    }
    assert!(table.take_punchable(|epoch| epoch < 7).is_empty());
    let taken = table.take_punchable(|epoch| epoch == 7);
    assert_eq!(taken.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id]);
    assert!(table.take_punchable(|_| true).is_empty(), "another caller");
    assert_eq!(table.counts().free, 3);
    table.make_free(id);
    assert_eq!(table.counts().free, 4);
    assert!(table.take_punchable(|_| true).is_empty());
}
