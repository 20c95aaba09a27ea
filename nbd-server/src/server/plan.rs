//! The plan of one batch: which complete requests have arrived, where their
//! payloads lie, and where in the reply buffer their answers go.
//!
//! ```text
//! inbox   [hdr][payload.......][hdr][hdr][payload....   (rest of it not here yet)
//!              └──┐ executed in place
//! reply   [hdr][hdr][data read by the disk...][hdr]      one write to the socket
//! ```
//!
//! A batch is bounded by requests and by reply bytes. Requests larger than a
//! buffer are worked off in pieces, so that the memory of a connection is
//! bounded whatever its client asks for: a long write as it arrives, a long
//! read as several chunks where the header style has chunks. Pieces end on
//! 64 KiB boundaries of the disk, so no chunk is written in parts.

use std::sync::Arc;

use tessera_engine::disk::DiskError;

use super::batch::{Batch, StatusQuery, Work};
use super::buffers::BufferPool;
use super::inbox::Inbox;
use crate::protocol::constants::{MAX_DRAIN_BYTES, MAX_EXTENTS, MAX_PAYLOAD_BYTES};
use crate::protocol::reply::{self, Addressee};
use crate::protocol::request::{self, Action, Parsed, RequestHeader, Terms};
use crate::protocol::{ErrorCode, HeaderStyle};

/// Most requests in one batch.
pub(crate) const MAX_REQUESTS: usize = 128;
/// Payloads up to this length are executed whole. Fits a small buffer.
const WHOLE_BYTES: u64 = 64 << 10;
/// A long write is worked off once this much of it is here, ...
const PIECE_MIN_BYTES: usize = 64 << 10;
/// ... and at most so much at a time, to look for more in between: a Unix socket
/// holds 208 KiB, and wakes a client that waits only when three quarters of that
/// are gone. Measured: waiting for 192 KiB, or working all of them off at once,
/// costs a tenth of the rate of large writes; waiting for 1 MiB, another fifth.
const PIECE_MAX_BYTES: usize = 128 << 10;
/// Where pieces end: a multiple of every chunk size.
const PIECE_ALIGN: u64 = 64 << 10;
/// Where they end if that leaves nothing.
const PIECE_ALIGN_MIN: u64 = 4 << 10;

/// A request that has begun and goes on with the next bytes.
#[derive(Debug)]
enum Payload {
    /// A write executed in pieces.
    Write {
        to: Addressee,
        fua: bool,
        offset: u64,
        left: u64,
        error: Option<DiskError>,
    },
    /// A payload that is thrown away before the request is refused.
    Skip {
        to: Addressee,
        code: ErrorCode,
        left: u64,
    },
}

/// A read answered in several chunks.
#[derive(Debug)]
struct LongRead {
    to: Addressee,
    offset: u64,
    left: u64,
}

/// Where the answer to a read may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Into any buffer, even if one has to be waited for.
    Any,
    /// Into the one that is there.
    AsItIs,
}

/// Why the stream of requests ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client said goodbye.
    Disconnect,
    /// The bytes are no request.
    BadMagic(u32),
    /// A payload too long even to be thrown away.
    PayloadTooLong(u64),
}

/// The state between batches and the present one.
#[derive(Debug)]
pub(crate) struct Plan {
    pool: Arc<BufferPool>,
    batch: Batch,
    payload: Option<Payload>,
    long_read: Option<LongRead>,
    end: Option<End>,
}

impl Plan {
    pub(crate) fn new(pool: &Arc<BufferPool>) -> Self {
        Self {
            pool: Arc::clone(pool),
            batch: Batch::default(),
            payload: None,
            long_read: None,
            end: None,
        }
    }

