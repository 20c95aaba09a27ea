//! A small NBD client that can do what real ones will not: extended headers,
//! broken messages, and requests without waiting for replies.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The headers to negotiate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Simple,
    Structured,
    Extended,
}

pub const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const ZERO: u16 = 6;
    pub const STATUS: u16 = 7;
}

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;
pub const PAYLOAD_LEN: u16 = 32;

pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EIO: u32 = 5;
pub const EPERM: u32 = 1;
pub const EOVERFLOW: u32 = 75;

pub trait Socket: Read + Write + Send {
    fn set_timeout(&self, timeout: Duration);
    fn stop_writing(&self);
    fn duplicate(&self) -> Box<dyn Socket>;
}

impl Socket for UnixStream {
    fn set_timeout(&self, timeout: Duration) {
        self.set_read_timeout(Some(timeout)).unwrap();
    }
    fn stop_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).unwrap();
    }
    fn duplicate(&self) -> Box<dyn Socket> {
        Box::new(self.try_clone().unwrap())
    }
}

impl Socket for TcpStream {
    fn set_timeout(&self, timeout: Duration) {
        self.set_read_timeout(Some(timeout)).unwrap();
    }
    fn stop_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).unwrap();
    }
    fn duplicate(&self) -> Box<dyn Socket> {
        Box::new(self.try_clone().unwrap())
    }
}

/// Longer than anything takes; only ends tests that have failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// One complete reply.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reply {
    pub error: u32,
    pub message: String,
    /// Chunks of data: offset (the request's, for a simple reply) and bytes.
    pub data: Vec<(u64, Vec<u8>)>,
    pub extents: Vec<(u64, u64)>,
    pub chunks: usize,
}

impl Reply {
    /// The data in order, checked to be without gaps from `offset`.
    pub fn bytes(&self, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut chunks: Vec<_> = self.data.iter().collect();
        chunks.sort_by_key(|(at, _)| *at);
        for (at, data) in chunks {
            assert_eq!(*at, offset + bytes.len() as u64, "chunks are contiguous");
            bytes.extend_from_slice(data);
        }
        bytes
    }
}

pub struct Client {
    pub socket: Box<dyn Socket>,
    pub style: Style,
    pub size: u64,
    pub flags: u16,
    next_cookie: u64,
    /// Length of reads, which simple replies do not tell, and offsets.
    asked: HashMap<u64, (u16, u64, u64)>,
    done: HashMap<u64, Reply>,
}

/// A client after the greeting.
pub struct Haggler {
    pub socket: Box<dyn Socket>,
}

impl Haggler {
    pub fn new(socket: impl Socket + 'static) -> Self {
        let mut haggler = Self::silent(socket);
        haggler.socket.write_all(&3u32.to_be_bytes()).unwrap();
        haggler
    }

    /// One that has not answered the greeting.
    pub fn silent(socket: impl Socket + 'static) -> Self {
        socket.set_timeout(PATIENCE);
        let mut socket: Box<dyn Socket> = Box::new(socket);
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
        Self { socket }
    }

