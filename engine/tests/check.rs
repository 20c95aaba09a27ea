//! `Pool::check` names what is damaged, and writes nothing.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use tessera_dedup::{
    EntryKind, Fingerprint, SummaryRecord, fingerprint,
    summary::{self, SummaryBlock},
};
use tessera_engine::{
    api::{CheckReport, Compression, DedupMode, PoolSpec, VolumeSpec},
    disk::{Disk, Operation, Request},
    pool::{CheckObserver, IoChoice, Pool, PoolOptions},
};
use tessera_raid::Level;

const MEMBER_BYTES: u64 = 32 << 20;
const UNIT: u64 = 64 << 10;
const CHUNK: usize = 4096;
/// Of every member of this size: 16 KiB of superblocks, 4 MiB of journal.
const SLOTS_OFFSET: u64 = 5 << 20;
const JOURNAL_OFFSET: u64 = 16 << 10;
/// The data of one segment of a pool of one such member.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Chunks that [`fill`] writes to volume "a" and that are all different.
const UNIQUE: usize = 700;
const FIRST_VOLUME: u64 = 16;

#[derive(Default)]
struct Stages(RefCell<Vec<String>>);

impl CheckObserver for Stages {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        assert!(done <= total, "{stage}: {done} of {total}");
        let mut stages = self.0.borrow_mut();
        if stages.last().is_none_or(|last| last != stage) {
            stages.push(stage.to_owned());
        }
    }
}

struct Bench {
    _directory: tempfile::TempDir,
    pool: PathBuf,
    members: Vec<PathBuf>,
}

impl Bench {
    fn new(level: Level, count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = directory.path().join("pool");
        let members: Vec<PathBuf> = (0..count)
            .map(|n| pool.join(format!("disk{n}.img")))
            .collect();
        let spec = PoolSpec {
            level,
            stripe_unit_bytes: u32::try_from(UNIT).unwrap(),
            members: members.clone(),
            create_files_bytes: Some(MEMBER_BYTES),
            force: false,
        };
        Pool::create(&pool, &spec, IoChoice::Threads).unwrap();
        Self {
            _directory: directory,
            pool,
            members,
        }
    }

    fn open(&self) -> Arc<Pool> {
        let options = PoolOptions {
            memory_bytes: 64 << 20,
            io: IoChoice::Threads,
            ..PoolOptions::default()
        };
        Pool::open(&self.pool, &options).unwrap()
    }

    /// A pool that holds something of everything and was closed cleanly.
    fn filled(level: Level, count: usize) -> Self {
        let bench = Self::new(level, count);
        let pool = bench.open();
        fill(&pool);
        pool.close().unwrap();
        bench
    }

    /// The same as a crash leaves it.
    fn crashed(level: Level, count: usize) -> Self {
        let bench = Self::new(level, count);
        let pool = bench.open();
        fill(&pool);
        let left: Vec<Vec<u8>> = bench
            .members
            .iter()
            .map(|path| fs::read(path).unwrap())
            .collect();
        drop(pool);
        for (path, bytes) in bench.members.iter().zip(left) {
            fs::write(path, bytes).unwrap();
        }
        bench
    }

    /// Checks, and sees to it that nothing was written.
    fn check(&self, data: bool) -> CheckReport {
        let before = self.contents();
        let report = Pool::check(&self.pool, data, IoChoice::Threads, &Stages::default()).unwrap();
        assert!(before == self.contents(), "the check wrote something");
        report
    }

