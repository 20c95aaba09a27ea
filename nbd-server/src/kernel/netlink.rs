//! Control messages of the kernel's NBD driver, over generic netlink.
//!
//! ```text
//!   netlink header | generic header (command, version) | attribute, attribute ...
//!   attribute: length u16 | kind u16 | value, padded to 4       (host byte order)
//!   SOCKETS: [ SOCK_ITEM: [ SOCK_FD u32 ] ]
//! ```
//!
//! The source of the numbers is `include/uapi/linux/nbd-netlink.h` of Linux.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    Nla, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{
        GenlCtrl, GenlCtrlCmd,
        nlas::{GenlCtrlAttrs, McastGrpAttrs},
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;
const EVENTS: &str = "nbd_mc_group";

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const LINK_DEAD: u8 = 4;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    pub(super) const SOCK_ITEM: u16 = 1;
    pub(super) const SOCK_FD: u16 = 1;
}

/// A message to or from the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Message {
    fn new(command: u8) -> Self {
        Self {
            command,
            attributes: Vec::new(),
        }
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.attributes.push(DefaultNla::new(kind, value.to_vec()));
        self
    }

    fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    fn with_u64(self, kind: u16, value: u64) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    fn with_socket(self, socket: BorrowedFd<'_>) -> Self {
        let descriptor = socket.as_raw_fd().to_ne_bytes();
        let fd = nested(attribute::SOCK_FD, &descriptor);
        let item = nested(attribute::SOCK_ITEM, &fd);
        self.with(attribute::SOCKETS, &item)
    }

    fn with_identifier(self, identifier: &str) -> Self {
        let mut text = identifier.as_bytes().to_vec();
        text.push(0);
        self.with(attribute::BACKEND_IDENTIFIER, &text)
    }

    /// The number of the device that it is about.
    fn index(&self) -> Option<u32> {
        let found = self
            .attributes
            .iter()
            .find(|found| found.kind() == attribute::INDEX)?;
        let mut value = vec![0; found.value_len()];
        found.emit_value(&mut value);
        Some(u32::from_ne_bytes(value.try_into().ok()?))
    }
}

/// An attribute as the value of another.
fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let inner = [DefaultNla::new(kind, value.to_vec())];
    let mut bytes = vec![0; inner.as_slice().buffer_len()];
    inner.as_slice().emit(&mut bytes);
    bytes
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes)
            .map(|found| {
                let found = found?;
                Ok(DefaultNla::new(found.kind(), found.value().to_vec()))
            })
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self {
            command: header.cmd,
            attributes,
        })
    }
}

/// What a device is to be.
#[derive(Debug)]
pub(super) struct NewDevice<'a> {
    /// Its number; otherwise the first that is free.
    pub(super) index: Option<u32>,
    pub(super) size: u64,
    pub(super) block_bytes: u32,
    /// The transmission flags.
    pub(super) flags: u16,
    /// How long requests wait for a connection.
    pub(super) wait: Duration,
    pub(super) identifier: &'a str,
    pub(super) socket: BorrowedFd<'a>,
}

/// The driver.
pub(super) struct Driver {
    socket: Socket,
    family: u16,
    events: u32,
}

impl Driver {
    /// Finds it.
    ///
    /// # Errors
    /// `NotFound` when the kernel has none.
    pub(super) fn open() -> io::Result<Self> {
        let socket = open_socket()?;
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        });
        let mut family = None;
        let mut events = None;
        exchange(&socket, question, |answer: GenlCtrl| {
            for found in answer.nlas {
                match found {
                    GenlCtrlAttrs::FamilyId(id) => family = Some(id),
                    GenlCtrlAttrs::McastGroups(groups) => events = group_named(&groups, EVENTS),
                    _ => {}
                }
            }
        })?;
        let unusable = || io::Error::new(io::ErrorKind::Unsupported, "it has no netlink interface");
        Ok(Self {
            socket,
            family: family.ok_or_else(unusable)?,
            events: events.ok_or_else(unusable)?,
        })
    }

    /// Makes a device; returns its number.
    pub(super) fn connect(&self, device: &NewDevice<'_>) -> io::Result<u32> {
        let mut message = Message::new(command::CONNECT);
        if let Some(index) = device.index {
            message = message.with_u32(attribute::INDEX, index);
        }
        let message = message
            .with_u64(attribute::SIZE_BYTES, device.size)
            .with_u64(attribute::BLOCK_SIZE_BYTES, device.block_bytes.into())
            .with_u64(attribute::SERVER_FLAGS, device.flags.into())
            .with_u64(attribute::DEAD_CONN_TIMEOUT, device.wait.as_secs())
            .with_identifier(device.identifier)
            .with_socket(device.socket);
        let mut index = None;
        self.exchange(message, |answer| index = answer.index())?;
        index.ok_or_else(|| io::Error::other("the driver does not tell which device it is"))
    }

    /// Gives a device a new socket for one that is dead, and a size. Without a
    /// dead one nothing changes, and that is no error.
    pub(super) fn reconnect(
        &self,
        index: u32,
        identifier: &str,
        size: u64,
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let message = Message::new(command::RECONFIGURE)
            .with_u32(attribute::INDEX, index)
            .with_u64(attribute::SIZE_BYTES, size)
            .with_identifier(identifier)
            .with_socket(socket);
        self.exchange(message, |_| {})
    }

    /// Ends a device. Requests under way fail.
    pub(super) fn disconnect(&self, index: u32) -> io::Result<()> {
        let message = Message::new(command::DISCONNECT).with_u32(attribute::INDEX, index);
        self.exchange(message, |_| {})
    }

    /// What the driver tells of its own accord, from now on.
    pub(super) fn events(&self) -> io::Result<Events> {
        let socket = open_socket()?;
        socket.add_membership(self.events)?;
        Ok(Events { socket })
    }

    fn exchange(&self, message: Message, take: impl FnMut(Message)) -> io::Result<()> {
        let mut message = GenlMessage::from_payload(message);
        message.set_resolved_family_id(self.family);
        exchange(&self.socket, message, take)
    }
}