    pub fn unix(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub fn send(&mut self, option: u32, payload: &[u8]) {
        self.socket
            .write_all(&option_bytes(option, payload))
            .unwrap();
    }

    /// The next reply to an option: type and payload.
    pub fn reply(&mut self) -> std::io::Result<(u32, Vec<u8>)> {
        let mut header = [0; 20];
        self.socket.read_exact(&mut header)?;
        assert_eq!(header[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        let length = u32::from_be_bytes(header[16..].try_into().unwrap()) as usize;
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload)?;
        Ok((
            u32::from_be_bytes(header[12..16].try_into().unwrap()),
            payload,
        ))
    }

    /// Sends an option and returns the replies up to the final one.
    pub fn ask(&mut self, option: u32, payload: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(option, payload);
        let mut replies = Vec::new();
        loop {
            let reply = self.reply().unwrap();
            let last = reply.0 == 1 || reply.0 >= 1 << 31;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub fn go(mut self, style: Style, export: &str) -> Client {
        match style {
            Style::Simple => {}
            Style::Structured => assert_eq!(self.ask(8, &[])[0].0, 1),
            Style::Extended => assert_eq!(self.ask(11, &[])[0].0, 1),
        }
        if style != Style::Simple {
            let mut contexts = counted(export);
            contexts.extend(1u32.to_be_bytes());
            contexts.extend(counted("base:allocation"));
            assert_eq!(self.ask(10, &contexts).len(), 2);
        }
        let mut go = counted(export);
        go.extend([0, 0]);
        let replies = self.ask(7, &go);
        assert_eq!(replies.last().unwrap().0, 1, "GO failed: {replies:?}");
        let info = &replies[0].1;
        Client {
            socket: self.socket,
            style,
            size: u64::from_be_bytes(info[2..10].try_into().unwrap()),
            flags: u16::from_be_bytes(info[10..12].try_into().unwrap()),
            next_cookie: 1,
            asked: HashMap::new(),
            done: HashMap::new(),
        }
    }
}

pub fn counted(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub fn option_bytes(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

impl Client {
    pub fn connect(path: &Path, style: Style) -> Self {
        Haggler::unix(path).go(style, "")
    }

    /// The bytes of a request header.
    pub fn header(
        &self,
        cookie: u64,
        flags: u16,
        command: u16,
        offset: u64,
        length: u64,
    ) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        bytes
    }

    /// Appends a request to `out` and expects its reply.
    pub fn put(
        &mut self,
        out: &mut Vec<u8>,
        flags: u16,
        command: u16,
        offset: u64,
        length: u64,
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.asked.insert(cookie, (command, offset, length));
        out.extend(self.header(cookie, flags, command, offset, length));
        cookie
    }

    pub fn send(&mut self, flags: u16, command: u16, offset: u64, length: u64) -> u64 {
        let mut bytes = Vec::new();
        let cookie = self.put(&mut bytes, flags, command, offset, length);
        self.socket.write_all(&bytes).unwrap();
        cookie
    }

    /// Appends a write with its data.
    pub fn put_write(&mut self, out: &mut Vec<u8>, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let flags = if self.style == Style::Extended {
            flags | PAYLOAD_LEN
        } else {
            flags
        };
        let cookie = self.put(out, flags, cmd::WRITE, offset, data.len() as u64);
        out.extend(data);
        cookie
    }

    pub fn send_write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let mut bytes = Vec::new();
        let cookie = self.put_write(&mut bytes, flags, offset, data);
        self.socket.write_all(&bytes).unwrap();
        cookie
    }

    /// Whether the reply to a request has been read already.
    pub fn is_answered(&self, cookie: u64) -> bool {
        !self.asked.contains_key(&cookie)
    }

    /// Waits for the reply to a request, taking in others meanwhile.
    pub fn reply(&mut self, cookie: u64) -> Reply {
        loop {
            if !self.asked.contains_key(&cookie)
                && let Some(reply) = self.done.remove(&cookie)
            {
                return reply;
            }
            self.read_chunk().expect("the server answers");
        }
    }

    pub fn call(&mut self, flags: u16, command: u16, offset: u64, length: u64) -> Reply {
        let cookie = self.send(flags, command, offset, length);
        self.reply(cookie)
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.send_write(flags, offset, data);
        self.reply(cookie).error
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let reply = self.call(0, cmd::READ, offset, length);
        assert_eq!(reply.error, 0, "{}", reply.message);
        reply.bytes(offset)
    }

    /// Nothing more arrives, and the connection is closed.
    pub fn assert_closed(&mut self) {
        match self.socket.read(&mut [0; 64]) {
            Ok(0) => {}
            Ok(count) => panic!("{count} unexpected bytes"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    fn exact<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn vec(&mut self, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads one simple reply or chunk.
    pub fn read_chunk(&mut self) -> std::io::Result<()> {
        let magic = u32::from_be_bytes(self.exact()?);
        match magic {
            0x6744_6698 => {
                assert_ne!(
                    self.style,
                    Style::Extended,
                    "no simple replies with extended headers"
                );
                let error = u32::from_be_bytes(self.exact()?);
                let cookie = u64::from_be_bytes(self.exact()?);
                let (command, offset, length) = self
                    .asked
                    .remove(&cookie)
                    .expect("a reply to an open request");
                let mut reply = Reply {
                    error,
                    ..Reply::default()
                };
                if command == cmd::READ {
                    assert_eq!(self.style, Style::Simple, "reads are answered by chunks");
                    if error == 0 {
                        reply.data.push((offset, self.vec(length as usize)?));
                    }
                }
                self.done.insert(cookie, reply);
            }
            0x668e_33ef | 0x6e8a_278c => {
                let extended = magic == 0x6e8a_278c;
                assert_eq!(extended, self.style == Style::Extended);
                assert_ne!(self.style, Style::Simple);
                let flags = u16::from_be_bytes(self.exact()?);
                let kind = u16::from_be_bytes(self.exact()?);
                let cookie = u64::from_be_bytes(self.exact()?);
                let (command, offset, length) = *self
                    .asked
                    .get(&cookie)
                    .expect("a chunk for an open request");
                let payload = if extended {
                    assert_eq!(
                        u64::from_be_bytes(self.exact()?),
                        offset,
                        "the request's offset"
                    );
                    u64::from_be_bytes(self.exact()?)
                } else {
                    u64::from(u32::from_be_bytes(self.exact()?))
                };
                let payload = self.vec(payload as usize)?;
                let reply = self.done.entry(cookie).or_default();
                reply.chunks += 1;
                let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                let long = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
                match kind {
                    0 => assert_eq!((payload.len(), flags), (0, 1)),
                    1 => {
                        assert_eq!(command, cmd::READ);
                        let at = long(0);
                        let end = at + payload.len() as u64 - 8;
                        assert!(at >= offset && end <= offset + length && end > at);
                        reply.data.push((at, payload[8..].to_vec()));
                    }
                    5 | 6 => {
                        assert_eq!(kind == 6, extended);
                        assert_eq!(word(0), 1);
                        assert!(reply.extents.is_empty(), "one chunk per context");
                        let (first, each) = if extended { (8, 16) } else { (4, 8) };
                        for at in (first..payload.len()).step_by(each) {
                            reply.extents.push(if extended {
                                (long(at), long(at + 8))
                            } else {
                                (u64::from(word(at)), u64::from(word(at + 4)))
                            });
                        }
                        assert!(!extended || word(4) as usize == reply.extents.len());
                    }
                    0x8001 => {
                        reply.error = word(0);
                        let length = u16::from_be_bytes([payload[4], payload[5]]) as usize;
                        reply.message = String::from_utf8(payload[6..6 + length].to_vec()).unwrap();
                        assert_eq!(payload.len(), 6 + length);
                    }
                    other => panic!("chunk type {other}"),
                }
                if flags & 1 != 0 {
                    self.asked.remove(&cookie);
                }
            }
            other => panic!("{other:#x} starts no reply"),
        }
        Ok(())
    }
}
