//! The bytes of a connection: in the clear, or under TLS once a client has
//! asked for it.
//!
//! ```text
//!   receive  <── plaintext ── Session ── ciphertext ──┐
//!   send     ── plaintext ──> (rustls) ── ciphertext ─┴─> socket
//! ```
//! No call blocks. Under TLS what [`Transport::send`] has taken may still be
//! ciphertext that the socket had no room for: [`Transport::flush`] tells, and
//! nothing more is taken before it has left.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use rustls::{ServerConfig, ServerConnection};

/// Slices handed to the kernel at once.
const MAX_SLICES: usize = 64;
/// Plaintext encrypted before the socket is asked to take it: some records.
const ENCRYPTED_BYTES: usize = 64 << 10;

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) socket: OwnedFd,
    session: OnceLock<Mutex<Session>>,
}

#[derive(Debug)]
struct Session {
    tls: ServerConnection,
    /// The last call that received filled its buffer: there may be more that
    /// has left the socket already.
    more: bool,
}

impl Transport {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            session: OnceLock::new(),
        }
    }

    /// From now on everything is TLS, its handshake first.
    pub(crate) fn start_tls(&self, config: Arc<ServerConfig>) -> io::Result<()> {
        let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(ENCRYPTED_BYTES));
        let session = Mutex::new(Session { tls, more: false });
        self.session
            .set(session)
            .map_err(|_| io::Error::other("TLS has been started before"))
    }

    /// Whether the client has not finished TLS's handshake.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.session
            .get()
            .is_some_and(|session| session.lock().tls.is_handshaking())
    }

    /// Goes on with the handshake as far as what has arrived allows; as
    /// [`Transport::receive`], of ciphertext.
    pub(crate) fn shake_hands(&self) -> io::Result<Option<usize>> {
        match self.session.get() {
            None => Ok(None),
            Some(session) => session.lock().pull(self),
        }
    }

    /// The certificate that the client has shown.
    pub(crate) fn client_certificate(&self) -> Option<Vec<u8>> {
        let session = self.session.get()?.lock();
        let chain = session.tls.peer_certificates()?;
        chain.first().map(|certificate| certificate.to_vec())
    }

    /// Whether there is something to receive that the socket does not know of.
    pub(crate) fn has_received(&self) -> bool {
        self.session
            .get()
            .is_some_and(|session| session.lock().more)
    }

    /// Receives what has arrived; `Ok(None)` when nothing has, `Ok(Some(0))` at
    /// the end of the stream.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.session.get() {
            None => self.receive_raw(buffer),
            Some(session) => session.lock().receive(self, buffer),
        }
    }

    fn receive_raw(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes some of `parts`; how much. [`Errno::AGAIN`] when there is no room.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        match self.session.get() {
            None => self.send_raw(parts),
            Some(session) => session.lock().send(self, parts),
        }
    }

    fn send_raw(&self, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let sent = match parts {
                [one] => send(&self.socket, one, flags),
                many => sendmsg(
                    &self.socket,
                    &many[..many.len().min(MAX_SLICES)],
                    &mut SendAncillaryBuffer::default(),
                    flags,
                ),
            };
            match sent {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Whether everything that was taken has left; tries to send it.
    pub(crate) fn flush(&self) -> Result<bool, Errno> {
        match self.session.get() {
            None => Ok(true),
            Some(session) => session.lock().flush(self),
        }
    }

    /// Whether something that was taken has not left.
    pub(crate) fn has_unsent(&self) -> bool {
        self.session
            .get()
            .is_some_and(|session| session.lock().tls.wants_write())
    }

    /// Tells the client, as far as the socket has room, that no more will come.
    pub(crate) fn close_notify(&self) {
        if let Some(session) = self.session.get() {
            let mut session = session.lock();
            session.tls.send_close_notify();
            // The client learns of it from the socket, too.
            let _ = session.flush(self);
        }
    }
}

impl Session {
    fn receive(&mut self, transport: &Transport, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        self.more = false;
        loop {
            match self.tls.reader().read(&mut buffer[filled..]) {
                // The client has said goodbye.
                Ok(0) => return Ok(Some(filled)),
                Ok(count) => {
                    filled += count;
                    if filled == buffer.len() {
                        self.more = true;
                        return Ok(Some(filled));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.pull(transport)? {
                        // What came before counts; the end is found again.
                        Some(0) => return Ok(Some(filled)),
                        Some(_) => {}
                        None => return Ok((filled != 0).then_some(filled)),
                    }
                }
                // The client has closed without a goodbye: NBD has its own.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Some(filled));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in ciphertext; `Ok(None)` when there is none, `Ok(Some(0))` at the
    /// end of the stream.
    fn pull(&mut self, transport: &Transport) -> io::Result<Option<usize>> {
        let count = match self.tls.read_tls(&mut Socket(transport)) {
            Ok(0) => return Ok(Some(0)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let processed = self.tls.process_new_packets();
        // An alert, or an answer of TLS's own.
        let _ = self.flush(transport);
        processed.map_err(io::Error::other)?;
        Ok(Some(count))
    }

    fn send(&mut self, transport: &Transport, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        if !self.flush(transport)? {
            return Err(Errno::AGAIN);
        }
        let mut taken = 0;
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                // Fails only where the session is broken.
                let count = self.tls.writer().write(rest).map_err(|_| Errno::PIPE)?;
                taken += count;
                rest = &rest[count..];
                if (count == 0 || !rest.is_empty()) && !self.flush(transport)? {
                    return Ok(taken);
                }
            }
        }
        self.flush(transport)?;
        Ok(taken)
    }

    fn flush(&mut self, transport: &Transport) -> Result<bool, Errno> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(transport)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        Ok(true)
    }
}

/// The socket as rustls reads and writes it.
struct Socket<'a>(&'a Transport);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.receive_raw(buffer)? {
            Some(count) => Ok(count),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.0.send_raw(&[IoSlice::new(bytes)])?)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(self.0.send_raw(parts)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
