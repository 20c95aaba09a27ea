//! Connections that come, misbehave and go; listening and shutting down.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::client::*;
use common::disk::{FlushMode, MemoryCatalog, MemoryDisk};
use common::{Served, eventually};
use tempfile::TempDir;
use tessera_nbd::client::{Client as Reader, Uri};
use tessera_nbd::{Drained, Instance, ListenError, Server, ServerOptions};

const MIB: u64 = 1 << 20;
/// Never reached unless a test has failed.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;
const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
const ERR_TOO_BIG: u32 = (1 << 31) + 9;

fn go(name: &str) -> Vec<u8> {
    let mut payload = counted(name);
    payload.extend([0, 0]);
    payload
}

#[test]
fn many_exports_are_told_apart_by_name() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("s");
    let one = Arc::new(MemoryDisk::new("one", MIB));
    let two = Arc::new(MemoryDisk::new("two", 2 * MIB));
    let catalog = MemoryCatalog::with(&[one, Arc::clone(&two)]);
    let server = Server::new(catalog.clone(), ServerOptions::default());
    server.listen_unix(&socket).unwrap();
    let mut haggler = Haggler::unix(&socket);
    assert_eq!(haggler.ask(3, &[]).len(), 3);
    // With two volumes there is no default export.
    assert_eq!(haggler.ask(7, &go(""))[0].0, ERR_UNKNOWN);
    assert_eq!(haggler.ask(7, &go("three"))[0].0, ERR_UNKNOWN);
    let mut client = haggler.go(Style::Structured, "two");
    assert_eq!(client.size, 2 * MIB);
    assert_eq!(client.write(0, 0, b"second"), 0);
    assert_eq!(two.contents(0, 6), b"second");
    catalog.empty.store(true, Ordering::SeqCst);
    assert_eq!(Haggler::unix(&socket).ask(3, &[]), [(ACK, vec![])]);
}

#[test]
fn a_server_tells_of_which_runs_everything_is_kept() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("s");
    let catalog = MemoryCatalog::with(&[Arc::new(MemoryDisk::new("one", MIB))]);
    let uri: Uri = format!("nbd+unix:///one?socket={}", socket.display())
        .parse()
        .unwrap();
    let silent = Server::new(catalog.clone(), ServerOptions::default());
    silent.listen_unix(&socket).unwrap();
    assert_eq!(Reader::kept(&uri, None).unwrap(), None);
    assert_eq!(Reader::kept(&uri, Some("")).unwrap(), None);
    drop(silent);

    let options = ServerOptions {
        instance: Some(Instance {
            name: "now".to_owned(),
            ended_clean: vec!["before".to_owned()],
        }),
        ..ServerOptions::default()
    };
    let server = Server::new(catalog, options);
    server.listen_unix(&socket).unwrap();
    assert_eq!(Reader::kept(&uri, None).unwrap().as_deref(), Some("now"));
    for (run, kept) in [("now", true), ("before", true), ("crashed", false)] {
        let told = Reader::kept(&uri, Some(run)).unwrap();
        assert_eq!(told.as_deref(), kept.then_some(run));
    }
    let nowhere = format!("nbd+unix:///two?socket={}", socket.display());
    assert_eq!(Reader::kept(&nowhere.parse().unwrap(), None).unwrap(), None);

    // It is no context that could be chosen.
    let mut haggler = Haggler::unix(&socket);
    assert_eq!(haggler.ask(8, &[]), [(ACK, vec![])]);
    let mut query = counted("one");
    query.extend(1_u32.to_be_bytes());
    query.extend(counted("tessera:kept:now"));
    assert_eq!(haggler.ask(10, &query), [(ACK, vec![])]);
}