    /// The present batch.
    pub(crate) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The present batch, to be answered.
    pub(crate) fn batch_mut(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// Why there will be no further batch.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether a request has begun and not ended.
    pub(crate) fn is_midway(&self) -> bool {
        self.payload.is_some() || self.long_read.is_some()
    }

    /// Lends the reply buffer to others while the connection waits.
    pub(crate) fn pause(&mut self) {
        self.batch.release_reply();
    }

    /// Drops the entries of the batch that has been answered.
    pub(crate) fn clear(&mut self) {
        self.batch.clear();
    }

    /// Plans a batch of what has arrived. `false` when nothing can be done
    /// without more bytes. `stalled` says that they may be long in coming.
    pub(crate) fn fill(&mut self, inbox: &mut Inbox, terms: &Terms, stalled: bool) -> bool {
        self.batch.ensure_reply(&self.pool);
        let mut progress = self.go_on_reading(terms.style);
        while self.end.is_none()
            && self.long_read.is_none()
            && self.batch.entries().len() < MAX_REQUESTS
            && self.batch.room() >= reply::MAX_DATA_HEADER_BYTES
        {
            let in_pieces = self.payload.is_some();
            let went_on = match self.payload.take() {
                Some(payload) => self.go_on_with(payload, inbox, terms.style, stalled),
                None => self.next(inbox, terms),
            };
            if !went_on {
                break;
            }
            progress = true;
            match self.batch.entries().last().map(|entry| &entry.work) {
                // Its answer may be long: one a batch bounds the memory.
                Some(Work::Status(StatusQuery { most: 2.., .. })) => break,
                // Time to look for what has arrived meanwhile.
                Some(Work::Write { length, .. }) if in_pieces && *length >= PIECE_MIN_BYTES => {
                    break;
                }
                _ => {}
            }
        }
        progress
    }

    /// Plans what is read while the answers to the present batch are sent: the
    /// next chunk of a long read and the reads that have arrived, up to the
    /// first request that is something else. `None` when there is nothing of
    /// the kind, or no memory to spare for it.
    ///
    /// The present batch has been executed, so a read sees its writes.
    pub(crate) fn look_ahead(&mut self, inbox: &mut Inbox, terms: &Terms) -> Option<Batch> {
        let next_is_read = || matches!(peek(inbox, terms), Some((_, Action::Read { .. })));
        if self.payload.is_some() || self.long_read.is_none() && !next_is_read() {
            return None;
        }
        let window = self.pool.spare_window()?;
        let present = std::mem::take(&mut self.batch);
        self.batch.set_reply(window);
        self.go_on_reading(terms.style);
        while self.long_read.is_none()
            && self.batch.entries().len() < MAX_REQUESTS
            && self.batch.room() >= reply::MAX_DATA_HEADER_BYTES
            && let Some((header, Action::Read { whole })) = peek(inbox, terms)
            && self.place_read(&header, whole, terms.style, Room::AsItIs)
        {
            inbox.consume(request::header_bytes(terms.style));
        }
        let next = std::mem::replace(&mut self.batch, present);
        (!next.entries().is_empty()).then_some(next)
    }

    /// Goes on with a batch from [`Plan::look_ahead`]; the present one has been
    /// answered.
    pub(crate) fn advance(&mut self, next: Batch) {
        self.batch = next;
    }

    fn push(&mut self, to: Addressee, work: Work, fua: bool, reply_bytes: usize) {
        self.batch.push(to, work, fua, reply_bytes, Ok(()));
    }

    /// Takes in the next request; `false` if it is not complete or has no room.
    fn next(&mut self, inbox: &mut Inbox, terms: &Terms) -> bool {
        let style = terms.style;
        let header = match request::parse(style, inbox.bytes()) {
            Parsed::Incomplete => return false,
            Parsed::Header(header) => header,
            Parsed::BadMagic(magic) => {
                self.end = Some(End::BadMagic(magic));
                return false;
            }
        };
        let header_bytes = request::header_bytes(style);
        let payload = header.payload_bytes(style);
        if payload > MAX_DRAIN_BYTES {
            self.end = Some(End::PayloadTooLong(payload));
            return false;
        }
        let to = Addressee {
            cookie: header.cookie,
            offset: header.offset,
        };
        let action = terms.validate(&header);
        let arrived = inbox.bytes().len() - header_bytes;
        let (offset, length) = (header.offset, header.length);
        let success = reply::success_bytes(style);
        match action {
            Ok(Action::Write { fua }) => {
                let Some(length) = arrived_whole(payload, arrived) else {
                    if payload <= WHOLE_BYTES {
                        return false;
                    }
                    inbox.consume(header_bytes);
                    self.payload = Some(Payload::Write {
                        to,
                        fua,
                        offset,
                        left: payload,
                        error: None,
                    });
                    return true;
                };
                inbox.consume(header_bytes);
                let at = inbox.consume(length);
                let work = match length {
                    0 => Work::Nothing,
                    _ => Work::Write {
                        offset,
                        at,
                        length,
                        last: true,
                    },
                };
                self.push(to, work, fua, success);
            }
            Ok(Action::BlockStatusQuery { one }) => {
                let Some(length) = arrived_whole(payload, arrived) else {
                    return false;
                };
                inbox.consume(header_bytes);
                let at = inbox.consume(length);
                let work = match terms.query(offset, inbox.slice(at, length)) {
                    Ok((length, contexts)) => Work::Status(StatusQuery {
                        offset,
                        length,
                        most: most_extents(one),
                        contexts,
                    }),
                    Err(code) => Work::Refuse(code),
                };
                self.push(to, work, false, 0);
            }
            Ok(Action::Disconnect) => {
                self.end = Some(End::Disconnect);
                return false;
            }
            Ok(Action::Read { whole }) => {
                if !self.place_read(&header, whole, style, Room::Any) {
                    return false;
                }
                inbox.consume(header_bytes);
            }
            Ok(action) => {
                inbox.consume(header_bytes);
                let (work, fua) = match action {
                    Action::Flush => (Work::Flush, false),
                    Action::Trim { fua } if length == 0 => (Work::Nothing, fua),
                    Action::Trim { fua } => (Work::Trim { offset, length }, fua),
                    Action::WriteZeroes { fua, .. } if length == 0 => (Work::Nothing, fua),
                    Action::WriteZeroes {
                        fua,
                        keep_allocated,
                    } => (
                        Work::Zero {
                            offset,
                            length,
                            keep_allocated,
                        },
                        fua,
                    ),
                    Action::Cache if length == 0 => (Work::Nothing, false),
                    Action::Cache => {
                        // A hint may be taken in part, but must not hold up
                        // the requests behind it.
                        let length = length.min(MAX_PAYLOAD_BYTES);
                        (Work::Cache { offset, length }, false)
                    }
                    Action::BlockStatus { one } => (
                        Work::Status(StatusQuery {
                            offset,
                            length,
                            most: most_extents(one),
                            contexts: terms.contexts,
                        }),
                        false,
                    ),
                    Action::Read { .. }
                    | Action::Write { .. }
                    | Action::Disconnect
                    | Action::BlockStatusQuery { .. } => unreachable!("matched above"),
                };
                self.push(to, work, fua, success);
            }
            Err(code) => {
                inbox.consume(header_bytes);
                if payload == 0 {
                    self.push(to, refusal(&header, code), false, 0);
                } else {
                    self.payload = Some(Payload::Skip {
                        to,
                        code,
                        left: payload,
                    });
                }
            }
        }
        true
    }

    /// Works off what has arrived of a payload; `false` if that is not enough.
    fn go_on_with(
        &mut self,
        payload: Payload,
        inbox: &mut Inbox,
        style: HeaderStyle,
        stalled: bool,
    ) -> bool {
        let arrived = inbox.bytes().len();
        match payload {
            Payload::Skip { to, code, left } => {
                let Some(count) = arrived_whole(left, arrived) else {
                    inbox.consume(arrived);
                    let left = left - arrived as u64;
                    self.payload = Some(Payload::Skip { to, code, left });
                    return arrived != 0;
                };
                inbox.consume(count);
                self.push(to, Work::Refuse(code), false, 0);
                true
            }
            Payload::Write {
                to,
                fua,
                offset,
                left,
                error,
            } => {
                let at_once = arrived.min(PIECE_MAX_BYTES);
                let whole = arrived_whole(left, at_once);
                let length = match whole {
                    Some(length) => length,
                    None if arrived >= PIECE_MIN_BYTES || stalled || inbox.is_full() => {
                        piece(offset, at_once, !stalled)
                    }
                    None => 0,
                };
                if length == 0 {
                    self.payload = Some(Payload::Write {
                        to,
                        fua,
                        offset,
                        left,
                        error,
                    });
                    return false;
                }
                let at = inbox.consume(length);
                let last = whole.is_some();
                let length64 = length as u64;
                if !last {
                    self.payload = Some(Payload::Write {
                        to,
                        fua,
                        offset: offset + length64,
                        left: left - length64,
                        error: error.clone(),
                    });
                }
                let reply_bytes = if last { reply::success_bytes(style) } else { 0 };
                match error {
                    // It has failed already: the rest is only taken off the wire.
                    Some(error) => {
                        if last {
                            self.batch
                                .push(to, Work::Nothing, fua, reply_bytes, Err(error));
                        }
                    }
                    None => {
                        self.push(
                            to,
                            Work::Write {
                                offset,
                                at,
                                length,
                                last,
                            },
                            fua,
                            reply_bytes,
                        );
                    }
                }
                true
            }
        }
    }

    /// Finds room for the answer to a read; `false` if it has to wait for the
    /// next batch.
    fn place_read(
        &mut self,
        header: &RequestHeader,
        whole: bool,
        style: HeaderStyle,
        may_take: Room,
    ) -> bool {
        let to = Addressee {
            cookie: header.cookie,
            offset: header.offset,
        };
        let length = usize::try_from(header.length).expect("at most 32 MiB after validation");
        if length == 0 {
            self.push(to, Work::ReadNothing, false, 0);
            return true;
        }
        let needed = reply::data_header_bytes(style) + length;
        if needed > self.batch.room()
            && self.batch.is_small()
            && let Some(window) = self.pool.window()
        {
            self.batch.set_reply(window);
        }
        if needed > self.batch.room() {
            if !self.batch.entries().is_empty() {
                return false;
            }
            if style != HeaderStyle::Simple && !whole {
                self.long_read = Some(LongRead {
                    to,
                    offset: header.offset,
                    left: header.length,
                });
                return self.go_on_reading(style);
            }
            if may_take == Room::AsItIs {
                return false;
            }
            // Given back first: nobody waits for one buffer while holding another.
            self.batch.release_reply();
            self.batch.set_reply(self.pool.large(needed));
        }
        let work = Work::Read {
            offset: header.offset,
            length,
            last: true,
        };
        self.push(to, work, false, needed);
        true
    }

    /// Plans the next chunk of a long read, if there is one.
    fn go_on_reading(&mut self, style: HeaderStyle) -> bool {
        let Some(LongRead { to, offset, left }) = self.long_read.take() else {
            return false;
        };
        let header_bytes = reply::data_header_bytes(style);
        let room = self.batch.room() - header_bytes;
        let (length, last) = match arrived_whole(left, room) {
            Some(length) => (length, true),
            None => (piece(offset, room, true), false),
        };
        if !last {
            let length = length as u64;
            self.long_read = Some(LongRead {
                to,
                offset: offset + length,
                left: left - length,
            });
        }
        self.push(
            to,
            Work::Read {
                offset,
                length,
                last,
            },
            false,
            header_bytes + length,
        );
        true
    }

    /// To be called when the batch has been executed. A piece that failed fails
    /// its request: a write when the rest has been
    /// taken off the wire, a read at once.
    pub(crate) fn note_failed_pieces(&mut self) {
        for entry in self.batch.entries() {
            let Err(failure) = &entry.result else {
                continue;
            };
            match entry.work {
                Work::Write { last: false, .. } => {
                    if let Some(Payload::Write { error, .. }) = &mut self.payload {
                        *error = Some(failure.clone());
                    }
                }
                Work::Read { last: false, .. } => self.long_read = None,
                _ => {}
            }
        }
    }
}

/// The next request, if its header is here and it is in order.
fn peek(inbox: &Inbox, terms: &Terms) -> Option<(RequestHeader, Action)> {
    match request::parse(terms.style, inbox.bytes()) {
        Parsed::Header(header) => terms.validate(&header).ok().map(|action| (header, action)),
        Parsed::Incomplete | Parsed::BadMagic(_) => None,
    }
}

fn most_extents(one: bool) -> usize {
    if one { 1 } else { MAX_EXTENTS }
}

fn refusal(header: &RequestHeader, code: ErrorCode) -> Work {
    // Kept apart so that a reader finds the one place where refusals are made.
    tracing::debug!(?header, ?code, "refused a request");
    Work::Refuse(code)
}

/// `wanted`, if that much is there.
fn arrived_whole(wanted: u64, there: usize) -> Option<usize> {
    usize::try_from(wanted)
        .ok()
        .filter(|wanted| *wanted <= there)
}

/// How many of `there` bytes at `offset` make a piece that ends on a boundary.
/// With `must`, a finer boundary is taken rather than none.
fn piece(offset: u64, there: usize, must: bool) -> usize {
    let end = offset + there as u64;
    let down = |align: u64| usize::try_from((end / align * align).saturating_sub(offset));
    match down(PIECE_ALIGN) {
        Ok(0) if must => match down(PIECE_ALIGN_MIN) {
            Ok(0) => there,
            Ok(length) => length,
            Err(_) => there,
        },
        Ok(length) => length,
        Err(_) => there,
    }
}

#[cfg(test)]
mod tests;
