//! A mounted file against a plain file: the same random operations, the same
//! results, the same bytes, across syncs, remounts and kills. Seeded.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use common::{
    TestPool,
    mount::{Mounted, can_mount, write_file},
};
use rustix::{
    fs::{FallocateFlags, SeekFrom, XattrFlags},
    process::Signal,
};

/// The longest the file gets.
const LENGTH_MAX: u64 = 24 << 20;
const OPERATIONS: u32 = 400;

/// xorshift64*: the same everywhere from the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Small and large lengths alike, some aligned.
    fn length(&mut self) -> u64 {
        let bits = 1 + self.below(21);
        let length = 1 + self.below(1 << bits);
        if self.below(3) == 0 {
            length.next_multiple_of(4096)
        } else {
            length
        }
    }

    fn offset(&mut self, size: u64) -> u64 {
        let offset = self.below(size);
        if self.below(2) == 0 {
            offset / 4096 * 4096
        } else {
            offset
        }
    }

    /// Bytes that never were there before, or those of an earlier write.
    fn fill(&mut self, bytes: &mut [u8]) {
        let mut state = if self.below(3) == 0 {
            7
        } else {
            self.next() | 1
        };
        for word in bytes.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
    }
}

struct Run {
    seed: u64,
    random: Random,
    ours: File,
    plain: File,
    path: PathBuf,
    /// The file was created by the mount and is still open from then: it grows
    /// by writes beyond its end.
    grows: bool,
}

impl Run {
    #[track_caller]
    fn context(&self, step: u32, what: &str) -> String {
        format!("seed {}, step {step}: {what}", self.seed)
    }

    fn size(&self) -> u64 {
        self.plain.metadata().unwrap().len()
    }

    fn step(&mut self, step: u32) {
        let size = self.size();
        match self.random.below(16) {
            0..=4 => self.write(step, size),
            5..=8 => {
                let (at, length) = (self.random.offset(size + 4096), self.random.length());
                self.compare(step, at, length);
            }
            9 | 10 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.allocate(step, size, flags);
            }
            11 => {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                self.allocate(step, size, flags);
            }
            12 | 13 => {
                let wanted = self.random.offset(LENGTH_MAX);
                for file in [&self.ours, &self.plain] {
                    let done = file.set_len(wanted);
                    done.unwrap_or_else(|error| {
                        panic!("{}", self.context(step, &format!("truncate: {error}")))
                    });
                }
            }
            14 => self.ours.sync_all().unwrap(),
            _ => self.holes(step, size),
        }
        let ours = self.ours.metadata().unwrap().len();
        assert_eq!(ours, self.size(), "{}", self.context(step, "size"));
    }

    fn write(&mut self, step: u32, size: u64) {
        let mut bytes = vec![0; usize::try_from(self.random.length()).unwrap()];
        self.random.fill(&mut bytes);
        let limit = if self.grows { LENGTH_MAX } else { size };
        let offset = self.random.offset(limit);
        let room = usize::try_from(limit - offset).unwrap();
        bytes.truncate(room);
        for file in [&self.ours, &self.plain] {
            file.write_all_at(&bytes, offset).unwrap_or_else(|error| {
                panic!("{}", self.context(step, &format!("write: {error}")))
            });
        }
        self.compare(step, offset.saturating_sub(100), bytes.len() as u64 + 200);
    }

    fn allocate(&mut self, step: u32, size: u64, flags: FallocateFlags) {
        let (offset, length) = (self.random.offset(size + 1), self.random.length());
        for file in [&self.ours, &self.plain] {
            rustix::fs::fallocate(file, flags, offset, length).unwrap_or_else(|error| {
                panic!("{}", self.context(step, &format!("{flags:?}: {error}")))
            });
        }
        self.compare(step, offset.saturating_sub(100), length + 200);
    }

    fn compare(&self, step: u32, offset: u64, length: u64) {
        let read = |file: &File| {
            let mut bytes = vec![0xa5; usize::try_from(length).unwrap()];
            let mut got = 0;
            loop {
                match file
                    .read_at(&mut bytes[got..], offset + got as u64)
                    .unwrap()
                {
                    0 => break,
                    more => got += more,
                }
            }
            bytes.truncate(got);
            bytes
        };
        let (ours, plain) = (read(&self.ours), read(&self.plain));
        assert_eq!(ours.len(), plain.len(), "{}", self.context(step, "read"));
        if let Some(at) = (0..ours.len()).find(|&at| ours[at] != plain[at]) {
            panic!(
                "{}",
                self.context(step, &format!("differs at {}", offset + at as u64))
            );
        }
    }

    /// Where there is said to be nothing, there is nothing.
    fn holes(&mut self, step: u32, size: u64) {
        let mut at = self.random.offset(size);
        for _ in 0..8 {
            let Ok(hole) = rustix::fs::seek(&self.ours, SeekFrom::Hole(at)) else {
                return;
            };
            let end = match rustix::fs::seek(&self.ours, SeekFrom::Data(hole)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => size,
                Err(error) => panic!("{}", self.context(step, &error.to_string())),
            };
            assert!(
                at <= hole && hole <= end && end <= size,
                "{}",
                self.context(step, &format!("hole {hole}..{end} of {size}"))
            );
            let length = usize::try_from((end - hole).min(1 << 20)).unwrap();
            let mut bytes = vec![0xa5; length];
            self.plain.read_exact_at(&mut bytes, hole).unwrap();
            assert!(
                bytes.iter().all(|byte| *byte == 0),
                "{}",
                self.context(step, &format!("data in the hole {hole}..{end}"))
            );
            at = end;
        }
    }

    fn compare_all(&self, step: u32) {
        let size = self.size();
        let ours = self.ours.metadata().unwrap().len();
        assert_eq!(ours, size, "{}", self.context(step, "size"));
        self.compare(step, 0, size + 1);
    }

    fn reopen(&mut self) {
        self.ours = write_file(&self.path);
        let shrink = rustix::fs::setxattr(
            &self.path,
            "user.tessera.shrink",
            b"yes",
            XattrFlags::empty(),
        );
        shrink.unwrap();
        self.grows = false;
    }
}

