//! One batch: the requests to execute together, and the buffer their answers
//! are written to.
//!
//! A batch stands on its own, but for the payloads of its writes, which lie in
//! the inbox. So one that only reads can be executed by another thread.

use std::sync::Arc;

use tessera_engine::disk::{Disk, DiskError, Operation, Request};

use super::buffers::{Buffer, BufferPool};
use crate::protocol::reply::{self, Addressee};
use crate::protocol::{ContextSet, ErrorCode, HeaderStyle};

/// A question about what a range is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatusQuery {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Most extents of one context.
    pub(crate) most: usize,
    /// The contexts asked about.
    pub(crate) contexts: ContextSet,
}

/// What one entry of a plan does.
#[derive(Debug)]
pub(crate) enum Work {
    /// Read `length` bytes into the reply buffer; `last` ends the reply.
    Read {
        offset: u64,
        length: usize,
        last: bool,
    },
    /// Write bytes that lie at `at` in the inbox; `last` ends the request.
    Write {
        offset: u64,
        at: usize,
        length: usize,
        last: bool,
    },
    /// Forget a range.
    Trim { offset: u64, length: u64 },
    /// Zero a range.
    Zero {
        offset: u64,
        length: u64,
        keep_allocated: bool,
    },
    /// Bring a range into the cache.
    Cache { offset: u64, length: u64 },
    /// Tell what a range is made of.
    Status(StatusQuery),
    /// Make everything durable.
    Flush,
    /// Succeed: a range of no bytes, or the end of a request worked off before.
    Nothing,
    /// Succeed in reading no bytes.
    ReadNothing,
    /// Fail.
    Refuse(ErrorCode),
}

/// One request, or one piece of one, in a batch.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Whom to answer.
    pub(crate) to: Addressee,
    /// What to do.
    pub(crate) work: Work,
    /// Where the header of the answer goes in the reply buffer.
    pub(crate) at: usize,
    /// Answer only once it is durable.
    pub(crate) fua: bool,
    /// What came of it.
    pub(crate) result: Result<(), DiskError>,
}

impl Entry {
    /// Whether this entry modifies the disk's contents.
    pub(crate) fn is_writing(&self) -> bool {
        matches!(self.work, Work::Write { .. } | Work::Nothing)
    }

    fn is_request(&self) -> bool {
        matches!(
            self.work,
            Work::Read { .. }
                | Work::Write { .. }
                | Work::Trim { .. }
                | Work::Zero { .. }
                | Work::Cache { .. }
        )
    }
}

/// Entries, in order, and their answers.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    entries: Vec<Entry>,
    reply: Option<Buffer>,
    reply_used: usize,
}

impl Batch {
    /// The entries, in order.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The reply buffer.
    pub(crate) fn reply(&self) -> &[u8] {
        self.reply.as_deref().unwrap_or(&[])
    }

    /// Entries together with the buffer their headers are written to.
    pub(crate) fn parts_mut(&mut self) -> (&mut [Entry], &mut [u8]) {
        (
            &mut self.entries,
            self.reply.as_deref_mut().unwrap_or(&mut []),
        )
    }

    /// Bytes of the reply buffer that the answers take.
    pub(crate) fn reply_bytes(&self) -> usize {
        self.reply_used
    }

    /// Bytes of the reply buffer that are left.
    pub(crate) fn room(&self) -> usize {
        self.reply().len() - self.reply_used
    }

    /// Whether the reply buffer could be exchanged for a larger one.
    pub(crate) fn is_small(&self) -> bool {
        self.reply.as_ref().is_some_and(Buffer::is_small)
    }

    /// Replaces the reply buffer. Nothing is in the old one before execution,
    /// not even headers.
    pub(crate) fn set_reply(&mut self, buffer: Buffer) {
        self.reply = Some(buffer);
    }

    /// Sees to it that there is a reply buffer.
    pub(crate) fn ensure_reply(&mut self, pool: &Arc<BufferPool>) {
        if self.reply.is_none() {
            self.reply = Some(pool.small());
        }
    }

    /// Gives the reply buffer back.
    pub(crate) fn release_reply(&mut self) {
        self.reply = None;
    }

    /// Appends an entry whose answer takes `reply_bytes`.
    pub(crate) fn push(
        &mut self,
        to: Addressee,
        work: Work,
        fua: bool,
        reply_bytes: usize,
        result: Result<(), DiskError>,
    ) {
        let at = self.reply_used;
        self.reply_used += reply_bytes;
        self.entries.push(Entry {
            to,
            work,
            at,
            fua,
            result,
        });
    }

    /// Drops the entries that have been answered.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.reply_used = 0;
        if self.reply.as_ref().is_some_and(Buffer::is_large) {
            self.reply = None;
        }
    }

    /// Executes the entries as one batch of requests that point into `received`,
    /// which holds the payloads of writes, and into the reply buffer, and keeps
    /// the results.
    pub(crate) fn execute(&mut self, disk: &dyn Disk, received: &[u8], style: HeaderStyle) {
        let header_bytes = reply::data_header_bytes(style);
        let mut rest = self.reply.as_deref_mut().unwrap_or(&mut []);
        let mut rest_at = 0;
        let mut batch = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let operation = match entry.work {
                Work::Read { offset, length, .. } => {
                    let skipped = entry.at + header_bytes - rest_at;
                    let (buffer, behind) =
                        std::mem::take(&mut rest)[skipped..].split_at_mut(length);
                    rest = behind;
                    rest_at = entry.at + header_bytes + length;
                    Operation::Read { offset, buffer }
                }
                Work::Write {
                    offset, at, length, ..
                } => Operation::Write {
                    offset,
                    data: &received[at..at + length],
                },
                Work::Trim { offset, length } => Operation::Discard { offset, length },
                Work::Zero {
                    offset,
                    length,
                    keep_allocated,
                } => Operation::WriteZeroes {
                    offset,
                    length,
                    keep_allocated,
                },
                Work::Cache { offset, length } => Operation::Prefetch { offset, length },
                Work::Status(_)
                | Work::Flush
                | Work::Nothing
                | Work::ReadNothing
                | Work::Refuse(_) => continue,
            };
            batch.push(Request::new(operation));
        }
        if batch.is_empty() {
            return;
        }
        disk.execute(&mut batch);
        let results = batch.into_iter().map(|request| request.result);
        let requests = self.entries.iter_mut().filter(|entry| entry.is_request());
        for (entry, result) in requests.zip(results) {
            entry.result = result;
        }
    }
}
