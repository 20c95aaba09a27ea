//! Checking a pool while it is in use: the same verdict, and nobody is held off.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod common;

use std::{
    cell::{Cell, RefCell},
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use common::{
    noise,
    pools::{assert_holds, filled, request, stopped_check, write},
    world::{Scale, World, volume},
};
use tessera_engine::{
    api::{CheckReport, Compression, DedupMode, PoolSpec, VolumeSpec},
    disk::{Disk, Operation, Request},
    pool::{CheckObserver, IoChoice, Pool, PoolOptions},
};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 64 << 10,
    segments: 96,
    journal_bytes: 1 << 20,
};
const CHUNK: usize = 4096;

/// Does something when a check reaches a stage.
struct At<'a> {
    stage: &'a str,
    act: RefCell<Option<Box<dyn FnOnce() + 'a>>>,
}

impl<'a> At<'a> {
    fn new(stage: &'a str, act: impl FnOnce() + 'a) -> Self {
        Self {
            stage,
            act: RefCell::new(Some(Box::new(act))),
        }
    }
}

impl CheckObserver for At<'_> {
    fn progress(&self, stage: &str, _: u64, _: u64) {
        if stage == self.stage
            && let Some(act) = self.act.take()
        {
            act();
        }
    }
}

struct Silent;

impl CheckObserver for Silent {
    fn progress(&self, _: &str, _: u64, _: u64) {}
}

/// Cancels after so many questions.
struct Impatient(Cell<u32>);

impl CheckObserver for Impatient {
    fn progress(&self, _: &str, _: u64, _: u64) {}

    fn cancelled(&self) -> bool {
        self.0.set(self.0.get().saturating_sub(1));
        self.0.get() == 0
    }
}

fn assert_healthy(report: &CheckReport, context: &str) {
    assert_eq!(report.problems, Vec::<String>::new(), "{context}");
}

#[test]
fn what_is_freed_and_used_again_while_a_check_runs_is_no_problem() {
    for stage in [
        "segment table",
        "catalogue",
        "volume a",
        "summaries",
        "chunks",
    ] {
        let world = World::create(Level::Raid5, 3, SCALE, 3);
        let pool = world.open().unwrap();
        let mut state = filled(&pool, "a", 1 << 20);
        pool.create_volume(&volume("b", 1 << 20)).unwrap();
        state.insert("b".to_owned(), vec![0; 1 << 20].into());
        write(&pool, &mut state, "b", 0, 2, 1 << 20);
        let disturbed = Cell::new(false);
        let observer = At::new(stage, || {
            let discard = Operation::Discard {
                offset: 0,
                length: 1 << 20,
            };
            request(&pool, "b", discard).unwrap();
            request(
                &pool,
                "a",
                Operation::Discard {
                    offset: 0,
                    length: 1 << 20,
                },
            )
            .unwrap();
            while pool.reclaim().unwrap() {}
            // All of it is used again, so that whoever reads it now is wrong.
            for round in 0..24 {
                let data = noise(50 + round, 128 << 10);
                let offset = (round % 8) * (128 << 10);
                let operation = Operation::Write {
                    offset,
                    data: &data,
                };
                request(&pool, "a", operation).unwrap();
                pool.flush().unwrap();
                while pool.reclaim().unwrap() {}
            }
            disturbed.set(true);
        });
        let report = pool.check(true, &observer).unwrap();
        assert!(disturbed.get(), "{stage} was not reached");
        assert_healthy(&report, stage);
        let told = report.notes.iter().any(|note| note.contains("were freed"));
        assert!(told, "{stage}: {report:#?}");
        let after = pool.check(true, &Silent).unwrap();
        assert_healthy(&after, stage);
        assert!(after.notes.is_empty(), "{stage}: {after:#?}");
        assert!(after.chunks_checked >= 200, "{after:?}");
    }
}

#[test]
fn a_check_counts_the_same_as_one_of_the_stopped_pool() {
    for level in [Level::Raid1, Level::Raid6] {
        let world = World::create(level, 4, SCALE, 5);
        let pool = world.open().unwrap();
        let state = filled(&pool, "a", 1 << 20);
        let used = pool.check(true, &Silent).unwrap();
        assert_healthy(&used, level.name());
        assert_holds(&pool, &state, level.name());
        pool.close().unwrap();
        drop(pool);
        let stopped = stopped_check(&world);
        assert_eq!(used.superblocks_checked, stopped.superblocks_checked);
        assert_eq!(used.chunks_checked, stopped.chunks_checked);
        assert_eq!(used.bytes_checked, stopped.bytes_checked);
        assert!(used.pages_checked > 3 && used.pointers_checked > 100);
    }
}