fn run(seed: u64) {
    let pool = TestPool::raid5();
    let plain = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(pool.root.path().join("plain"))
        .unwrap();
    let mut mounted = Mounted::start(&pool, &[]);
    let path = mounted.file("model");
    let ours = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let mut run = Run {
        seed,
        random: Random::new(seed),
        ours,
        plain,
        path,
        grows: true,
    };
    for step in 0..OPERATIONS {
        run.step(step);
        // A new file first, then a volume; then a stop, then a kill.
        match step * 4 / OPERATIONS {
            _ if step % (OPERATIONS / 4) != OPERATIONS / 4 - 1 => {}
            0 => run.reopen(),
            1 => {
                run.ours = File::open("/dev/null").unwrap();
                mounted.stop(Signal::TERM);
                mounted = Mounted::start(&pool, &[]);
                run.reopen();
            }
            _ => {
                run.ours.sync_all().unwrap();
                mounted.kill();
                run.ours = File::open("/dev/null").unwrap();
                mounted = Mounted::start(&pool, &[]);
                run.reopen();
            }
        }
        if step % (OPERATIONS / 4) == OPERATIONS / 4 - 1 {
            run.compare_all(step);
        }
    }
    drop(run);
    mounted.stop(Signal::TERM);
    assert_eq!(pool.run("pool", "check", &["--data"]).code, Some(0));
}

#[test]
fn random_operations_do_to_a_mounted_file_what_they_do_to_a_plain_one() {
    if !can_mount(&[]) {
        return;
    }
    // TESSERA_SEED replays one.
    match std::env::var("TESSERA_SEED") {
        Ok(seed) => run(seed.parse().unwrap()),
        Err(_) => (1..=4).for_each(run),
    }
}
