//! The sending side of a connection, shared by its thread and the committer.
//!
//! ```text
//! connection thread ── send: replies of a batch, waits for the client ──┐
//!                                                                       ├─> socket
//! committer ── complete: reply to a flush, never waits ─────────────────┘
//! ```
//!
//! Invariants:
//! * Replies are never interleaved: whoever finds `sending` set, or bytes
//!   pending, appends to `pending` instead of writing to the socket.
//! * The lock is held only for calls that do not block.
//! * `pending` is bounded by [`MAX_IN_FLIGHT`] replies, because the connection
//!   thread takes in no more flushes than that before some are answered.
//! * The connection thread is woken (through `wake`) for whatever the committer
//!   could not send, and when it waits for flushes to finish.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::transport::Transport;

/// Requests of one connection that may wait for a flush.
pub(crate) const MAX_IN_FLIGHT: usize = 1024;

/// A connected socket and the replies waiting for it.
#[derive(Debug)]
pub(crate) struct Outbox {
    transport: Transport,
    wake: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The connection thread is writing to the socket.
    sending: bool,
    /// Replies to be sent next, in order.
    pending: Vec<u8>,
    /// Requests handed to the disk's flush and not answered yet.
    in_flight: usize,
    /// The connection thread waits for `in_flight` to fall.
    awaited: bool,
    /// The client is gone or given up on.
    broken: bool,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// There are bytes to receive, or the client hung up.
    Readable,
    /// Somebody called [`Outbox::wake`], or replies are pending.
    Woken,
    /// The time is over.
    TimedOut,
}