#[test]
fn a_check_can_be_cancelled_and_ends_with_its_pool() {
    let world = World::create(Level::Raid1, 2, SCALE, 7);
    let pool = world.open().unwrap();
    filled(&pool, "a", 1 << 20);
    for patience in [1, 3] {
        let refused = pool.check(true, &Impatient(Cell::new(patience)));
        assert!(refused.unwrap_err().to_string().contains("cancelled"));
    }
    let closing = At::new("volume a", || pool.close().unwrap());
    let refused = pool.check(true, &closing).unwrap_err().to_string();
    assert!(refused.contains("closed"), "{refused}");
}

#[test]
fn a_pool_that_has_stopped_is_checked_as_far_as_it_got() {
    let world = World::create(Level::Raid5, 3, SCALE, 9);
    let pool = world.open().unwrap();
    filled(&pool, "a", 1 << 20);
    pool.checkpoint().unwrap();
    for member in 1..3 {
        world.sim.remove_device(&world.paths[member]);
    }
    let disk: Arc<dyn Disk> = pool.disk("a").unwrap();
    let data = noise(9, 256 << 10);
    let mut batch = [Request::new(Operation::Write {
        offset: 0,
        data: &data,
    })];
    disk.execute(&mut batch);
    let _stopped = pool.flush();
    let report = pool.check(true, &Silent).unwrap();
    assert!(!report.problems.is_empty(), "{report:?}");
}

struct Bench {
    _directory: tempfile::TempDir,
    directory: PathBuf,
    members: Vec<PathBuf>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = directory.path().join("pool");
        let members: Vec<PathBuf> = (0..3).map(|n| pool.join(format!("disk{n}.img"))).collect();
        let spec = PoolSpec {
            level: Level::Raid5,
            stripe_unit_bytes: 64 << 10,
            members: members.clone(),
            create_files_bytes: Some(32 << 20),
            force: false,
        };
        Pool::create(&pool, &spec, IoChoice::Threads).unwrap();
        Self {
            _directory: directory,
            directory: pool,
            members,
        }
    }

    fn open(&self, read_only: bool) -> Arc<Pool> {
        let options = PoolOptions {
            read_only,
            memory_bytes: 64 << 20,
            io: IoChoice::Threads,
        };
        Pool::open(&self.directory, &options).unwrap()
    }

    /// Flips a bit of the one place that begins with these bytes; the member.
    fn damage(&self, chunk: &[u8]) -> usize {
        let found = self.members.iter().enumerate().find_map(|(n, path)| {
            let bytes = fs::read(path).unwrap();
            let at = bytes.chunks(CHUNK).position(|block| block == chunk)?;
            Some((n, path, at * CHUNK))
        });
        let (member, path, at) = found.unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[chunk[7] ^ 0x10], at as u64 + 7)
            .unwrap();
        member
    }
}

fn flushed_write(disk: &Arc<dyn Disk>, offset: u64, data: &[u8]) {
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
    let (sender, receiver) = mpsc::channel();
    disk.flush(Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap(), Ok(()));
}

#[test]
fn damage_under_a_pool_in_use_is_named_and_clients_go_on() {
    let bench = Bench::new();
    let pool = bench.open(false);
    pool.create_volume(&VolumeSpec {
        name: "a".to_owned(),
        size_bytes: 64 << 20,
        chunk_bytes: 4096,
        dedup: DedupMode::Inline,
        compression: Compression::Lz4,
    })
    .unwrap();
    let disk = pool.catalog().open("a").unwrap();
    let data = noise(1, 4 << 20);
    flushed_write(&disk, 0, &data);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 0;
            while !done.load(Ordering::Acquire) {
                round += 1;
                let offset = (8 << 20) + (round % 20) * (256 << 10);
                flushed_write(&disk, offset, &noise(round, 256 << 10));
            }
            round
        });
        for _ in 0..4 {
            assert_healthy(&pool.check_in_use(true, &Silent).unwrap(), "in use");
        }
        done.store(true, Ordering::Release);
        assert!(writer.join().unwrap() > 0);
    });
    let member = bench.damage(&data[40 * CHUNK..41 * CHUNK]);
    let told = "Chunk 40 of volume a";
    let report = pool.check_in_use(true, &Silent).unwrap();
    let [problem] = report.problems.as_slice() else {
        panic!("{report:#?}");
    };
    assert!(problem.starts_with(told), "{problem}");
    assert!(
        problem.contains(&format!("on member {member}")),
        "{problem}"
    );
    // Without the chunks there is nothing to be said.
    assert_healthy(&pool.check_in_use(false, &Silent).unwrap(), "no data");
    pool.close().unwrap();
    // Both hold the members' locks.
    drop((disk, pool));
    let pool = bench.open(true);
    let report = pool.check_in_use(true, &Silent).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    pool.close().unwrap();
}
