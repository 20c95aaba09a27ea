//! One simulated device: contents, faults, counters, and what is stuck in it.

use std::{io, ops::Range, sync::Arc};

use super::{
    Fault, SimCounters,
    store::{Page, Store, Stored},
};
use crate::device::{BLOCK_BYTES, IoOp};

const BLOCK: u64 = BLOCK_BYTES as u64;

#[derive(Debug, Clone)]
pub(super) struct Device {
    /// Never reused, so that it serves as the identity.
    pub(super) number: u64,
    pub(super) size_bytes: u64,
    pub(super) store: Store,
    pub(super) counters: SimCounters,
    pub(super) faults: Faults,
    /// Abandoned operations that have not completed yet (R5).
    pub(super) stalled: Vec<Stalled>,
}

/// The faults in force.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) vanished: bool,
    pub(super) stall_asks: Option<u32>,
    read_errors: Vec<Range<u64>>,
    write_errors: Vec<Range<u64>>,
    fail_next_sync: bool,
    misdirect_next_write: Option<u64>,
    lose_next_write: bool,
    blocks_left: Option<u64>,
}

/// An abandoned operation; a read has no pages.
#[derive(Debug, Clone)]
pub(super) struct Stalled {
    offset: u64,
    pages: Vec<Stored>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn overlap(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    ranges
        .iter()
        .any(|bad| bad.start < range.end && range.start < bad.end)
}

/// The bytes of an operation, block-aligned.
pub(super) fn extent(offset: u64, op: &IoOp) -> Range<u64> {
    let length = match op {
        IoOp::Read(buffer) => buffer.len() as u64,
        IoOp::Write { data, .. } => data.iter().map(|slice| slice.len() as u64).sum(),
        IoOp::Discard { length } | IoOp::Preallocate { length } => *length,
        IoOp::Sync => return 0..0,
    };
    assert!(
        offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK),
        "operations are block-aligned: {length} bytes at {offset}"
    );
    offset..offset + length
}

/// What an operation stores, page by page.
fn stored_pages(extent: &Range<u64>, op: &IoOp) -> Vec<Stored> {
    let count = usize::try_from((extent.end - extent.start) / BLOCK).expect("fits in memory");
    match op {
        IoOp::Write { data, .. } => {
            let pages = data.iter().flat_map(|slice| slice.as_slice().as_chunks().0);
            pages.map(|page: &Page| Some(Arc::new(*page))).collect()
        }
        IoOp::Preallocate { .. } => {
            let zeroes: Stored = Some(Arc::new([0; BLOCK_BYTES]));
            vec![zeroes; count]
        }
        IoOp::Discard { .. } => vec![None; count],
        IoOp::Read(_) | IoOp::Sync => Vec::new(),
    }
}

impl Device {
    pub(super) fn new(number: u64, size_bytes: u64) -> Self {
        Self {
            number,
            size_bytes: size_bytes - size_bytes % BLOCK,
            store: Store::default(),
            counters: SimCounters::default(),
            faults: Faults::default(),
            stalled: Vec::new(),
        }
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        let faults = &mut self.faults;
        match fault {
            Fault::BitRot { offset, mask } => {
                let place = usize::try_from(offset % BLOCK).expect("within a page");
                self.store
                    .damage(offset / BLOCK, |page| page[place] ^= mask);
            }
            Fault::MisdirectNextWrite { target } => faults.misdirect_next_write = Some(target),
            Fault::LoseNextWrite => faults.lose_next_write = true,
            Fault::ReadErrors { offset, length } => {
                faults.read_errors.push(offset..offset + length);
            }
            Fault::WriteErrors { offset, length } => {
                faults.write_errors.push(offset..offset + length);
            }
            Fault::FailNextSync => faults.fail_next_sync = true,
            Fault::Vanish => faults.vanished = true,
            Fault::Stall { asks } => faults.stall_asks = Some(asks),
            Fault::NoSpace { blocks_left } => faults.blocks_left = Some(blocks_left),
        }
    }

    /// Takes note of an operation that begins.
    pub(super) fn count(&mut self, offset: u64, op: &IoOp) {
        let length = extent(offset, op);
        let length = length.end - length.start;
        let counters = &mut self.counters;
        match op {
            IoOp::Read(_) => {
                counters.reads += 1;
                counters.read_bytes += length;
            }
            IoOp::Write { durable, .. } => {
                counters.writes += 1;
                counters.written_bytes += length;
                counters.durable_writes += u64::from(*durable);
            }
            IoOp::Sync => counters.syncs += 1,
            IoOp::Discard { .. } => counters.discards += 1,
            IoOp::Preallocate { .. } => counters.preallocations += 1,
        }
    }