impl Outbox {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            transport: Transport::new(socket),
            wake,
            state: Mutex::default(),
        })
    }

    /// Interrupts [`Outbox::wait`].
    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Cuts the connection; its thread notices.
    pub(crate) fn disconnect(&self) {
        self.state.lock().broken = true;
        let _ = rustix::net::shutdown(&self.transport.socket, Shutdown::Both);
        self.wake();
    }

    /// Receives what has arrived, without waiting; `Ok(None)` when nothing has,
    /// `Ok(Some(0))` at the end of the stream.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.transport.receive(buffer)
    }

    /// The bytes' way to the client and back.
    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Waits for bytes to receive or for a wake-up.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Wake> {
        if self.transport.has_received() {
            return Ok(Wake::Readable);
        }
        let mut polled = [
            PollFd::new(&self.transport.socket, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        if !poll_for(&mut polled, timeout)? {
            return Ok(Wake::TimedOut);
        }
        let woken = !polled[1].revents().is_empty();
        if woken {
            self.clear_wake();
            return Ok(Wake::Woken);
        }
        Ok(Wake::Readable)
    }

    fn clear_wake(&self) {
        // Nothing to read is fine: only the counter's fall to zero matters.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// Sends `parts`, after whatever is pending, and waits for the client to
    /// take them until `deadline`.
    pub(crate) fn send(&self, parts: &mut [IoSlice<'_>], deadline: Duration) -> io::Result<()> {
        let deadline = Instant::now() + deadline;
        let mut owed = {
            let mut state = self.state.lock();
            state.sending = true;
            std::mem::take(&mut state.pending)
        };
        let mut result = Ok(());
        if !owed.is_empty() {
            result = self.send_all(&mut [IoSlice::new(&owed)], deadline);
        }
        if result.is_ok() {
            result = self.send_all(parts, deadline);
        }
        loop {
            let mut state = self.state.lock();
            if result.is_err() {
                state.broken = true;
            }
            if result.is_err() || state.pending.is_empty() {
                owed.clear();
                if result.is_ok() && state.pending.capacity() == 0 {
                    state.pending = owed;
                }
                state.sending = false;
                return result;
            }
            owed = std::mem::take(&mut state.pending);
            drop(state);
            result = self.send_all(&mut [IoSlice::new(&owed)], deadline);
        }
    }

    fn send_all(&self, mut parts: &mut [IoSlice<'_>], deadline: Instant) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.transport.send(parts) {
                Ok(count) => IoSlice::advance_slices(&mut parts, count),
                Err(Errno::AGAIN) => self.wait_writable(deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        while !self.transport.flush()? {
            self.wait_writable(deadline)?;
        }
        Ok(())
    }

    /// Waits until the socket takes bytes again.
    pub(crate) fn wait_writable(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(&self.transport.socket, PollFlags::OUT)];
        if poll_for(&mut polled, Some(left))? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "The client does not take its replies",
        ))
    }

    /// Announces `count` requests that will be answered by [`Outbox::complete`].
    pub(crate) fn begin(&self, count: usize) {
        self.state.lock().in_flight += count;
    }

    /// Requests announced and not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.state.lock().in_flight
    }

    /// Sends the replies of `count` announced requests without ever waiting.
    /// What the socket does not take is left to the connection thread.
    pub(crate) fn complete(&self, replies: &[u8], count: usize) {
        let mut state = self.state.lock();
        state.in_flight -= count;
        if !state.broken {
            let mut rest = replies;
            if !state.sending && state.pending.is_empty() {
                rest = self.try_send(rest, &mut state);
            }
            state.pending.extend_from_slice(rest);
        }
        let unsent = !state.pending.is_empty() || self.transport.has_unsent();
        let left_over = !state.sending && unsent;
        let wake = left_over || state.awaited || state.broken;
        drop(state);
        if wake {
            self.wake();
        }
    }

    fn try_send<'a>(&self, bytes: &'a [u8], state: &mut State) -> &'a [u8] {
        match self.transport.send(&[IoSlice::new(bytes)]) {
            Ok(count) => &bytes[count..],
            Err(Errno::AGAIN) => bytes,
            Err(_) => {
                state.broken = true;
                &[]
            }
        }
    }

    /// Waits until at most `most` announced requests are unanswered; sends what
    /// is pending meanwhile. `false` when the client is gone or `deadline` over.
    pub(crate) fn settle(&self, most: usize, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        loop {
            {
                let mut state = self.state.lock();
                if state.broken {
                    return false;
                }
                state.awaited = state.in_flight > most;
                if !state.awaited && state.pending.is_empty() && !self.transport.has_unsent() {
                    return true;
                }
            }
            if self.send(&mut [], deadline).is_err() {
                return false;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if self.in_flight() > most {
                let mut polled = [PollFd::new(&self.wake, PollFlags::IN)];
                if poll_for(&mut polled, Some(left)).is_err() {
                    return false;
                }
                self.clear_wake();
            }
        }
    }

    /// Whether there is anything for the connection thread to send.
    pub(crate) fn has_pending(&self) -> bool {
        !self.state.lock().pending.is_empty() || self.transport.has_unsent()
    }

    /// Marks the connection ended: later completions are dropped.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.broken = true;
        state.pending = Vec::new();
    }

    /// Says that nothing more will be sent, and throws away what still arrives
    /// until the client closes too. Closing with unread bytes would make TCP
    /// reset the connection and take sent replies away from the client.
    pub(crate) fn linger(&self, limit: Duration) {
        self.transport.close_notify();
        if rustix::net::shutdown(&self.transport.socket, Shutdown::Write).is_err() {
            return;
        }
        let end = Instant::now() + limit;
        let mut scratch = [0; 4096];
        loop {
            match self.receive(&mut scratch) {
                Ok(Some(0)) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => {
                    let left = end.saturating_duration_since(Instant::now());
                    let mut polled = [PollFd::new(&self.transport.socket, PollFlags::IN)];
                    if left.is_zero() || poll_for(&mut polled, Some(left)).is_err() {
                        return;
                    }
                }
            }
            if Instant::now() >= end {
                return;
            }
        }
    }
}

/// `false` when the time is over.
pub(crate) fn poll_for(polled: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
    let timeout = timeout.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    loop {
        match poll(polled, timeout.as_ref()) {
            Ok(count) => return Ok(count != 0),
            // Signals are rare; starting the time anew is harmless.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