    fn contents(&self) -> BTreeMap<PathBuf, Fingerprint> {
        let mut contents = BTreeMap::new();
        for entry in fs::read_dir(&self.pool).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                contents.insert(path.clone(), fingerprint(&fs::read(&path).unwrap()));
            }
        }
        contents
    }

    fn flip(&self, member: usize, offset: u64) {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&self.members[member])
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
    }

    /// Offsets of the blocks of a member that begin with `magic`.
    fn blocks(&self, member: usize, magic: &[u8]) -> Vec<u64> {
        let bytes = fs::read(&self.members[member]).unwrap();
        let blocks = bytes.chunks(CHUNK).zip((0..).step_by(CHUNK));
        blocks
            .filter(|(block, _)| block.starts_with(magic))
            .map(|(_, at)| at)
            .collect()
    }

    /// The summary blocks of a pool of one member, and where they are.
    fn summaries(&self) -> Vec<(u64, SummaryBlock)> {
        let bytes = fs::read(&self.members[0]).unwrap();
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let blocks = self.blocks(0, b"TSSUMRY1").into_iter();
        blocks
            .map(|offset| (offset, &bytes[at(offset)..at(offset) + CHUNK]))
            .map(|(offset, block)| (offset, summary::decode_block(block, 0).unwrap()))
            .collect()
    }

    /// What a pool of one member has appended, in the order of appending.
    fn appended(&self) -> Vec<SummaryRecord> {
        let mut newest: BTreeMap<(u32, u32), SummaryRecord> = BTreeMap::new();
        for (_, block) in self.summaries() {
            for record in block.records {
                newest.insert((record.entry.segment.0, record.entry.position), record);
            }
        }
        newest.into_values().collect()
    }
}

/// Where something lies on the only member.
fn place(record: &SummaryRecord) -> u64 {
    let entry = &record.entry;
    SLOTS_OFFSET + u64::from(entry.segment.0) * SEGMENT_BYTES + u64::from(entry.position)
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn write(disk: &Arc<dyn Disk>, offset: usize, data: &[u8]) {
    let offset = u64::try_from(offset).unwrap();
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
    let (sender, receiver) = mpsc::channel();
    disk.flush(Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap(), Ok(()));
}

/// Unique, compressible, repeated and unhashed chunks; more than two segments.
fn fill(pool: &Pool) {
    for (name, dedup) in [("a", DedupMode::Inline), ("b", DedupMode::Off)] {
        let spec = VolumeSpec {
            name: name.to_owned(),
            size_bytes: 16 << 20,
            chunk_bytes: u32::try_from(CHUNK).unwrap(),
            dedup,
            compression: Compression::Lz4,
        };
        pool.create_volume(&spec).unwrap();
    }
    let a = pool.catalog().open("a").unwrap();
    let unique = pattern(1, UNIQUE * CHUNK);
    write(&a, 0, &unique[..300 * CHUNK]);
    write(&a, 300 * CHUNK, &unique[300 * CHUNK..]);
    write(&a, 2000 * CHUNK, &unique[..100 * CHUNK]);
    // Some of these are stored raw: after so much noise LZ4 is not tried at once.
    let text: Vec<u8> = (1..=40).flat_map(|letter| [letter; CHUNK]).collect();
    write(&a, 3000 * CHUNK, &text);
    let b = pool.catalog().open("b").unwrap();
    write(&b, 0, &pattern(2, 20 * CHUNK));
}

fn named(report: &CheckReport, what: &str) {
    assert!(
        report.problems.iter().any(|problem| problem.contains(what)),
        "{what}: {report:#?}"
    );
}

#[test]
fn a_healthy_pool_has_no_problems() {
    for (level, count) in [(Level::Single, 1), (Level::Raid5, 4), (Level::Raid10, 4)] {
        let bench = Bench::filled(level, count);
        let report = bench.check(true);
        assert_eq!(report.problems, Vec::<String>::new(), "{}", level.name());
        assert_eq!(report.notes, Vec::<String>::new(), "{}", level.name());
        assert_eq!(report.superblocks_checked, 4 * count as u64);
        assert!(report.pages_checked > 5);
        // 700 and their 100 repeats, 40 compressible, 20 unhashed, and pages.
        assert_eq!(report.pointers_checked, 860 + report.pages_checked - 1);
        assert_eq!(report.chunks_checked, 760, "each stored chunk once");
        assert!(report.bytes_checked >= (720 * CHUNK) as u64);
        assert_eq!(bench.check(false).chunks_checked, 0);
    }
}

#[test]
fn a_pool_that_crashed_is_checked_with_its_journal() {
    for (level, count) in [(Level::Single, 1), (Level::Raid6, 5)] {
        let bench = Bench::crashed(level, count);
        let report = bench.check(true);
        assert_eq!(report.problems, Vec::<String>::new(), "{}", level.name());
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.contains("not closed cleanly"))
        );
        assert!(report.journal_batches_checked >= 6, "{report:?}");
        assert!(report.pointers_checked >= 860, "{report:?}");
        // Still as it was: it recovers and is healthy.
        drop(bench.open());
        assert_eq!(bench.check(true).problems, Vec::<String>::new());
    }
}

