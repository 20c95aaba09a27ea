//! Reading data that is in no pool yet, to say what a pool would make of it.
//!
//! ```text
//!   images --(blocks of 1 MiB, in order)--+--> estimator of 4 KiB chunks
//!   this thread                           +--> of 8 KiB
//!                                         +--> ...   a thread each
//! ```
//! A few blocks are under way at a time; what estimators keep is bounded too.

mod images;

use std::{
    sync::{Arc, mpsc},
    thread,
};

use tessera_engine::estimate::{ESTIMATE_MEMORY_MIN, Estimate, Estimator};

pub(crate) use self::images::{Image, images};
use crate::failure::{Failure, Kind};

/// Bytes of a block: whole chunks of any size.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks under way between the reader and an estimator.
const BLOCKS_AHEAD: usize = 4;

/// Estimators for these chunk sizes that share so much memory: in proportion
/// to the number of chunks each will see.
pub(crate) fn estimators(
    chunk_sizes: &[u32],
    memory_bytes: u64,
) -> Result<Vec<Estimator>, Failure> {
    let invalid = |message: String| Failure::new(Kind::InvalidArgument, message);
    let share_of = |chunk: u32| 65536 / u64::from(chunk.max(1));
    let shares: u64 = chunk_sizes.iter().map(|chunk| share_of(*chunk)).sum();
    let of = |chunk: &u32| {
        let memory = memory_bytes / shares.max(1) * share_of(*chunk);
        if memory < ESTIMATE_MEMORY_MIN {
            let smallest = chunk_sizes.iter().map(|chunk| share_of(*chunk)).min();
            let least = shares.div_ceil(smallest.unwrap_or(1).max(1)) * ESTIMATE_MEMORY_MIN;
            return Err(invalid(format!(
                "That is too little memory for these chunk sizes: give at least {}",
                crate::size::format(least)
            )));
        }
        Estimator::new(*chunk, memory).ok_or_else(|| {
            invalid(format!(
                "A chunk size of {} is not possible: use 4K, 8K, 16K, 32K or 64K",
                crate::size::format(u64::from(*chunk))
            ))
        })
    };
    chunk_sizes.iter().map(of).collect()
}

/// Reads all images through all estimators; `read` is told of bytes that have
/// been dealt with.
pub(crate) fn run(
    images: Vec<Image>,
    estimators: Vec<Estimator>,
    read: &dyn Fn(u64),
) -> Result<Vec<Estimate>, Failure> {
    thread::scope(|scope| {
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for mut estimator in estimators {
            let (sender, blocks) = mpsc::sync_channel::<Arc<Vec<u8>>>(BLOCKS_AHEAD);
            senders.push(sender);
            workers.push(scope.spawn(move || {
                for block in blocks {
                    estimator.feed(&block);
                }
                estimator.estimate()
            }));
        }
        let mut result = Ok(());
        for image in images {
            let each = &mut |block: Arc<Vec<u8>>| {
                for sender in &senders {
                    // A worker that is gone has panicked: joining it says so.
                    let _sent = sender.send(Arc::clone(&block));
                }
            };
            result = image.read(each, read);
            if result.is_err() {
                break;
            }
        }
        drop(senders);
        let estimates = workers.into_iter().map(|worker| {
            let estimate = worker.join();
            estimate.map_err(|_| Failure::new(Kind::Io, "An estimator has stopped"))
        });
        let estimates = estimates.collect::<Result<Vec<_>, _>>()?;
        result.map(|()| estimates)
    })
}
