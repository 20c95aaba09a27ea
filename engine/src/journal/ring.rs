//! Writing batches into the ring, and reading the chain back.
//!
//! ```text
//!   ring of every member, same offsets:
//!   |  free  | tail: batch n | n+1 | ... | newest |head  free           |
//! ```
//! Offsets are virtual: they only grow, and `offset % ring` is the place. A
//! batch never straddles the end of the ring; a wrap batch of one block says
//! that the chain goes on at its start. One batch is durable on all its copies
//! (R16) before the next is begun, so a readable batch proves every earlier
//! one (R15).

use std::{collections::HashMap, sync::Arc};

use tessera_raid::{
    Array, MemberIndex, RaidError,
    device::{AlignedBuf, BLOCK_BYTES},
    sabotage::broken,
};

use super::batch::{self, Batch, BatchHeader, ChainChecksum, Epoch, SyncedPosition, batch_bytes};
use crate::error::EngineError;

/// Where a chain begins or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainPoint {
    /// The epoch of the batches.
    pub epoch: Epoch,
    /// Virtual offset of the next batch.
    pub offset: u64,
    /// Its number.
    pub number: u64,
    /// The checksum of the one before.
    pub previous: ChainChecksum,
}

/// The journal as its writer sees it.
#[derive(Debug)]
pub struct Ring {
    array: Arc<Array>,
    bytes: u64,
    next: ChainPoint,
    /// Virtual offset of the oldest batch still needed.
    tail: u64,
}

impl Ring {
    /// Continues at `next`; everything before is free.
    pub fn new(array: Arc<Array>, next: ChainPoint) -> Self {
        let bytes = array.journal_bytes();
        Self {
            array,
            bytes,
            next,
            tail: next.offset,
        }
    }

    /// Where the next batch goes.
    pub fn next(&self) -> ChainPoint {
        self.next
    }

    /// Frees everything before `offset`.
    pub fn trim(&mut self, offset: u64) {
        self.tail = self.tail.max(offset);
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        self.next.offset - self.tail
    }

    /// Bytes of the ring.
    pub fn capacity_bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a payload of this length fits now, a wrap included.
    pub fn has_room_for(&self, payload: usize) -> bool {
        let length = batch_bytes(payload) as u64;
        self.used_bytes() + 2 * length + BLOCK_BYTES as u64 <= self.bytes
    }

    /// Appends a batch; durable on every copy on return.
    ///
    /// # Errors
    /// The array's. The caller must not write another batch after a failure:
    /// the failed one may or may not be found by recovery.
    ///
    /// # Panics
    /// If the ring has no room; the caller asks [`Self::has_room_for`] first.
    pub fn append(
        &mut self,
        last_sequence: u64,
        positions: Vec<SyncedPosition>,
        parts: &[&[u8]],
    ) -> Result<(), RaidError> {
        let payload = parts.iter().map(|part| part.len()).sum();
        assert!(
            self.has_room_for(payload),
            "the journal is trimmed before it is full"
        );
        let to_end = self.bytes - self.next.offset % self.bytes;
        if (batch_bytes(payload) as u64) > to_end {
            self.write(last_sequence, true, positions.clone(), &[])?;
            self.next.offset = self.next.offset.next_multiple_of(self.bytes);
        }
        self.write(last_sequence, false, positions, parts)
    }

    fn write(
        &mut self,
        last_sequence: u64,
        wrap: bool,
        positions: Vec<SyncedPosition>,
        parts: &[&[u8]],
    ) -> Result<(), RaidError> {
        let header = BatchHeader {
            epoch: self.next.epoch,
            number: self.next.number,
            previous: self.next.previous,
            last_sequence,
            wrap,
            positions,
        };
        let (buffer, checksum) = batch::encode(&header, parts);
        let length = buffer.len() as u64;
        self.array
            .journal_write(self.next.offset % self.bytes, &Arc::new(buffer))?;
        self.next.offset += length;
        self.next.number += 1;
        self.next.previous = checksum;
        Ok(())
    }
}

/// Whether a member holds a batch, whole, at this place of its ring.
pub fn has_copy(array: &Array, member: MemberIndex, position: u64, wanted: &Batch) -> bool {
    let Ok(length) = usize::try_from(wanted.length) else {
        return false;
    };
    let read = array.journal_read(member, position, AlignedBuf::zeroed(length));
    let decoded = read.ok().and_then(|bytes| batch::decode(&bytes));
    decoded.is_some_and(|found| found.checksum == wanted.checksum)
}