    /// Performs an operation, with whatever faults are in force.
    pub(super) fn perform(&mut self, offset: u64, op: &mut IoOp) -> io::Result<()> {
        let extent = extent(offset, op);
        if self.faults.vanished {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let at_end = extent.end > self.size_bytes;
        match op {
            IoOp::Read(_) if at_end => Err(io::ErrorKind::UnexpectedEof.into()),
            IoOp::Read(_) if overlap(&self.faults.read_errors, &extent) => Err(eio()),
            IoOp::Read(buffer) => {
                for (page, target) in
                    (extent.start / BLOCK..).zip(buffer.chunks_exact_mut(BLOCK_BYTES))
                {
                    target.copy_from_slice(self.store.read(page));
                }
                Ok(())
            }
            IoOp::Sync => {
                self.sync_may_fail()?;
                self.store.sync();
                Ok(())
            }
            IoOp::Write { .. } | IoOp::Discard { .. } | IoOp::Preallocate { .. } if at_end => {
                let what = format!("Write beyond the end: {extent:?} of {}", self.size_bytes);
                Err(io::Error::new(io::ErrorKind::InvalidInput, what))
            }
            IoOp::Write { durable, .. } => {
                if overlap(&self.faults.write_errors, &extent) {
                    return Err(eio());
                }
                if *durable {
                    self.sync_may_fail()?;
                }
                let durable = *durable;
                if std::mem::take(&mut self.faults.lose_next_write) {
                    return Ok(());
                }
                let pages = stored_pages(&extent, op);
                if let Some(target) = self.faults.misdirect_next_write.take() {
                    // A device that lies tells of no lack of space there.
                    let _ = self.apply(target, pages, durable);
                    return Ok(());
                }
                self.apply(extent.start, pages, durable)
            }
            IoOp::Discard { .. } | IoOp::Preallocate { .. } => {
                let pages = stored_pages(&extent, op);
                self.apply(extent.start, pages, false)
            }
        }
    }

    /// The part of an operation that a power cut interrupts: all of it goes
    /// to the volatile cache, from which the cut then chooses.
    pub(super) fn perform_interrupted(&mut self, offset: u64, op: &IoOp) {
        let extent = extent(offset, op);
        if !self.faults.vanished && extent.end <= self.size_bytes {
            // Not even ENOSPC is reported any more.
            let _ = self.apply(extent.start, stored_pages(&extent, op), false);
        }
    }

    fn sync_may_fail(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.faults.fail_next_sync) {
            self.store.drop_unflushed();
            return Err(eio());
        }
        Ok(())
    }

    /// Stores pages as far as there is space.
    fn apply(&mut self, offset: u64, pages: Vec<Stored>, durable: bool) -> io::Result<()> {
        for (page, contents) in (offset / BLOCK..).zip(pages) {
            if let Some(left) = &mut self.faults.blocks_left {
                match (self.store.is_allocated(page), contents.is_some()) {
                    (false, true) => {
                        let less = left.checked_sub(1);
                        *left = less.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
                    }
                    (true, false) => *left += 1,
                    _ => {}
                }
            }
            let rewritten = page * BLOCK..(page + 1) * BLOCK;
            if contents.is_some() && overlap(&self.faults.read_errors, &rewritten) {
                self.readable_again(&rewritten);
            }
            if durable {
                self.store.write_durable(page, contents);
            } else {
                self.store.write(page, contents);
            }
        }
        Ok(())
    }

    fn readable_again(&mut self, range: &Range<u64>) {
        let bad = std::mem::take(&mut self.faults.read_errors);
        let pieces = bad.into_iter().flat_map(|bad| {
            let before = bad.start..bad.end.min(range.start);
            let after = bad.start.max(range.end)..bad.end;
            [before, after]
        });
        self.faults.read_errors = pieces.filter(|piece| piece.start < piece.end).collect();
    }

    /// Keeps an abandoned operation.
    pub(super) fn stall(&mut self, offset: u64, op: &IoOp) {
        let extent = extent(offset, op);
        let pages = stored_pages(&extent, op);
        self.stalled.push(Stalled {
            offset: extent.start,
            pages,
        });
    }

    /// Completes the abandoned operations, late; nobody hears of errors.
    pub(super) fn release(&mut self) {
        for Stalled { offset, pages } in std::mem::take(&mut self.stalled) {
            if offset + pages.len() as u64 * BLOCK <= self.size_bytes {
                let _ = self.apply(offset, pages, false);
            }
        }
    }

    pub(super) fn resize(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes - size_bytes % BLOCK;
        self.store.truncate(self.size_bytes / BLOCK);
    }

    /// What a read would return; the range may have any alignment.
    pub(super) fn peek(&self, offset: u64, length: usize) -> Vec<u8> {
        (offset..offset + length as u64)
            .map(|byte| {
                let place = usize::try_from(byte % BLOCK).expect("within a page");
                self.store.read(byte / BLOCK)[place]
            })
            .collect()
    }

    /// Changes stored bytes of any alignment.
    pub(super) fn poke(&mut self, offset: u64, bytes: &[u8]) {
        let mut next = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let place = usize::try_from(next % BLOCK).expect("within a page");
            let (part, later) = rest.split_at(rest.len().min(BLOCK_BYTES - place));
            self.store.damage(next / BLOCK, |page| {
                page[place..place + part.len()].copy_from_slice(part);
            });
            next += part.len() as u64;
            rest = later;
        }
    }
}
