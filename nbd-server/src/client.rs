//! A small NBD client: one export, one connection, simple replies. It reads, or
//! hands its socket over to the kernel's driver once all is agreed.
//!
//! It asks for nothing that a server may not have: fixed newstyle, `GO`, and
//! reads of bounded length, a few of them ahead of each other so that a slow
//! link is kept busy. Everything a server sends is checked and bounded.
//!
//! ```no_run
//! use tessera_nbd::client::{Client, Uri};
//!
//! let uri: Uri = "nbd+unix:///vm1?socket=/srv/tank/nbd.sock".parse()?;
//! let mut client = Client::connect(&uri)?;
//! let mut first = vec![0; 4096];
//! client.read(0, &mut first)?;
//! # Ok::<(), tessera_nbd::client::ClientError>(())
//! ```

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use thiserror::Error;

use crate::protocol::{
    constants::{
        FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, MAX_OPTION_BYTES, MAX_STRING_BYTES,
        OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, command, info, option,
        option_reply,
    },
    contexts::KEPT,
    cursor::Cursor,
};

mod uri;

use uri::Place;
pub use uri::Uri;

/// The longest read sent as one request: what servers take without asking.
const READ_BYTES: usize = 1 << 20;
/// Reads under way at once.
const READS_AHEAD: usize = 4;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most contexts that are read in answer to a query for one.
const CONTEXTS_MAX: usize = 16;
/// How long one address of a server may take to be reached.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Why an export cannot be read.
#[derive(Debug, Error)]
pub enum ClientError {
    /// What was given is no URI that this client understands.
    #[error("{0:?} is no NBD address: {1}")]
    Uri(String, &'static str),
    /// The server cannot be reached, or the connection broke.
    #[error("The NBD server at {0} {1}")]
    Io(String, &'static str, #[source] io::Error),
    /// The server does not do what the protocol says.
    #[error("The NBD server breaks the protocol: {0}")]
    Protocol(String),
    /// There is no such export.
    #[error("The NBD server has no export {0:?}")]
    NoExport(String),
    /// The server wants something this client does not have.
    #[error("The NBD server refuses the export {0:?}: {1}")]
    Refused(String, String),
    /// A read failed on the server's side.
    #[error("Reading {length} bytes at {offset} failed on the NBD server (error {code})")]
    Read {
        /// The first byte wanted.
        offset: u64,
        /// How many.
        length: usize,
        /// The protocol's number for it, as errno.
        code: u32,
    },
}

/// How long a connection that is handed over may be silent before its other end
/// is asked whether it is still there, and how often and how many times then.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_COUNT: u32 = 3;

trait Stream: Read + Write + Send {
    /// Sets how long a read or a write may take.
    fn limit(&self, patience: Option<Duration>) -> io::Result<()>;

    /// Another descriptor for the same socket, for one who waits for ever.
    fn for_ever(&self) -> io::Result<OwnedFd>;
}

impl Stream for TcpStream {
    fn limit(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(patience)?;
        self.set_write_timeout(patience)
    }

    fn for_ever(&self) -> io::Result<OwnedFd> {
        use rustix::net::sockopt::{
            set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
        };
        self.limit(None)?;
        set_socket_keepalive(self, true)?;
        set_tcp_keepidle(self, KEEPALIVE_AFTER)?;
        set_tcp_keepintvl(self, KEEPALIVE_INTERVAL)?;
        set_tcp_keepcnt(self, KEEPALIVE_COUNT)?;
        self.as_fd().try_clone_to_owned()
    }
}

impl Stream for UnixStream {
    fn limit(&self, patience: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(patience)?;
        self.set_write_timeout(patience)
    }

    fn for_ever(&self) -> io::Result<OwnedFd> {
        self.limit(None)?;
        self.as_fd().try_clone_to_owned()
    }
}

/// What a server says about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// Its size in bytes.
    pub size: u64,
    /// Its transmission flags, as the protocol numbers them.
    pub flags: u16,
    /// The least a request may be aligned to, in bytes, where the server tells.
    pub block_bytes: Option<u32>,
}

/// A connection to one export.
pub struct Client {
    stream: Box<dyn Stream>,
    server: String,
    terms: Terms,
    next_cookie: u64,
    handed_over: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.server)
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects and chooses the export.
    ///
    /// # Errors
    /// One sentence: the server cannot be reached, has no such export, refuses
    /// it, or breaks the protocol.
    pub fn connect(uri: &Uri) -> Result<Self, ClientError> {
        let (stream, server) = Self::reach(uri)?;
        Self::negotiate(stream, server, &uri.export)
    }

