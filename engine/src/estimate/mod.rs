//! What a pool would make of data that it does not have yet.
//!
//! The data goes by once, chunk by chunk, through the same zero test, the same
//! fingerprint and the same compressor as a write to a volume. What is kept is
//! a table of fingerprints; when it has no more room, only those below a
//! threshold stay, which halves each time that happens:
//!
//! ```text
//!   all fingerprints   0 ------------------------------------ 2^64
//!   kept               0 -------- threshold
//!                      one in 2^halvings of all distinct chunks,
//!                      whichever they are and however often they come
//! ```
//! Fingerprints are uniform, so the number kept, times 2^halvings, estimates
//! the number of distinct chunks, with a relative standard error of
//! sqrt((1 - p) / kept) for a share p kept. The bounds given are `SIGMAS` of
//! those. Without a halving nothing is estimated: the counts are exact.
//!
//! Memory is what [`Estimator::new`] is told, whatever the amount of data.

mod table;

use serde::{Deserialize, Serialize};
use tessera_dedup::{
    Compressor, ENTRY_BYTES, EntryKind, Fingerprint, PACK_BLOCK, fingerprint_many, is_zero, place,
    summary::SUMMARY_BLOCK_BYTES,
};

use self::table::Table;
use crate::catalogue::chunk_size_is_valid;

/// Standard errors within which an estimate is said to be: 997 of 1000 are.
const SIGMAS: f64 = 3.0;
/// The least memory of an estimator, in bytes: for bounds of a few percent.
pub const ESTIMATE_MEMORY_MIN: u64 = 1 << 20;
/// Bytes of an entry in a map, with its part of the pages above.
const MAP_BYTES_PER_CHUNK: f64 = ENTRY_BYTES as f64 * 256.0 / 255.0;
/// Bytes that describe a stored chunk in its segment's summary.
const SUMMARY_BYTES_PER_CHUNK: f64 =
    SUMMARY_BLOCK_BYTES as f64 / tessera_dedup::summary::RECORDS_PER_BLOCK as f64;
/// Index memory with which the filter still answers for a chunk: ten bits, and
/// the filter has a quarter of the memory (docs/index.md).
const INDEX_MEMORY_PER_CHUNK: f64 = 4.0 * 10.0 / 8.0;
/// A key of 8 and a value of 11 bytes, and RocksDB's part.
const INDEX_DISK_PER_CHUNK: f64 = 24.0;

/// What is predicted for one chunk size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The chunk size.
    pub chunk_bytes: u32,
    /// Bytes that volumes would map: all but zeroes.
    pub logical_bytes: u64,
    /// Distinct chunks.
    pub unique_chunks: u64,
    /// Bytes of them.
    pub unique_bytes: u64,
    /// The same after compression.
    pub stored_bytes: u64,
    /// Bytes on the members before parity: stored chunks as they are packed,
    /// maps and summaries.
    pub used_bytes: u64,
    /// Logical by unique bytes.
    pub dedup_ratio: f64,
    /// Unique by stored bytes.
    pub compression_ratio: f64,
    /// Logical by used bytes.
    pub savings_ratio: f64,
    /// One in so many distinct chunks was looked at; 1: all, so the counts are
    /// exact.
    pub sampled_one_in: u64,
    /// The dedup ratio is within this part of the estimate (997 of 1000 times).
    pub dedup_error: f64,
    /// The same of the compression ratio.
    pub compression_error: f64,
    /// Memory of the index with which old duplicates are still found.
    pub index_memory_bytes: u64,
    /// Size of the index on disk.
    pub index_disk_bytes: u64,
}

/// Looks at data in chunks of one size.
#[derive(Debug)]
pub struct Estimator {
    chunk_bytes: usize,
    table: Table,
    compressor: Compressor,
    fingerprints: Vec<Fingerprint>,
    /// Chunks that are not zero.
    chunks: u64,
    /// Where the next chunk that is new goes in a segment without an end.
    position: u64,
    /// Bytes that alignment has cost the chunks in the table's sample.
    padding: u64,
    /// Chunks that were packed, and their bytes: those new when they came.
    packed: u64,
}

impl Estimator {
    /// With a chunk size of a volume and at least [`ESTIMATE_MEMORY_MIN`];
    /// `None` for others.
    pub fn new(chunk_bytes: u32, memory_bytes: u64) -> Option<Self> {
        if !chunk_size_is_valid(chunk_bytes) || memory_bytes < ESTIMATE_MEMORY_MIN {
            return None;
        }
        Some(Self {
            chunk_bytes: chunk_bytes as usize,
            table: Table::new(usize::try_from(memory_bytes).unwrap_or(usize::MAX)),
            compressor: Compressor::new(),
            fingerprints: Vec::new(),
            chunks: 0,
            position: 0,
            padding: 0,
            packed: 0,
        })
    }

    /// Looks at data that begins at a chunk's boundary of its volume, as much
    /// as a client would write at once: about 1 MiB. An odd end is a chunk that goes on with zeroes: it is the volume's.
    pub fn feed(&mut self, data: &[u8]) {
        let chunks = data.chunks_exact(self.chunk_bytes);
        let odd = chunks.remainder();
        self.feed_chunks(chunks);
        if !odd.is_empty() {
            let mut last = odd.to_vec();
            last.resize(self.chunk_bytes, 0);
            self.feed_chunks([last.as_slice()].into_iter());
        }
    }