#[test]
fn tcp_works_and_port_0_shows_the_real_port() {
    let disk = Arc::new(MemoryDisk::new("disk", MIB));
    let server = Server::new(MemoryCatalog::with(&[disk]), ServerOptions::default());
    let uri = server.listen_tcp("127.0.0.1:0").unwrap();
    let address = uri.strip_prefix("nbd://").unwrap();
    assert!(!address.ends_with(":0"));
    let mut client = Haggler::new(TcpStream::connect(address).unwrap()).go(Style::Extended, "");
    assert_eq!(client.write(FUA, 5, b"over the wire"), 0);
    assert_eq!(client.read(5, 13), b"over the wire");
    assert!(matches!(
        server.listen_tcp(address),
        Err(ListenError::AddressInUse(_))
    ));
    assert!(matches!(
        server.listen_tcp("nonsense"),
        Err(ListenError::BadAddress { .. })
    ));
    drop(client);
    assert_eq!(server.shutdown(LONG), Drained { cut: 0, stuck: 0 });
    assert!(TcpStream::connect(address).is_err());
    assert!(matches!(
        server.listen_tcp("127.0.0.1:0"),
        Err(ListenError::ShuttingDown)
    ));
}

#[test]
fn sockets_handed_on_are_served_and_their_files_stay() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let disk = Arc::new(MemoryDisk::new("disk", MIB));
    let server = Server::new(MemoryCatalog::with(&[disk]), ServerOptions::default());
    let kept = unix.try_clone().unwrap();
    let uri = server.listen_socket(unix.into()).unwrap();
    assert_eq!(uri, format!("nbd+unix:///?socket={}", path.display()));
    let uri = server.listen_socket(tcp.into()).unwrap();
    assert_eq!(uri, format!("nbd://{address}"));
    assert_eq!(
        Haggler::unix(&path)
            .go(Style::Structured, "")
            .write(0, 0, b"x"),
        0
    );
    let stream = TcpStream::connect(address).unwrap();
    assert_eq!(
        Haggler::new(stream).go(Style::Structured, "").read(0, 1),
        b"x"
    );
    assert_eq!(server.shutdown(LONG), Drained { cut: 0, stuck: 0 });
    // Who keeps a copy of the socket still has clients wait in its queue.
    assert!(path.exists());
    UnixStream::connect(&path).unwrap();
    drop(kept);
}

#[test]
fn what_does_not_listen_or_listens_in_the_clear_is_not_taken_over() {
    let server = Server::new(MemoryCatalog::with(&[]), ServerOptions::default());
    let (stream, _other) = UnixStream::pair().unwrap();
    for unusable in [
        stream.into(),
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
    ] {
        assert!(matches!(
            server.listen_socket(unusable),
            Err(ListenError::Unusable(_))
        ));
    }
    let exposed = TcpListener::bind("0.0.0.0:0").unwrap();
    assert!(matches!(
        server.listen_socket(exposed.into()),
        Err(ListenError::InTheClear(_))
    ));
}

#[test]
fn an_endpoint_that_is_closed_keeps_its_clients() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    assert!(served.server.stop_listening(&served.uri));
    assert!(!served.server.stop_listening(&served.uri));
    assert!(!served.socket.exists());
    assert_eq!(client.write(0, 0, b"still here"), 0);
    assert_eq!(client.read(0, 10), b"still here");
    assert_eq!(
        served.server.listen_unix(&served.socket).unwrap(),
        served.uri
    );
    assert_eq!(served.connect(Style::Structured).read(0, 5), b"still");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let served = Served::new(MIB);
    let other = Server::new(MemoryCatalog::with(&[]), ServerOptions::default());
    let error = other.listen_unix(&served.socket).unwrap_err();
    assert!(matches!(error, ListenError::SocketInUse(_)));
    assert!(error.to_string().contains("Another server is listening on"));

    let stale = served.path("stale");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(UnixStream::connect(&stale).is_err() && stale.exists());
    other.listen_unix(&stale).unwrap();
    assert!(UnixStream::connect(&stale).is_ok());

    let file = served.path("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(
        other.listen_unix(&file),
        Err(ListenError::NotASocket(_))
    ));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    let long = served.path(&"x".repeat(120));
    assert!(matches!(
        other.listen_unix(&long),
        Err(ListenError::PathTooLong { .. })
    ));
    assert!(matches!(
        other.listen_unix(Path::new("/nonexistent/directory/s")),
        Err(ListenError::Unix { .. })
    ));
}