    /// Asks on a connection of its own whether all that an instance of the server
    /// has answered is kept, and gives the instance's name back if so; without
    /// `instance` the name of the one that serves. `None` also from servers that
    /// know nothing of instances.
    ///
    /// # Errors
    /// As for [`Client::connect`].
    pub fn kept(uri: &Uri, instance: Option<&str>) -> Result<Option<String>, ClientError> {
        let (stream, server) = Self::reach(uri)?;
        let mut client = Self::greet(stream, server)?;
        // Only the options are used, so there is nothing to say goodbye to but
        // with one of them.
        client.handed_over = true;
        let asked = client.ask_kept(&uri.export, instance.unwrap_or_default());
        let _gone_already = client.send_option(option::ABORT, &[]);
        asked
    }

    fn ask_kept(&mut self, export: &str, instance: &str) -> Result<Option<String>, ClientError> {
        self.send_option(option::STRUCTURED_REPLY, &[])?;
        let (kind, _) = self.option_reply()?;
        if kind != option_reply::ACK {
            return Ok(None);
        }
        let query = format!("{KEPT}{instance}");
        let mut payload = counted(export);
        payload.extend(1_u32.to_be_bytes());
        payload.extend(counted(&query));
        self.send_option(option::LIST_META_CONTEXT, &payload)?;
        let mut found = None;
        for _ in 0..CONTEXTS_MAX {
            let (kind, payload) = self.option_reply()?;
            if kind != option_reply::META_CONTEXT {
                return Ok(found);
            }
            let name = payload.get(4..).map(String::from_utf8_lossy);
            let name = name.as_deref().and_then(|name| name.strip_prefix(KEPT));
            let fits = |name: &&str| instance.is_empty() || *name == instance;
            found = found.or(name.filter(fits).map(str::to_owned));
        }
        let why = "it tells of more contexts than were asked for";
        Err(ClientError::Protocol(why.to_owned()))
    }

    fn reach(uri: &Uri) -> Result<(Box<dyn Stream>, String), ClientError> {
        let server = uri.to_string();
        let failed = |error| ClientError::Io(server.clone(), "cannot be reached", error);
        let stream: Box<dyn Stream> = match &uri.place {
            Place::Tcp(host, port) => {
                let stream = connect_tcp(host, *port).map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                Box::new(stream)
            }
            Place::Unix(path) => Box::new(UnixStream::connect(path).map_err(failed)?),
        };
        stream.limit(Some(PATIENCE)).map_err(failed)?;
        Ok((stream, server))
    }

    fn negotiate(
        stream: Box<dyn Stream>,
        server: String,
        export: &str,
    ) -> Result<Self, ClientError> {
        let mut client = Self::greet(stream, server)?;
        client.go(export)?;
        Ok(client)
    }

    /// Up to where options are sent.
    fn greet(stream: Box<dyn Stream>, server: String) -> Result<Self, ClientError> {
        let mut client = Self {
            stream,
            server,
            terms: Terms::default(),
            next_cookie: 1,
            handed_over: false,
        };
        let greeting: [u8; 18] = client.receive()?;
        let (magic, rest) = greeting.split_at(8);
        let (again, flags) = rest.split_at(8);
        if magic != INIT_MAGIC.to_be_bytes() || again != OPTION_MAGIC.to_be_bytes() {
            return Err(ClientError::Protocol("its greeting is another".to_owned()));
        }
        let offered = u16::from_be_bytes([flags[0], flags[1]]);
        if offered & FLAG_FIXED_NEWSTYLE == 0 {
            let why = "it offers no fixed newstyle negotiation";
            return Err(ClientError::Protocol(why.to_owned()));
        }
        let answer = u32::from(offered & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        client.send(&answer.to_be_bytes())?;
        Ok(client)
    }

    fn go(&mut self, export: &str) -> Result<(), ClientError> {
        if export.len() > MAX_STRING_BYTES {
            return Err(ClientError::NoExport(export.to_owned()));
        }
        let mut payload = counted(export);
        payload.extend(0_u16.to_be_bytes());
        self.send_option(option::GO, &payload)?;
        let mut terms = None;
        let mut block_bytes = None;
        loop {
            let (kind, payload) = self.option_reply()?;
            match kind {
                option_reply::ACK => break,
                option_reply::INFO => {
                    let mut fields = Cursor(&payload);
                    match fields.u16() {
                        Some(info::EXPORT) => terms = fields.u64().zip(fields.u16()),
                        Some(info::BLOCK_SIZE) => block_bytes = fields.u32(),
                        _ => {}
                    }
                }
                option_reply::ERR_UNKNOWN => {
                    return Err(ClientError::NoExport(export.to_owned()));
                }
                kind if kind >= 1 << 31 => {
                    let why = match (kind, String::from_utf8_lossy(&payload)) {
                        (option_reply::ERR_TLS_REQD, _) => {
                            "it requires TLS, which is not spoken here".to_owned()
                        }
                        (_, said) if !said.is_empty() => said.into_owned(),
                        _ => format!("error {:#x}", kind),
                    };
                    return Err(ClientError::Refused(export.to_owned(), why));
                }
                _ => {}
            }
        }
        let (size, flags) = terms.ok_or_else(|| {
            ClientError::Protocol("it does not tell the size of the export".to_owned())
        })?;
        self.terms = Terms {
            size,
            flags,
            block_bytes,
        };
        Ok(())
    }

    fn send_option(&mut self, option: u32, payload: &[u8]) -> Result<(), ClientError> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend(length_of(payload).to_be_bytes());
        message.extend(payload);
        self.send(&message)
    }

