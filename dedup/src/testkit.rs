//! Small pools on simulated devices with segments of known contents.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tessera_raid::{
    Array, CreateSpec, LayoutId, Level, MemoryWitness, OpenOptions, Placement, SegmentId, Sizes,
    SlotIndex, StripeWrite,
    device::{AlignedBuf, sim::SimWorld},
};

use crate::{
    Compressor, Entry, EntryKind, Generation, SegmentDirectory, SegmentFacts, SummaryPlace,
    fingerprint, place,
    summary::{Owner, SUMMARY_BLOCK_BYTES, Summary, SummaryRecord, blocks_for, encode_blocks},
};

const DEVICE_BYTES: u64 = 3 << 20;
/// Superblocks and journal lie before.
const SLOTS_OFFSET: u64 = 1 << 20;

/// A pool of a few segments of 256 KiB.
pub(crate) struct TestPool {
    pub(crate) world: SimWorld,
    pub(crate) array: Arc<Array>,
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) directory: Arc<TestDirectory>,
}

/// A directory that does as it is told.
#[derive(Default)]
pub(crate) struct TestDirectory {
    pub(crate) facts: Mutex<HashMap<SegmentId, SegmentFacts>>,
}

impl TestDirectory {
    pub(crate) fn change(&self, segment: SegmentId, change: impl FnOnce(&mut SegmentFacts)) {
        change(self.facts.lock().get_mut(&segment).unwrap());
    }

    pub(crate) fn free(&self, segment: SegmentId) {
        self.facts.lock().remove(&segment);
    }
}

impl SegmentDirectory for TestDirectory {
    fn facts(&self, segment: SegmentId) -> Option<SegmentFacts> {
        self.facts.lock().get(&segment).cloned()
    }
}

/// Incompressible bytes that follow from the seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Compressible bytes that follow from the seed.
pub(crate) fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut out = noise(seed, length / 8);
    out.resize(length, b'-');
    out
}

pub(crate) fn placement(segment: SegmentId) -> Placement {
    Placement::equal(LayoutId(0), SlotIndex(segment.0))
}

impl TestPool {
    pub(crate) fn new(level: Level, width: usize) -> Self {
        const UNIT: u32 = 16 << 10;
        const SEGMENT: u32 = 256 << 10;
        let world = SimWorld::new(7);
        let paths: Vec<PathBuf> = (0..width).map(|n| format!("disk{n}").into()).collect();
        for path in &paths {
            world.add_device(path, DEVICE_BYTES);
        }
        let spec = CreateSpec {
            level,
            stripe_unit_bytes: UNIT,
            members: paths.clone(),
            force: false,
            sizes: Sizes {
                segment_data_bytes_target: SEGMENT,
                journal_bytes: Some(64 << 10),
            },
            stall_limit: Duration::ZERO,
        };
        let witness = MemoryWitness::with_seed(1);
        let backend = world.backend();
        Array::create(backend.clone(), &spec, b"", Box::new(witness.clone()))
            .unwrap()
            .close();
        let options = OpenOptions {
            lock_patience: Duration::ZERO,
            read_errors_per_hour: u32::MAX,
            ..OpenOptions::default()
        };
        let array = Array::open(backend, &paths, Box::new(witness), &options).unwrap();
        array.commit(b"", false).unwrap();
        Self {
            world,
            array: Arc::new(array),
            paths,
            directory: Arc::default(),
        }
    }

    /// Packs the chunks into a segment with its summary at the end, and makes
    /// it known to the directory.
    pub(crate) fn write_segment(
        &self,
        segment: u32,
        generation: u64,
        chunks: &[Vec<u8>],
        hashed: bool,
    ) -> Arc<Summary> {
        let (segment, generation) = (SegmentId(segment), Generation(generation));
        let mut data = vec![0; self.array.segment_data_bytes() as usize];
        let mut compressor = Compressor::new();
        let mut records = Vec::new();
        let mut position = 0;
        for (index, chunk) in (0u64..).zip(chunks) {
            let (kind, stored) = match compressor.compress(chunk) {
                Some(stored) => (EntryKind::Lz4, stored.to_vec()),
                None => (EntryKind::Raw, chunk.clone()),
            };
            let length = u32::try_from(stored.len()).unwrap();
            position = place(position, kind, length);
            data[position as usize..][..stored.len()].copy_from_slice(&stored);
            records.push(SummaryRecord {
                fingerprint: hashed.then(|| fingerprint(chunk)),
                entry: Entry {
                    kind,
                    segment,
                    position,
                    stored: length,
                    generation: generation.low(),
                    checksum: crc32c::crc32c(&stored),
                },
                logical: u32::try_from(chunk.len()).unwrap(),
                owner: Owner {
                    tree: 1,
                    index,
                    level: 0,
                },
            });
            position += length;
        }
        let summary = Summary {
            pool: self.array.uuid(),
            segment,
            generation,
            records,
        };
        let blocks = blocks_for(chunks.len());
        let offset = data.len() - blocks * SUMMARY_BLOCK_BYTES;
        assert!(position as usize <= offset, "too many chunks for a segment");
        data[offset..].copy_from_slice(&encode_blocks(&summary));
        let stripe_bytes = self.array.stripe_data_bytes() as usize;
        let writes: Vec<StripeWrite> = (0u32..)
            .zip(data.chunks(stripe_bytes))
            .map(|(stripe, data)| StripeWrite {
                placement: placement(segment),
                stripe,
                data: Arc::new(AlignedBuf::copy_of(data)),
            })
            .collect();
        self.array.write_stripes(&writes).unwrap();
        self.array.sync().unwrap();
        let facts = SegmentFacts {
            generation,
            placement: placement(segment),
            frozen: false,
            summary: Some(SummaryPlace {
                segment,
                placement: placement(segment),
                offset: u32::try_from(offset).unwrap(),
                blocks: u32::try_from(blocks).unwrap(),
            }),
        };
        self.directory.facts.lock().insert(segment, facts);
        Arc::new(summary)
    }

    /// Where members hold exactly these bytes.
    pub(crate) fn find(&self, bytes: &[u8]) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        for path in &self.paths {
            let image = self
                .world
                .peek(path, SLOTS_OFFSET, (DEVICE_BYTES - SLOTS_OFFSET) as usize);
            let word = |bytes: &[u8]| u64::from_ne_bytes(bytes[..8].try_into().unwrap());
            let first = word(bytes);
            for at in 0..=image.len() - bytes.len() {
                if word(&image[at..at + 8]) == first && image[at..].starts_with(bytes) {
                    found.push((path.clone(), SLOTS_OFFSET + at as u64));
                }
            }
        }
        found
    }

    /// Flips a bit of a member.
    pub(crate) fn rot(&self, path: &Path, offset: u64) {
        let byte = self.world.peek(path, offset, 1)[0];
        self.world.poke(path, offset, &[byte ^ 0x10]);
    }

    /// Read operations of all members so far.
    pub(crate) fn reads(&self) -> u64 {
        self.paths
            .iter()
            .map(|path| self.world.counters(path).reads)
            .sum()
    }
}