#[test]
fn every_stage_is_reported() {
    let bench = Bench::filled(Level::Single, 1);
    let stages = Stages::default();
    Pool::check(&bench.pool, true, IoChoice::Threads, &stages).unwrap();
    let expected = [
        "journal",
        "segment table",
        "catalogue",
        "snapshots",
        "jobs",
        "volume a",
        "volume b",
        "summaries",
        "chunks",
    ];
    assert_eq!(*stages.0.borrow(), expected);
}

#[test]
fn a_damaged_superblock_copy_is_named() {
    let bench = Bench::filled(Level::Raid5, 4);
    for (offset, name) in [(200, "A of "), (MEMBER_BYTES - 8192 + 200, "B' of ")] {
        bench.flip(2, offset);
        let report = bench.check(false);
        named(&report, &format!("Superblock {name}"));
        named(&report, "disk2.img");
        assert_eq!(report.problems.len(), 1, "{report:?}");
        bench.flip(2, offset);
    }
}

#[test]
fn a_missing_member_is_a_note() {
    let bench = Bench::filled(Level::Raid5, 4);
    fs::remove_file(&bench.members[1]).unwrap();
    let report = bench.check(true);
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.notes[0].contains("is missing"), "{report:?}");
}

#[test]
fn a_damaged_journal_batch_is_named() {
    let bench = Bench::crashed(Level::Raid5, 4);
    // The first batch; later ones prove that it was confirmed.
    let at = JOURNAL_OFFSET + 100;
    let holders: Vec<usize> = (0..4)
        .filter(|m| bench.blocks(*m, b"TSRBATCH").contains(&JOURNAL_OFFSET))
        .collect();
    assert_eq!(
        holders.len(),
        2,
        "as many copies as failures survived, and one"
    );
    bench.flip(holders[0], at);
    let report = bench.check(true);
    named(
        &report,
        "Journal batch 0 is whole on 1 members instead of 2",
    );
    assert_eq!(report.problems.len(), 1, "{report:?}");
    bench.flip(holders[1], at);
    named(&bench.check(true), "The journal is damaged: batch 0");
}

#[test]
fn a_damaged_root_page_is_named() {
    let bench = Bench::filled(Level::Single, 1);
    for at in bench.blocks(0, b"TSRROOT1") {
        bench.flip(0, at + 50);
    }
    let report = bench.check(true);
    named(&report, "The root page is damaged");
    assert_eq!(report.problems.len(), 1, "{report:?}");
}

#[test]
fn a_damaged_page_is_named_and_the_rest_is_checked() {
    // By tree and level: what it is called, and chunks verified all the same.
    let cases = [
        (
            (FIRST_VOLUME, 1, 1),
            "map page 1 on level 0 of tree 16",
            760 - 256,
        ),
        (
            (FIRST_VOLUME + 1, 1, 0),
            "map page 0 on level 0 of tree 17",
            740,
        ),
        ((1, 1, 1), "(catalogue)", 0),
    ];
    let bench = Bench::filled(Level::Single, 1);
    let appended = bench.appended();
    for ((tree, level, index), name, chunks) in cases {
        let of_page = |record: &&SummaryRecord| {
            let owner = record.owner;
            (owner.tree, owner.level, owner.index) == (tree, level, index)
        };
        let Some(newest) = appended.iter().rfind(of_page) else {
            panic!("there is no such page: {name}");
        };
        assert_eq!(newest.entry.kind, EntryKind::Page);
        bench.flip(0, place(newest) + 7);
        let report = bench.check(true);
        named(&report, name);
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(report.chunks_checked, chunks, "{report:?}");
        bench.flip(0, place(newest) + 7);
    }
    assert_eq!(bench.check(true).problems, Vec::<String>::new());
}