    fn option_reply(&mut self) -> Result<(u32, Vec<u8>), ClientError> {
        let header: [u8; 20] = self.receive()?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let length = word(16) as usize;
        if header[..8] != OPTION_REPLY_MAGIC.to_be_bytes() || length > MAX_OPTION_BYTES {
            let why = "its reply to an option is malformed";
            return Err(ClientError::Protocol(why.to_owned()));
        }
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        Ok((word(12), payload))
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.terms.size
    }

    /// What the server says about the export.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// The socket, in transmission with simple replies and nothing under way,
    /// for somebody else to go on with. It has no time limit.
    ///
    /// # Errors
    /// The system refuses a setting or another descriptor.
    pub fn into_socket(mut self) -> Result<OwnedFd, ClientError> {
        let socket = self.stream.for_ever();
        let socket = socket.map_err(|error| {
            ClientError::Io(self.server.clone(), "cannot be handed over", error)
        })?;
        self.handed_over = true;
        Ok(socket)
    }

    /// Reads `target.len()` bytes at `offset`, which lie within the export.
    ///
    /// # Errors
    /// `Read` where the server says so; the connection can be used again then.
    /// After any other error it cannot.
    pub fn read(&mut self, offset: u64, target: &mut [u8]) -> Result<(), ClientError> {
        let mut under_way: VecDeque<(u64, u64, &mut [u8])> = VecDeque::new();
        let mut failed = None;
        let mut at = offset;
        for piece in target.chunks_mut(READ_BYTES) {
            if under_way.len() == READS_AHEAD {
                self.take_reply(&mut under_way, &mut failed)?;
            }
            let cookie = self.next_cookie;
            self.next_cookie += 1;
            let mut request = [0; 28];
            request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            request[6..8].copy_from_slice(&command::READ.to_be_bytes());
            request[8..16].copy_from_slice(&cookie.to_be_bytes());
            request[16..24].copy_from_slice(&at.to_be_bytes());
            request[24..].copy_from_slice(&length_of(piece).to_be_bytes());
            self.send(&request)?;
            let length = piece.len() as u64;
            under_way.push_back((cookie, at, piece));
            at += length;
        }
        while !under_way.is_empty() {
            self.take_reply(&mut under_way, &mut failed)?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Receives whichever reply comes next.
    fn take_reply(
        &mut self,
        under_way: &mut VecDeque<(u64, u64, &mut [u8])>,
        failed: &mut Option<ClientError>,
    ) -> Result<(), ClientError> {
        let header: [u8; 16] = self.receive()?;
        let cookie = u64::from_be_bytes([
            header[8], header[9], header[10], header[11], header[12], header[13], header[14],
            header[15],
        ]);
        let code = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let asked = under_way.iter().position(|(other, ..)| *other == cookie);
        let asked = asked.and_then(|number| under_way.remove(number));
        let Some((_, offset, piece)) =
            asked.filter(|_| header[..4] == SIMPLE_REPLY_MAGIC.to_be_bytes())
        else {
            let why = "it answers what was not asked";
            return Err(ClientError::Protocol(why.to_owned()));
        };
        if code == 0 {
            return self.fill(piece);
        }
        failed.get_or_insert(ClientError::Read {
            offset,
            length: piece.len(),
            code,
        });
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let sent = self.stream.write_all(bytes);
        sent.map_err(|error| ClientError::Io(self.server.clone(), "hung up", error))
    }

    fn receive<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, target: &mut [u8]) -> Result<(), ClientError> {
        self.stream.read_exact(target).map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "does not answer",
                _ => "hung up",
            };
            ClientError::Io(self.server.clone(), what, error)
        })
    }
}

/// The first of a host's addresses that answers.
fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        let mut goodbye = [0; 28];
        goodbye[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        goodbye[6..8].copy_from_slice(&command::DISC.to_be_bytes());
        let _gone_already = self.stream.write_all(&goodbye);
    }
}

/// A string behind its length.
fn counted(text: &str) -> Vec<u8> {
    let mut bytes = length_of(text.as_bytes()).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Lengths here are bounded far below 4 GiB by their callers.
fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("requests are cut into pieces of at most 1 MiB")
}

#[cfg(test)]
mod tests;
