//! Reads, writes, discards and zeroing of a run, and what the model learns from
//! their answers.

use tessera_engine::disk::{DiskError, ExtentKind, Operation, Request};

use super::{
    driver::Run,
    hazards::Mode,
    model::{Step, write_steps, zero_steps},
    noise,
};

impl Run {
    pub(super) fn contents(&mut self, length: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(length + 4096);
        while data.len() < length {
            match self.rng.below(8) {
                0 => data.extend_from_slice(&[0; 4096]),
                1..3 => {
                    let mut chunk = noise(self.rng.next(), 64 + self.rng.below(1500) as usize);
                    chunk.resize(4096, 7);
                    data.extend(chunk);
                }
                3..5 => data.extend(noise(self.rng.below(12), 4096)),
                _ => data.extend(noise(self.rng.next(), 4096)),
            }
        }
        data.truncate(length);
        data
    }

    pub(super) fn write_chunks(&mut self, chunks: u64) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let chunk = self.chunk_of(&name);
        let whole = size / chunk;
        if whole == 0 {
            return;
        }
        let chunks = chunks.min(whole);
        let offset = self.rng.below(whole - chunks + 1) * chunk;
        let data = self.contents((chunks * chunk) as usize);
        self.write(&name, offset, data);
    }

    pub(super) fn write_bytes(&mut self) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let length = 1 + self.rng.below(size.min(14_000));
        let offset = self.rng.below(size - length + 1);
        let data = self.contents(length as usize);
        self.write(&name, offset, data);
    }

    fn write(&mut self, name: &str, offset: u64, data: Vec<u8>) {
        self.note(format!("write {name} {offset}+{}", data.len()));
        let steps = write_steps(name, offset, &data, self.chunk_of(name));
        self.request(
            name,
            Operation::Write {
                offset,
                data: &data,
            },
            steps,
        );
    }

    pub(super) fn zero(&mut self, discard: bool) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let mut length = 1 + self.rng.below(size.min(100_000));
        let mut offset = self.rng.below(size - length + 1);
        if self.rng.chance(2) {
            offset = offset / 4096 * 4096;
            length = (length.div_ceil(4096) * 4096).min(size - offset);
        }
        self.note(format!("zero {name} {offset}+{length}, discard {discard}"));
        let steps = zero_steps(&name, offset, length, size, self.chunk_of(&name));
        let keep_allocated = self.rng.chance(2);
        let operation = if discard {
            Operation::Discard { offset, length }
        } else {
            Operation::WriteZeroes {
                offset,
                length,
                keep_allocated,
            }
        };
        self.request(&name, operation, steps);
    }

    fn request(&mut self, name: &str, operation: Operation<'_>, steps: Vec<Step>) {
        let discard = matches!(operation, Operation::Discard { .. });
        let disk = self.pool().disk(name).unwrap();
        let mut batch = [Request::new(operation)];
        disk.execute(&mut batch);
        let result = batch[0].result.clone();
        drop(disk);
        self.settle(result, discard, steps);
    }

    /// What the model learns from the answer to a request.
    pub fn settle(&mut self, result: Result<(), DiskError>, discard: bool, steps: Vec<Step>) {
        match result {
            // Its odd ends may be skipped where there is little space.
            Ok(()) if discard => self.resolve(steps),
            Ok(()) => self.model.begin(steps),
            Err(_) if !self.world.sim.has_power() => {
                // Where something is unreadable a piece may have failed before
                // the cut while later ones took effect.
                if !self.unknown.is_empty() || self.silent_faults > 0 {
                    steps.iter().for_each(|step| self.is_unknown(step));
                }
                self.model.begin_failed(steps);
            }
            Err(DiskError::NoSpace) => {
                self.met_no_space();
                self.resolve(steps);
            }
            // Each of its pieces by itself took effect or did not.
            Err(_) if self.excused("a request") => self.resolve(steps),
            Err(error) => panic!("a request failed: {error}; {:?}", self.pool().failure()),
        }
    }

    /// Finds out which pieces of a request that failed took effect.
    fn resolve(&mut self, steps: Vec<Step>) {
        for (number, step) in steps.iter().enumerate() {
            let (name, offset, expected) = step.contents();
            let mut found = vec![0; expected.len()];
            let disk = self.pool().disk(name).unwrap();
            let mut batch = [Request::new(Operation::Read {
                offset,
                buffer: &mut found,
            })];
            disk.execute(&mut batch);
            let failed = batch[0].result.is_err();
            drop(disk);
            if failed && !self.world.sim.has_power() {
                // Not known, nor what becomes of the rest.
                return self.model.begin_failed(steps[number..].to_vec());
            }
            if failed && self.excused("looking") {
                self.is_unknown(step);
                continue;
            }
            assert!(!failed, "a read failed");
            let old = &self.model.now[name][offset as usize..][..found.len()];
            if found == *expected {
                self.model.begin(vec![step.clone()]);
            } else if self.unknown.is_empty() {
                let differs = |other: &[u8]| found.iter().zip(other).position(|(a, b)| a != b);
                assert!(
                    found == old,
                    "a failed request left something else behind in {name} at {offset}+{}: \
                     neither what was there (byte {:?}) nor what was to be (byte {:?})",
                    found.len(),
                    differs(old),
                    differs(&expected)
                );
            }
        }
    }

    /// Beyond the redundancy: whether a step took effect cannot be told.
    fn is_unknown(&mut self, step: &Step) {
        let (name, offset, bytes) = step.contents();
        let blocks = offset / 4096..(offset + bytes.len() as u64).div_ceil(4096);
        self.unknown
            .extend(blocks.map(|block| (name.to_owned(), block as usize)));
    }

    pub(super) fn read(&mut self) {
        let Some((name, size)) = self.some_readable() else {
            return;
        };
        let length = 1 + self.rng.below(size.min(70_000));
        let offset = self.rng.below(size - length + 1);
        self.note(format!("read {name} {offset}+{length}"));
        let mut buffer = vec![0xee; length as usize];
        let disk = self.pool().disk(&name).unwrap();
        let mut batch = [Request::new(Operation::Read {
            offset,
            buffer: &mut buffer,
        })];
        disk.execute(&mut batch);
        let result = batch[0].result.clone();
        drop(disk);
        self.compare(&name, offset, &buffer, result);
    }

    /// A read gives what was written, or fails where failing is allowed.
    pub(super) fn compare(
        &mut self,
        name: &str,
        offset: u64,
        buffer: &[u8],
        result: Result<(), DiskError>,
    ) {
        if result.is_err() {
            if self.world.sim.has_power() {
                assert!(self.mode == Mode::Beyond, "a read failed: {result:?}");
                self.counts.errors += 1;
            }
            return;
        }
        let expected = &self.model.now[name][offset as usize..][..buffer.len()];
        let first = offset as usize / 4096;
        for (number, (found, expected)) in blocks(offset, buffer)
            .zip(blocks(offset, expected))
            .enumerate()
        {
            assert!(
                found == expected || self.unknown.contains(&(name.to_owned(), first + number)),
                "read {name} {offset}+{} returned other bytes",
                buffer.len()
            );
        }
        self.counts.verified += buffer.len() as u64;
    }

    pub(super) fn extents(&mut self) {
        let Some((name, size)) = self.some_readable() else {
            return;
        };
        let disk = self.pool().disk(&name).unwrap();
        match disk.extents(0, size, usize::MAX) {
            Ok(extents) => {
                let mut at = 0;
                for extent in extents {
                    let range = at as usize..(at + extent.length) as usize;
                    let data = &self.model.now[&name][range];
                    let zero = extent.kind != ExtentKind::Data;
                    assert!(
                        !zero || data.iter().all(|byte| *byte == 0) || !self.unknown.is_empty(),
                        "{name} has data at {at}"
                    );
                    at += extent.length;
                }
                assert_eq!(at, size, "the extents cover the volume");
            }
            Err(error) => assert!(
                !self.world.sim.has_power() || self.mode == Mode::Beyond,
                "extents failed: {error}"
            ),
        }
    }
}

/// The pieces of `bytes` that lie in different blocks of a volume.
pub fn blocks(offset: u64, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let head = bytes.len().min((4096 - offset as usize % 4096) % 4096);
    let (head, rest) = bytes.split_at(head);
    (!head.is_empty())
        .then_some(head)
        .into_iter()
        .chain(rest.chunks(4096))
}