#[test]
fn a_server_removes_its_own_socket_and_nobody_elses() {
    let served = Served::new(MIB);
    served.server.shutdown(LONG);
    assert!(!served.socket.exists());

    let served = Served::new(MIB);
    std::fs::remove_file(&served.socket).unwrap();
    let _other = UnixListener::bind(&served.socket).unwrap();
    served.server.shutdown(LONG);
    assert!(served.socket.exists());
}

#[test]
fn garbage_during_negotiation_ends_only_its_own_connection() {
    let served = Served::new(MIB);
    let mut good = served.connect(Style::Structured);
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 5000],
        b"\0\0\0\x03GARBAGE!garbage!",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x01\xff\xff\xff\xff",
    ] {
        let mut socket = UnixStream::connect(&served.socket).unwrap();
        socket.set_timeout(LONG);
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.starts_with(b"NBDMAGICIHAVEOPT"));
    }
    assert_eq!(good.write(0, 0, b"fine"), 0);
    eventually("the bad ones are gone", || {
        served.server.stats().connections_open == 1
    });
    assert_eq!(served.server.stats().handshakes_failed, 4);
}

#[test]
fn an_oversize_option_is_refused_and_the_client_may_go_on() {
    let served = Served::new(MIB);
    let mut haggler = Haggler::unix(&served.socket);
    assert_eq!(haggler.ask(6, &vec![0; 1 << 20])[0].0, ERR_TOO_BIG);
    assert_eq!(haggler.ask(0x4242, &vec![0; 5 << 20])[0].0, ERR_UNSUP);
    assert_eq!(haggler.ask(5, &[])[0].0, ERR_UNSUP);
    assert_eq!(haggler.go(Style::Extended, "").read(0, 2), [0, 0]);
}

#[test]
fn requests_may_follow_go_in_the_same_packet() {
    let served = Served::new(MIB);
    let mut haggler = Haggler::unix(&served.socket);
    let mut bytes = option_bytes(7, &go(""));
    for (cookie, command) in [(1u64, cmd::WRITE), (2, cmd::READ)] {
        bytes.extend(0x2560_9513u32.to_be_bytes());
        bytes.extend([0, 0, 0, command as u8]);
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(0u64.to_be_bytes());
        bytes.extend(4u32.to_be_bytes());
        if command == cmd::WRITE {
            bytes.extend(b"fast");
        }
    }
    haggler.socket.write_all(&bytes).unwrap();
    assert_eq!(haggler.reply().unwrap().1.len(), 12);
    assert_eq!(haggler.reply().unwrap().0, ACK);
    let mut replies = [0; 36];
    haggler.socket.read_exact(&mut replies).unwrap();
    assert_eq!(replies[8..16], 1u64.to_be_bytes());
    assert_eq!(replies[24..32], 2u64.to_be_bytes());
}