fn group_named(groups: &[Vec<McastGrpAttrs>], wanted: &str) -> Option<u32> {
    let group = groups.iter().find(|group| {
        let named = |found: &McastGrpAttrs| matches!(found, McastGrpAttrs::Name(n) if n == wanted);
        group.iter().any(named)
    })?;
    group.iter().find_map(|found| match found {
        McastGrpAttrs::Id(id) => Some(*id),
        McastGrpAttrs::Name(_) => None,
    })
}

/// Messages that nobody asked for.
pub(super) struct Events {
    socket: Socket,
}

impl Events {
    /// Whether the device may have lost its connection within this time. `true`
    /// also when messages were lost, since one of them may have said so.
    pub(super) fn lost(&self, index: u32, within: Duration) -> io::Result<bool> {
        let within = Timespec::try_from(within).map_err(io::Error::other)?;
        let mut waiting = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut waiting, Some(&within)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let datagram = match self.socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let mut lost = false;
        for message in messages::<Message>(&datagram) {
            if let NetlinkPayload::InnerMessage(message) = message?.payload {
                let (header, body) = message.into_parts();
                lost |= header.cmd == command::LINK_DEAD && body.index() == Some(index);
            }
        }
        Ok(lost)
    }

    /// Forgets what has come so far.
    pub(super) fn clear(&self, index: u32) -> io::Result<()> {
        while self.lost(index, Duration::ZERO)? {}
        Ok(())
    }
}

fn open_socket() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a message, and takes answers until the kernel says how it went.
fn exchange<M>(socket: &Socket, message: GenlMessage<M>, mut take: impl FnMut(M)) -> io::Result<()>
where
    M: GenlFamily + Emitable + std::fmt::Debug + ParseableParametrized<[u8], GenlHeader>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages::<M>(&datagram) {
            match message?.payload {
                NetlinkPayload::InnerMessage(message) => take(message.into_parts().1),
                NetlinkPayload::Error(said) => {
                    return match said.code {
                        None => Ok(()),
                        Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                    };
                }
                _ => {}
            }
        }
    }
}

/// The messages of a datagram.
fn messages<M>(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<GenlMessage<M>>>>
where
    M: std::fmt::Debug + ParseableParametrized<[u8], GenlHeader>,
{
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<GenlMessage<M>>::deserialize(rest);
        let length = message.as_ref().map_or(rest.len(), |message| {
            // Each begins at a multiple of four bytes.
            (message.header.length as usize).next_multiple_of(4).max(4)
        });
        rest = rest.get(length..).unwrap_or_default();
        Some(message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::os::fd::AsFd;

    use super::*;

    fn bytes_of(message: Message, family: u16) -> Vec<u8> {
        let mut message = GenlMessage::from_payload(message);
        message.set_resolved_family_id(family);
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_socket_is_nested_twice_in_the_order_the_kernel_reads() {
        let standard_input = std::io::stdin();
        let message = Message::new(command::RECONFIGURE)
            .with_u32(attribute::INDEX, 7)
            .with_socket(standard_input.as_fd());
        let bytes = bytes_of(message, 0x21);
        let word = |value: u32| value.to_ne_bytes();
        let half = |value: u16| value.to_ne_bytes();
        let mut expected = Vec::new();
        expected.extend(word(16 + 4 + 8 + 16));
        expected.extend(half(0x21));
        expected.extend([0; 10]);
        // Command, version, reserved.
        expected.extend([3, 1, 0, 0]);
        // INDEX = 7.
        expected.extend(half(8));
        expected.extend(half(1));
        expected.extend(word(7));
        // SOCKETS [ SOCK_ITEM [ SOCK_FD = 0 ] ].
        expected.extend(half(16));
        expected.extend(half(7));
        expected.extend(half(12));
        expected.extend(half(1));
        expected.extend(half(8));
        expected.extend(half(1));
        expected.extend(word(0));
        assert_eq!(bytes, expected);
    }

    #[test]
    fn messages_of_one_datagram_are_told_apart() {
        let mut datagram = bytes_of(
            Message::new(command::LINK_DEAD).with_u32(attribute::INDEX, 3),
            0x21,
        );
        datagram.extend(bytes_of(
            Message::new(command::CONNECT).with_identifier("ab"),
            0x21,
        ));
        let found: Vec<_> = messages::<Message>(&datagram)
            .map(|message| match message.unwrap().payload {
                NetlinkPayload::InnerMessage(message) => message.into_parts().1,
                other => panic!("{other:?}"),
            })
            .map(|message| (message.command, message.index()))
            .collect();
        assert_eq!(
            found,
            [(command::LINK_DEAD, Some(3)), (command::CONNECT, None)]
        );
    }

    #[test]
    fn malformed_messages_are_errors_and_an_odd_index_is_none() {
        let whole = bytes_of(
            Message::new(command::LINK_DEAD).with_u32(attribute::INDEX, 3),
            0x21,
        );
        for length in 1..whole.len() {
            assert!(
                messages::<Message>(&whole[..length]).any(|message| message.is_err()),
                "{length} bytes of {}",
                whole.len()
            );
        }
        let odd = Message::new(command::LINK_DEAD).with(attribute::INDEX, &[1, 2]);
        assert_eq!(odd.index(), None);
    }
}
