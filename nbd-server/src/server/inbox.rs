//! The receiving side of a connection: bytes that have arrived and are not yet
//! worked off.
//!
//! ```text
//!  0          start              end             len
//!  | consumed |  to be worked off |     room      |
//! ```
//!
//! Payloads are executed where they lie, so bytes move only when the room at
//! the end runs short, and then only what one incomplete request has left.

use std::io;
use std::sync::Arc;

use super::buffers::{Buffer, BufferPool, SMALL_BYTES};
use super::outbox::Outbox;

/// What [`Inbox::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes.
    Bytes,
    /// Nothing yet.
    Nothing,
    /// The client will send no more.
    End,
}

/// Received bytes in a buffer that grows with the traffic and goes when idle.
#[derive(Debug)]
pub(crate) struct Inbox {
    pool: Arc<BufferPool>,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    /// The last call filled the buffer to its end: there is probably more.
    filled: bool,
    /// The traffic has lately been worth a window.
    busy: bool,
}

impl Inbox {
    /// Starts with bytes that came along with the last option; at most
    /// [`SMALL_BYTES`].
    pub(crate) fn new(pool: &Arc<BufferPool>, initial: &[u8]) -> Self {
        let mut inbox = Self {
            pool: Arc::clone(pool),
            buffer: None,
            start: 0,
            end: 0,
            filled: false,
            busy: false,
        };
        if !initial.is_empty() {
            let buffer = inbox.buffer.insert(pool.small());
            buffer[..initial.len()].copy_from_slice(initial);
            inbox.end = initial.len();
        }
        inbox
    }

    /// What is to be worked off.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    /// Marks bytes as worked off and tells where they lie, for [`Inbox::slice`].
    pub(crate) fn consume(&mut self, count: usize) -> usize {
        let at = self.start;
        self.start += count;
        assert!(
            self.start <= self.end,
            "no more is consumed than has been received"
        );
        at
    }

    /// Consumed bytes; valid until the next call that receives or shrinks.
    pub(crate) fn slice(&self, at: usize, length: usize) -> &[u8] {
        &self.received()[at..at + length]
    }

    /// All bytes that places told by [`Inbox::consume`] count from.
    pub(crate) fn received(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or(&[])
    }

    /// Whether nothing more fits behind the bytes not worked off, even if they
    /// were moved to the front.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer
            .as_ref()
            .is_some_and(|buffer| self.end - self.start + MIN_ROOM > buffer.len())
    }

    fn make_room(&mut self) {
        let Some(buffer) = self.buffer.as_mut() else {
            let window = if self.busy { self.pool.window() } else { None };
            self.buffer = Some(window.unwrap_or_else(|| self.pool.small()));
            self.start = 0;
            self.end = 0;
            return;
        };
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        if self.filled
            && buffer.is_small()
            && let Some(mut window) = self.pool.window()
        {
            let rest = &buffer[self.start..self.end];
            window[..rest.len()].copy_from_slice(rest);
            *buffer = window;
        } else if self.start >= RECYCLE_BYTES && self.end - self.start <= SMALL_BYTES
            || buffer.len() - self.end < buffer.len() / 4 && self.start != 0
        {
            buffer.copy_within(self.start..self.end, 0);
        } else {
            return;
        }
        self.end -= self.start;
        self.start = 0;
    }

    /// Takes in what has arrived, without waiting.
    pub(crate) fn receive(&mut self, outbox: &Outbox) -> io::Result<Received> {
        self.make_room();
        self.filled = false;
        let buffer = self.buffer.as_mut().expect("made a moment ago");
        let room = &mut buffer[self.end..];
        assert!(
            !room.is_empty(),
            "a full buffer holds at least one request to work off"
        );
        let room_bytes = room.len();
        match outbox.receive(room)? {
            Some(0) => Ok(Received::End),
            Some(count) => {
                self.end += count;
                self.filled = count == room_bytes;
                Ok(Received::Bytes)
            }
            None => Ok(Received::Nothing),
        }
    }

    /// Lends the buffer to others while the connection waits, if it is empty.
    /// So the buffers in use are about as many as the connections at work, not
    /// as the connections there are, and those in use are in the CPU's cache.
    pub(crate) fn pause(&mut self) {
        if self.start == self.end {
            self.buffer = None;
        }
    }

    /// Whether there is anything for [`Inbox::shrink`] to do.
    pub(crate) fn can_shrink(&self) -> bool {
        self.busy
            || self
                .buffer
                .as_ref()
                .is_some_and(|buffer| !buffer.is_small())
    }

    /// Gives back what a connection does not need that has been idle for a
    /// while, perhaps in the middle of a request.
    pub(crate) fn shrink(&mut self) {
        self.filled = false;
        self.busy = false;
        let length = self.end - self.start;
        if length <= SMALL_BYTES
            && let Some(buffer) = self.buffer.as_mut()
            && !buffer.is_small()
        {
            let mut small = self.pool.small();
            small[..length].copy_from_slice(&buffer[self.start..self.end]);
            *buffer = small;
            self.start = 0;
            self.end = length;
        }
    }
}

/// So much consumed, and little left, is begun anew: a buffer used from end to
/// end would not stay in the CPU's cache.
const RECYCLE_BYTES: usize = 256 << 10;
/// Less room than this is not worth a system call.
const MIN_ROOM: usize = 4096;