#[test]
fn a_client_that_does_not_negotiate_is_dropped_at_the_deadline() {
    let options = ServerOptions {
        handshake_timeout: SHORT,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    let ends = |mut socket: Box<dyn Socket>| {
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    };
    // One that says nothing, one that stops in the middle of an option, one
    // whose endless option is being skipped.
    ends(Haggler::silent(UnixStream::connect(&served.socket).unwrap()).socket);
    let mut half = Haggler::unix(&served.socket);
    half.socket
        .write_all(&option_bytes(7, &go(""))[..20])
        .unwrap();
    ends(half.socket);
    let mut endless = Haggler::unix(&served.socket);
    endless
        .socket
        .write_all(b"IHAVEOPT\0\0\0\x63\xff\xff\xff\xff")
        .unwrap();
    ends(endless.socket);
    eventually("all are gone", || {
        served.server.stats().connections_open == 0
    });
}

#[test]
fn an_idle_client_is_not_dropped() {
    // Enough to connect in on a busy machine.
    let handshake_timeout = Duration::from_secs(2);
    let options = ServerOptions {
        handshake_timeout,
        reply_timeout: SHORT,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    let mut client = served.connect(Style::Structured);
    assert_eq!(client.write(0, 0, b"early"), 0);
    // Another client's life is the clock: it is dropped after the deadline.
    let mut other = Haggler::unix(&served.socket);
    let _ = other.socket.read_to_end(&mut Vec::new());
    assert_eq!(client.read(0, 5), b"early");
}

#[test]
fn a_payload_that_comes_in_drops_is_assembled() {
    let served = Served::new(MIB);
    for style in STYLES {
        let mut client = served.connect(style);
        let data = common::pattern(4, 200_000);
        let mut bytes = Vec::new();
        let cookie = client.put_write(&mut bytes, 0, 100, &data);
        let (first, rest) = bytes.split_at(90_000);
        client.socket.write_all(first).unwrap();
        // Long enough for the connection to have given up on more for now: its
        // whole 64 KiB blocks are executed and its large buffer given back.
        eventually("a first piece is written", || {
            served.disk.contents(100, 60_000) == data[..60_000]
        });
        client.socket.write_all(rest).unwrap();
        assert_eq!(client.reply(cookie).error, 0);
        assert!(client.read(100, 200_000) == data);
        assert_eq!(client.call(0, cmd::TRIM, 0, MIB).error, 0);
    }
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let options = ServerOptions {
        max_connections: 3,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    let mut clients: Vec<_> = (0..3).map(|_| served.connect(Style::Structured)).collect();
    for _ in 0..5 {
        let mut socket = UnixStream::connect(&served.socket).unwrap();
        socket.set_timeout(LONG);
        let mut bytes = Vec::new();
        let _ = socket.read_to_end(&mut bytes);
        assert!(bytes.is_empty());
    }
    assert_eq!(served.server.stats().connections_refused, 5);
    for client in &mut clients {
        assert_eq!(client.read(0, 1), [0]);
    }
    clients.pop();
    eventually("a place is free", || {
        served.server.stats().connections_open == 2
    });
    assert_eq!(served.connect(Style::Simple).read(0, 1), [0]);
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn a_thousand_clients_cost_little_and_others_are_unharmed() {
    // Those that negotiate are to stay, however busy the machine.
    let handshake_timeout = Duration::from_secs(600);
    let options = ServerOptions {
        handshake_timeout,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    let mut good = served.connect(Style::Structured);
    let data = vec![7; 70_000];
    let before = resident_bytes();
    let mut hagglers = Vec::new();
    let mut clients = Vec::new();
    for index in 0..999 {
        match index % 10 {
            // Some only negotiate, some hang in the middle of a large write,
            // and most have been busy, with both buffers, and are idle now.
            0 => hagglers.push(Haggler::unix(&served.socket)),
            1 => {
                let mut client = served.connect(Style::Structured);
                let header = client.header(1, 0, cmd::WRITE, 0, MIB);
                client.socket.write_all(&header).unwrap();
                client.socket.write_all(&data).unwrap();
                clients.push(client);
            }
            _ => {
                let mut client = served.connect(Style::Structured);
                assert_eq!(client.write(0, 0, &data), 0);
                assert_eq!(client.read(0, 70_000).len(), 70_000);
                clients.push(client);
            }
        }
        if index % 100 == 0 {
            assert_eq!(good.write(0, MIB - 4, b"fine"), 0);
        }
    }
    assert_eq!(served.server.stats().connections_open, 1000);
    assert_eq!(good.read(MIB - 4, 4), b"fine");
    // Buffers kept by the 800 idle ones alone would be 125 MiB.
    eventually("memory is given back", || {
        resident_bytes().saturating_sub(before) < 60 << 20
    });
    drop((hagglers, clients));
    eventually("all have left", || {
        served.server.stats().connections_open == 1
    });
    assert_eq!(good.read(MIB - 4, 4), b"fine");
}

#[test]
fn a_client_that_takes_no_replies_is_dropped_and_others_are_unharmed() {
    let options = ServerOptions {
        reply_timeout: SHORT,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", 32 * MIB), options);
    for style in STYLES {
        let mut stuck = served.connect(style);
        for _ in 0..4 {
            stuck.send(0, cmd::READ, 0, 32 * MIB);
        }
        eventually("it is dropped", || {
            served.server.stats().connections_open == 0
        });
        assert_eq!(served.connect(style).read(0, 1), [0]);
        eventually("the good one is gone", || {
            served.server.stats().connections_open == 0
        });
    }
}

#[test]
fn a_client_that_takes_no_flush_replies_is_dropped_too() {
    let options = ServerOptions {
        reply_timeout: SHORT,
        ..ServerOptions::default()
    };
    let served = Served::with(MemoryDisk::new("disk", MIB), options);
    served.disk.set_flush_mode(FlushMode::Thread);
    let mut stuck = served.connect(Style::Structured);
    let mut bytes = Vec::new();
    for _ in 0..100_000 {
        stuck.put(&mut bytes, 0, cmd::FLUSH, 0, 0);
    }
    // It ends with an error when the server gives up.
    assert!(stuck.socket.write_all(&bytes).is_err());
    eventually("it is gone", || served.server.stats().connections_open == 0);
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let served = Served::new(MIB);
    served.disk.set_flush_mode(FlushMode::Held);
    let mut client = served.connect(Style::Structured);
    client.send(0, cmd::FLUSH, 0, 0);
    eventually("the flush is with the disk", || {
        served.disk.held_flushes() == 1
    });
    drop(client);
    served.disk.release_flushes();
    eventually("it is gone", || served.server.stats().connections_open == 0);
    served.disk.set_flush_mode(FlushMode::Inline);
    assert_eq!(
        served
            .connect(Style::Structured)
            .call(0, cmd::FLUSH, 0, 0)
            .error,
        0
    );
}

#[test]
fn shutdown_finishes_what_has_been_received() {
    let served = Served::new(MIB);
    served.disk.set_flush_mode(FlushMode::Held);
    served.disk.close_gate();
    let mut client = served.connect(Style::Structured);
    let first = client.send_write(0, 0, b"first");
    eventually("a write is at the disk", || {
        served.disk.at_gate.load(Ordering::SeqCst) == 1
    });
    let second = client.send_write(FUA, 5, b"second");
    let mut haggler = Haggler::unix(&served.socket);
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| served.server.shutdown(LONG));
        eventually("nobody is let in", || {
            UnixStream::connect(&served.socket).is_err()
        });
        // A client that negotiates is told.
        if let Ok(()) = haggler.socket.write_all(&option_bytes(3, &[]))
            && let Ok((kind, _)) = haggler.reply()
        {
            assert_eq!(kind, ERR_SHUTDOWN);
        }
        assert!(!shutdown.is_finished());
        served.disk.open_gate();
        assert_eq!(client.reply(first).error, 0);
        eventually("the second write waits for its flush", || {
            served.disk.held_flushes() == 1
        });
        assert!(!shutdown.is_finished());
        served.disk.release_flushes();
        assert_eq!(client.reply(second).error, 0);
        client.assert_closed();
        drop(client);
        assert_eq!(shutdown.join().unwrap(), Drained { cut: 0, stuck: 0 });
    });
    assert_eq!(served.disk.contents(0, 11), b"firstsecond");
    assert_eq!(served.server.stats().connections_open, 0);
}

#[test]
fn shutdown_lets_a_write_that_is_arriving_arrive() {
    let served = Served::new(MIB);
    let mut client = served.connect(Style::Structured);
    let data = common::pattern(6, 300_000);
    let mut bytes = Vec::new();
    let cookie = client.put_write(&mut bytes, 0, 0, &data);
    client.socket.write_all(&bytes[..100_000]).unwrap();
    eventually("a first piece is written", || {
        served.disk.contents(0, 65536) == data[..65536]
    });
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| served.server.shutdown(LONG));
        eventually("nobody is let in", || {
            UnixStream::connect(&served.socket).is_err()
        });
        client.socket.write_all(&bytes[100_000..]).unwrap();
        assert_eq!(client.reply(cookie).error, 0);
        client.assert_closed();
        drop(client);
        assert_eq!(shutdown.join().unwrap(), Drained { cut: 0, stuck: 0 });
    });
    assert!(served.disk.contents(0, 300_000) == data);
}