#[test]
fn a_damaged_summary_is_named() {
    let bench = Bench::filled(Level::Single, 1);
    // One at the end of its own segment, one in the map stream.
    let own = |at: u64, block: &SummaryBlock| {
        (at - SLOTS_OFFSET) / SEGMENT_BYTES == u64::from(block.id.segment.0)
    };
    let blocks = bench.summaries();
    let of_data = |block: &SummaryBlock| {
        block
            .records
            .iter()
            .any(|r| r.owner.level == 0 && r.owner.tree >= FIRST_VOLUME)
    };
    let sealed = blocks
        .iter()
        .find(|(at, block)| own(*at, block) && of_data(block))
        .unwrap();
    let open = blocks
        .iter()
        .rfind(|(at, block)| !own(*at, block) && of_data(block))
        .unwrap();
    for (at, block) in [sealed, open] {
        bench.flip(0, at + 300);
        let report = bench.check(true);
        let number = block.number;
        named(
            &report,
            &format!(
                "Block {number} of the summary of segment {}",
                block.id.segment.0
            ),
        );
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(
            report.chunks_checked, 760,
            "chunks are verified by checksum then"
        );
        bench.flip(0, at + 300);
    }
}

#[test]
fn a_damaged_chunk_is_named_only_where_data_is_read() {
    let bench = Bench::filled(Level::Single, 1);
    let appended = bench.appended();
    let of_chunk = |volume: u64, index: u64| {
        let owned = |r: &&SummaryRecord| {
            r.owner.tree == volume && r.owner.level == 0 && r.owner.index == index
        };
        *appended.iter().find(owned).unwrap()
    };
    let cases = [
        (
            of_chunk(FIRST_VOLUME, 5),
            "Chunk 5 of volume a ",
            EntryKind::Raw,
        ),
        (
            of_chunk(FIRST_VOLUME, 3038),
            "Chunk 3038 of volume a ",
            EntryKind::Lz4,
        ),
        (
            of_chunk(FIRST_VOLUME + 1, 19),
            "Chunk 19 of volume b ",
            EntryKind::Raw,
        ),
    ];
    for (record, name, kind) in cases {
        assert_eq!(record.entry.kind, kind);
        bench.flip(0, place(&record) + 3);
        assert_eq!(bench.check(false).problems, Vec::<String>::new());
        let report = bench.check(true);
        named(&report, name);
        named(&report, "no copy verifies");
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(report.chunks_checked, 760);
        bench.flip(0, place(&record) + 3);
    }
}

#[test]
fn damage_that_redundancy_makes_good_is_named_as_such() {
    let bench = Bench::filled(Level::Raid5, 4);
    let chunk = &pattern(1, CHUNK)[..];
    let hit = (0..4).find_map(|m| Some((m, *bench.blocks(m, chunk).first()?)));
    let (member, at) = hit.unwrap();
    bench.flip(member, at + 9);
    let report = bench.check(true);
    named(
        &report,
        &format!("is damaged on member {member}; the redundancy still has it"),
    );
    named(&report, "Chunk 0 of volume a ");
    assert_eq!(report.problems.len(), 1, "{report:?}");
    // Another member's block of the same stripe: now it is beyond RAID 5.
    let other = (0..4).find(|m| *m != member).unwrap();
    bench.flip(other, at + 9);
    named(&bench.check(true), "no copy verifies");
}

#[test]
fn a_pool_in_use_or_missing_is_refused() {
    let bench = Bench::new(Level::Single, 1);
    let nowhere = Path::new("/nonexistent/pool");
    assert!(Pool::check(nowhere, false, IoChoice::Threads, &Stages::default()).is_err());
    let _held = bench.open();
    let refused = Pool::check(&bench.pool, false, IoChoice::Threads, &Stages::default());
    assert_eq!(refused.unwrap_err().kind(), tessera_engine::ErrorKind::Busy);
}