/// The batches from a chain point on.
#[derive(Debug)]
pub struct Chain {
    /// In order.
    pub batches: Vec<Batch>,
}

/// Reads the chain that begins at `start`, from whichever member has a good
/// copy of each batch.
///
/// # Errors
/// When a later batch of the epoch can be read, so that the missing one must
/// have been durable: confirmed history is never dropped silently (R15).
pub fn read_chain(array: &Array, start: ChainPoint) -> Result<Chain, EngineError> {
    let bytes = array.journal_bytes();
    let mut copies: Vec<RingCopy<'_>> = array
        .journal_members()
        .into_iter()
        .map(|member| RingCopy {
            array,
            member,
            bytes,
            windows: HashMap::new(),
            failed: false,
        })
        .collect();
    let mut chain = Chain {
        batches: Vec::new(),
    };
    let mut at = start;
    let end = start.offset + bytes;
    while at.offset < end {
        let found = copies
            .iter_mut()
            .find_map(|copy| copy.batch(at.offset % bytes, &at));
        let Some(batch) = found else { break };
        at.offset += batch.length;
        if batch.header.wrap {
            at.offset = at.offset.next_multiple_of(bytes);
        }
        at.number += 1;
        at.previous = batch.checksum;
        chain.batches.push(batch);
    }
    for copy in &mut copies {
        if broken("R15.refuse") {
            break;
        }
        if let Some(number) = copy.find_later(&at) {
            return Err(EngineError::damaged(format!(
                "The journal is damaged: batch {} cannot be read from any member, but batch \
                 {number} on member {} proves that it was written",
                at.number, copy.member.0
            )));
        }
    }
    Ok(chain)
}

const WINDOW_BYTES: u64 = 1 << 20;

/// One member's ring, read in windows.
struct RingCopy<'a> {
    array: &'a Array,
    member: MemberIndex,
    bytes: u64,
    windows: HashMap<u64, AlignedBuf>,
    failed: bool,
}

impl RingCopy<'_> {
    fn window(&mut self, number: u64) -> Option<&AlignedBuf> {
        if self.failed {
            return None;
        }
        if !self.windows.contains_key(&number) {
            self.windows.retain(|kept, _| number.abs_diff(*kept) < 4);
            let start = number * WINDOW_BYTES;
            let length = usize::try_from(WINDOW_BYTES.min(self.bytes - start)).ok()?;
            match self
                .array
                .journal_read(self.member, start, AlignedBuf::zeroed(length))
            {
                Ok(buffer) => {
                    self.windows.insert(number, buffer);
                }
                Err(error) => {
                    tracing::warn!(member = self.member.0, %error, "Cannot read the journal copy");
                    self.failed = true;
                    return None;
                }
            }
        }
        self.windows.get(&number)
    }

    fn bytes_at(&mut self, offset: u64, length: usize) -> Option<Vec<u8>> {
        if offset + length as u64 > self.bytes {
            return None;
        }
        let mut bytes = Vec::with_capacity(length);
        let mut at = offset;
        while bytes.len() < length {
            let window = self.window(at / WINDOW_BYTES)?;
            let from = usize::try_from(at % WINDOW_BYTES).ok()?;
            let take = (length - bytes.len()).min(window.len() - from);
            bytes.extend_from_slice(&window[from..from + take]);
            at += take as u64;
        }
        Some(bytes)
    }

    /// The batch at `offset` if it is the one that `at` asks for.
    fn batch(&mut self, offset: u64, at: &ChainPoint) -> Option<Batch> {
        let claim = batch::claim(&self.bytes_at(offset, BLOCK_BYTES)?)?;
        if claim.epoch != at.epoch || claim.number != at.number {
            return None;
        }
        let batch = batch::decode(&self.bytes_at(offset, claim.length)?)?;
        (batch.header.previous == at.previous).then_some(batch)
    }

    /// The number of any valid batch of the epoch after `at`.
    fn find_later(&mut self, at: &ChainPoint) -> Option<u64> {
        (0..self.bytes).step_by(BLOCK_BYTES).find_map(|offset| {
            let claim = batch::claim(&self.bytes_at(offset, BLOCK_BYTES)?)?;
            if claim.epoch != at.epoch || claim.number <= at.number {
                return None;
            }
            batch::decode(&self.bytes_at(offset, claim.length)?).map(|_| claim.number)
        })
    }
}