#[test]
fn shutdown_is_not_held_up_by_idle_clients_nor_by_one_that_never_stops() {
    let served = Served::new(MIB);
    let mut idle: Vec<_> = (0..20).map(|_| served.connect(Style::Structured)).collect();
    let mut busy = served.connect(Style::Simple);
    let mut socket = busy.socket.duplicate();
    let request = busy.header(1, 0, cmd::WRITE, 0, 8);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let one = [&request[..], &[0; 8]].concat();
            while socket.write_all(&one.repeat(100)).is_ok() {}
        });
        scope.spawn(move || {
            // Takes the replies until the server closes.
            let mut buffer = [0; 65536];
            while busy.socket.read(&mut buffer).is_ok_and(|count| count != 0) {}
        });
        eventually("it is busy", || served.server.stats().requests > 10_000);
        assert_eq!(served.server.shutdown(LONG), Drained { cut: 0, stuck: 0 });
        idle.iter_mut().for_each(Client::assert_closed);
    });
}

#[test]
fn shutdown_cuts_what_does_not_finish_in_time() {
    let served = Served::new(MIB);
    let mut half = served.connect(Style::Structured);
    let header = half.header(1, 0, cmd::WRITE, 0, MIB);
    half.socket.write_all(&header).unwrap();
    half.socket.write_all(&[0; 10]).unwrap();
    served.disk.set_flush_mode(FlushMode::Held);
    let mut flushing = served.connect(Style::Structured);
    flushing.send(0, cmd::FLUSH, 0, 0);
    eventually("the flush is with the disk", || {
        served.disk.held_flushes() == 1
    });
    assert_eq!(served.server.shutdown(SHORT), Drained { cut: 2, stuck: 0 });
    half.assert_closed();
    flushing.assert_closed();
    // The committer may still come along.
    served.disk.release_flushes();
}