    fn feed_chunks<'a>(&mut self, chunks: impl Iterator<Item = &'a [u8]>) {
        let stored: Vec<&[u8]> = chunks.filter(|chunk| !is_zero(chunk)).collect();
        self.chunks += stored.len() as u64;
        let mut fingerprints = std::mem::take(&mut self.fingerprints);
        fingerprints.clear();
        fingerprint_many(&stored, &mut fingerprints);
        // As in a write: all are looked for before any is stored, so what comes
        // twice in one is compressed twice, which the compressor remembers.
        let wanted: Vec<(&[u8], u64)> = stored
            .into_iter()
            .zip(fingerprints.iter().map(Fingerprint::prefix))
            .filter(|(_, prefix)| self.table.wants(*prefix))
            .collect();
        for (chunk, prefix) in wanted {
            let smaller = self.compressor.compress(chunk).map(<[u8]>::len);
            if !self.table.wants(prefix) {
                continue;
            }
            self.pack(smaller);
            let length = smaller.unwrap_or(self.chunk_bytes);
            // At most 64 KiB.
            self.table
                .insert(prefix, u32::try_from(length).unwrap_or(u32::MAX));
        }
        self.fingerprints = fingerprints;
    }

    /// Packs a new chunk behind those before it. In a sample its neighbours
    /// are others than in the pool, but they are as long on average.
    fn pack(&mut self, smaller: Option<usize>) {
        let (kind, length) = match smaller {
            Some(length) => (EntryKind::Lz4, length),
            None => (EntryKind::Raw, self.chunk_bytes),
        };
        // Both are less than 64 KiB, and only the place within a block counts.
        let within = u32::try_from(self.position % u64::from(PACK_BLOCK)).unwrap_or(0);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let start = place(within, kind, length);
        self.padding += u64::from(start - within);
        self.position += u64::from(start - within) + u64::from(length);
        self.packed += 1;
    }

    /// What all data so far gives.
    pub fn estimate(&self) -> Estimate {
        let sample = self.table.sample();
        let kept = sample.count as f64;
        let share = self.table.share();
        let logical_bytes = self.chunks * self.chunk_bytes as u64;
        let unique = (kept / share).min(self.chunks as f64);
        let mean = if kept > 0.0 { sample.sum / kept } else { 0.0 };
        let stored = unique * mean;
        let padding = if self.packed > 0 {
            unique * (self.padding as f64 / self.packed as f64)
        } else {
            0.0
        };
        let unique_bytes = unique * self.chunk_bytes as f64;
        let used = stored
            + padding
            + self.chunks as f64 * MAP_BYTES_PER_CHUNK
            + unique * SUMMARY_BYTES_PER_CHUNK;
        let missing = 1.0 - share;
        let error_of = |relative_variance: f64| {
            if missing > 0.0 && kept > 1.0 {
                SIGMAS * (missing * relative_variance / kept).sqrt()
            } else {
                0.0
            }
        };
        let spread = if mean > 0.0 && kept > 1.0 {
            ((sample.squares / kept - mean * mean).max(0.0)) / (mean * mean)
        } else {
            0.0
        };
        Estimate {
            chunk_bytes: u32::try_from(self.chunk_bytes).unwrap_or(u32::MAX),
            logical_bytes,
            unique_chunks: unique.round() as u64,
            unique_bytes: unique_bytes.round() as u64,
            stored_bytes: stored.round() as u64,
            used_bytes: used.round() as u64,
            dedup_ratio: ratio(logical_bytes as f64, unique_bytes),
            compression_ratio: ratio(unique_bytes, stored),
            savings_ratio: ratio(logical_bytes as f64, used),
            sampled_one_in: (1.0 / share).round() as u64,
            dedup_error: error_of(1.0),
            compression_error: error_of(spread),
            index_memory_bytes: (unique * INDEX_MEMORY_PER_CHUNK).round() as u64,
            index_disk_bytes: (unique * INDEX_DISK_PER_CHUNK).round() as u64,
        }
    }
}

/// As a pool's status has it: 1 where there is nothing.
fn ratio(above: f64, below: f64) -> f64 {
    if above <= 0.0 || below <= 0.0 {
        1.0
    } else {
        above / below
    }
}

/// A larger chunk size is better than a smaller one that uses at least this
/// part of its space: it needs less memory and fewer operations.
const WORTH_SMALLER_CHUNKS: f64 = 0.97;

/// The chunk size to recommend: the one that uses the least space, unless a
/// larger one does nearly as well.
pub fn best_chunk_size(estimates: &[Estimate]) -> Option<u32> {
    let mut by_size: Vec<&Estimate> = estimates.iter().collect();
    by_size.sort_by_key(|one| std::cmp::Reverse(one.chunk_bytes));
    let mut best: Option<&Estimate> = None;
    for one in by_size {
        let better = best.is_none_or(|best| {
            (one.used_bytes as f64) < best.used_bytes as f64 * WORTH_SMALLER_CHUNKS
        });
        if better {
            best = Some(one);
        }
    }
    best.map(|one| one.chunk_bytes)
}

#[cfg(test)]
mod tests;
