//! The read path: entries from layers and pages, bytes from cache, stripes in
//! memory, or the members, verified.

use tessera_dedup::{ChunkRead, Entry};

use super::{engine::Engine, pages::Pages, volume::Volume};
use crate::{disk::DiskError, error::EngineError};

/// Bytes read from the members with one submission.
const ROUND_BYTES: usize = 4 << 20;

/// A read of one request of a batch.
pub(crate) struct ReadJob<'a, 'b> {
    pub(crate) offset: u64,
    pub(crate) buffer: &'a mut [u8],
    pub(crate) result: &'b mut Result<(), DiskError>,
}

impl Engine {
    /// Executes the reads of a batch: one look-up of all cold pages, one
    /// submission of all cold chunks. The caller holds an epoch guard.
    pub(crate) fn read_jobs(&self, volume: &Volume, jobs: &mut [ReadJob<'_, '_>]) {
        let mut from = 0;
        while from < jobs.len() {
            let mut bytes = 0;
            let mut fits = |job: &ReadJob<'_, '_>| {
                bytes += job.buffer.len();
                bytes <= ROUND_BYTES
            };
            let count = jobs[from..]
                .iter()
                .take_while(|job| fits(job))
                .count()
                .max(1);
            self.read_round(volume, &mut jobs[from..from + count]);
            from += count;
        }
    }

    fn read_round(&self, volume: &Volume, jobs: &mut [ReadJob<'_, '_>]) {
        let ranges: Vec<(u64, usize)> = jobs
            .iter()
            .map(|job| chunk_range(volume.chunk_bytes, job.offset, job.buffer.len()))
            .collect();
        let entries = match self.entries_of(volume, &ranges) {
            Ok(entries) => entries,
            Err(_) if jobs.len() > 1 => {
                // One damaged page must not fail the others' reads.
                for at in 0..jobs.len() {
                    self.read_round(volume, &mut jobs[at..=at]);
                }
                return;
            }
            Err(error) => {
                tracing::error!(volume = volume.id, %error, "Read failed");
                *jobs[0].result = Err(DiskError::Io(error.to_string()));
                return;
            }
        };
        let chunk_bytes = volume.chunk_bytes;
        let mut reads = Vec::with_capacity(entries.len());
        let mut owners = Vec::with_capacity(entries.len());
        let mut results = Vec::with_capacity(jobs.len());
        let mut entries = entries.into_iter();
        for (number, (job, (_, count))) in jobs.iter_mut().zip(&ranges).enumerate() {
            let ReadJob {
                offset,
                buffer,
                result,
            } = job;
            results.push(result);
            let mut rest: &mut [u8] = buffer;
            let mut within =
                u32::try_from(*offset % u64::from(chunk_bytes)).expect("less than a chunk");
            for entry in entries.by_ref().take(*count) {
                let length = rest.len().min((chunk_bytes - within) as usize);
                let (target, after) = rest.split_at_mut(length);
                rest = after;
                reads.push(ChunkRead::new(entry, chunk_bytes, within, target));
                owners.push(number);
                within = 0;
            }
        }
        self.reader.read(&mut reads);
        for (read, owner) in reads.into_iter().zip(owners) {
            if let Err(error) = read.outcome {
                tracing::error!(volume = volume.id, %error, "Read failed");
                **results[owner] = Err(DiskError::Io(error.to_string()));
            }
        }
    }

    /// The entries of several ranges of chunks, one after the other.
    fn entries_of(
        &self,
        volume: &Volume,
        ranges: &[(u64, usize)],
    ) -> Result<Vec<Entry>, EngineError> {
        let pages = Pages(&self.reader);
        if let [(first, count)] = ranges {
            return volume.entries(&pages, *first, *count);
        }
        volume.entries_in(&pages, ranges)
    }
}

/// The first chunk of a byte range and how many chunks it touches.
pub(crate) fn chunk_range(chunk_bytes: u32, offset: u64, length: usize) -> (u64, usize) {
    let chunk = u64::from(chunk_bytes);
    if length == 0 {
        return (offset / chunk, 0);
    }
    let last = (offset + length as u64 - 1) / chunk;
    let count = usize::try_from(last - offset / chunk + 1).expect("a buffer fits memory");
    (offset / chunk, count)
}