#[test]
fn a_panicking_disk_takes_down_only_its_own_connection() {
    use tessera_engine::disk::{
        Disk, DiskCatalog, DiskError, DiskInfo, Extent, FlushDone, Request,
    };
    struct Bomb;
    impl Disk for Bomb {
        fn info(&self) -> DiskInfo {
            DiskInfo {
                name: "bomb".into(),
                description: String::new(),
                size: 4096,
                read_only: false,
                chunk_size: 4096,
            }
        }
        fn execute(&self, _: &mut [Request<'_>]) {
            // Like a panic, but without a backtrace: its symbols would count
            // as memory in the test that measures it.
            std::panic::resume_unwind(Box::new("a broken invariant, on purpose"));
        }
        fn flush(&self, done: FlushDone) {
            done(Ok(()));
        }
        fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>, DiskError> {
            Ok(Vec::new())
        }
    }
    struct Bombs;
    impl DiskCatalog for Bombs {
        fn names(&self) -> Vec<String> {
            vec!["bomb".into()]
        }
        fn open(&self, _: &str) -> Option<Arc<dyn Disk>> {
            Some(Arc::new(Bomb))
        }
    }
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("s");
    let server = Server::new(Arc::new(Bombs), ServerOptions::default());
    server.listen_unix(&socket).unwrap();
    let mut witness = Client::connect(&socket, Style::Structured);
    let mut victim = Client::connect(&socket, Style::Structured);
    victim.send(0, cmd::READ, 0, 1);
    victim.assert_closed();
    assert_eq!(witness.call(0, cmd::FLUSH, 0, 0).error, 0);
    // A disk that names no extents breaks its promise; the client gets an error.
    assert_eq!(witness.call(0, cmd::STATUS, 0, 1).error, EIO);
    assert_eq!(server.stats().connections_open, 1);
}
