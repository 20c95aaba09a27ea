//! The client against servers that are wrong, and addresses that are.

use std::thread::JoinHandle;

use proptest::prelude::*;

use super::*;

fn uri(text: &str) -> Uri {
    text.parse().unwrap()
}

#[test]
fn addresses_are_understood() {
    let tcp = |host: &str, port, export: &str| Uri {
        place: Place::Tcp(host.to_owned(), port),
        export: export.to_owned(),
    };
    assert_eq!(uri("nbd://host"), tcp("host", 10809, ""));
    assert_eq!(uri("nbd://host/a%20b"), tcp("host", 10809, "a b"));
    assert_eq!(uri("nbd://127.0.0.1:77/x"), tcp("127.0.0.1", 77, "x"));
    assert_eq!(uri("nbd://[::1]/x"), tcp("::1", 10809, "x"));
    assert_eq!(uri("nbd://[::1]:9/x"), tcp("::1", 9, "x"));
    assert_eq!(
        uri("nbd+unix:///vm1?socket=/a/b%3F.sock"),
        Uri {
            place: Place::Unix("/a/b?.sock".into()),
            export: "vm1".to_owned()
        }
    );
}

#[test]
fn addresses_that_are_wrong_are_refused_with_a_reason() {
    for (text, why) in [
        ("nbd:host", "write nbd://"),
        ("nbd://", "no host"),
        ("nbd://host:seven/x", "port"),
        ("nbds://host/x", "TLS"),
        ("nbd+unix:///x", "socket"),
        ("nbd+unix://host/x?socket=a", "no host"),
        ("nbd://host/%zz", "escapes"),
    ] {
        assert!(Uri::looks_like(text));
        let error = text.parse::<Uri>().unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
    assert!(!Uri::looks_like("/srv/nbd"));
}

#[test]
fn an_export_is_the_same_however_its_address_is_written() {
    let here = std::env::current_dir().unwrap();
    let absolute = format!("nbd+unix:///a?socket={}/s.sock", here.display());
    assert_eq!(
        uri("nbd+unix:///a?socket=s.sock").identity(),
        uri(&absolute).identity()
    );
    let others = [
        "nbd://h/a",
        "nbd://h:1/a",
        "nbd://h/b",
        "nbd+unix:///a?socket=/s",
    ];
    for (number, one) in others.iter().enumerate() {
        for other in &others[..number] {
            assert_ne!(uri(one).identity(), uri(other).identity());
        }
    }
}

/// A client whose server sends these bytes, whatever it is sent, and goes.
fn against(bytes: Vec<u8>) -> (Result<Client, ClientError>, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let _client_may_be_gone = theirs.write_all(&bytes);
        let _ = theirs.shutdown(std::net::Shutdown::Write);
        let _ = io::copy(&mut theirs, &mut io::sink());
    });
    let client = Client::negotiate(Box::new(ours), "here".to_owned(), "vm");
    (client, server)
}

fn greeting() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\0\x03".to_vec()
}

fn option_reply_bytes(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option::GO.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(length_of(payload).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn export_of(size: u64) -> Vec<u8> {
    let mut item = info::EXPORT.to_be_bytes().to_vec();
    item.extend(size.to_be_bytes());
    item.extend([0, 1]);
    let mut bytes = greeting();
    bytes.extend(option_reply_bytes(option_reply::INFO, &item));
    bytes.extend(option_reply_bytes(option_reply::ACK, &[]));
    bytes
}

fn simple(cookie: u64, code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn servers_that_refuse_are_quoted() {
    let mut unknown = greeting();
    unknown.extend(option_reply_bytes(option_reply::ERR_UNKNOWN, b""));
    let mut tls = greeting();
    tls.extend(option_reply_bytes(option_reply::ERR_TLS_REQD, b""));
    let mut said = greeting();
    said.extend(option_reply_bytes(
        option_reply::ERR_SHUTDOWN,
        b"going down",
    ));
    let mut sizeless = greeting();
    sizeless.extend(option_reply_bytes(option_reply::ACK, &[]));
    for (bytes, why) in [
        (unknown, "no export \"vm\""),
        (tls, "requires TLS"),
        (said, "going down"),
        (sizeless, "size"),
        (b"NBDMAGICNBDMAGIC\0\x03".to_vec(), "greeting"),
        (b"NBDMAGICIHAVEOPT\0\0".to_vec(), "newstyle"),
        (b"NBD".to_vec(), "hung up"),
    ] {
        let (client, server) = against(bytes);
        let error = client.unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        server.join().unwrap();
    }
}

#[test]
fn a_socket_that_is_handed_over_goes_on_without_goodbye_or_time_limit() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&export_of(4 << 20)).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.set_write_timeout(Some(PATIENCE)).unwrap();
    let client = Client::negotiate(Box::new(ours), "here".to_owned(), "vm").unwrap();
    let expected = Terms {
        size: 4 << 20,
        flags: 1,
        block_bytes: None,
    };
    assert_eq!(client.terms(), expected);

    let mut handed_over = UnixStream::from(client.into_socket().unwrap());
    // The kernel would take either for the end of the connection.
    assert_eq!(handed_over.read_timeout().unwrap(), None);
    assert_eq!(handed_over.write_timeout().unwrap(), None);
    handed_over.write_all(b"what follows").unwrap();
    drop(handed_over);
    let mut received = Vec::new();
    theirs.read_to_end(&mut received).unwrap();
    // Flags, then GO with the name and no further questions, then no farewell.
    let go = 8 + 4 + 4 + 4 + 2 + 2;
    assert_eq!(&received[4 + go..], b"what follows");
}

#[test]
fn replies_may_come_in_any_order_and_errors_leave_the_connection_whole() {
    let mut bytes = export_of(4 << 20);
    let mebibyte = |byte| vec![byte; 1 << 20];
    bytes.extend(simple(2, 0, &mebibyte(2)));
    bytes.extend(simple(1, 0, &mebibyte(1)));
    bytes.extend(simple(3, 5, &[]));
    bytes.extend(simple(4, 0, &[9; 10]));
    let (client, server) = against(bytes);
    let mut client = client.unwrap();
    assert_eq!(client.size(), 4 << 20);
    let mut target = vec![0; 2 << 20];
    client.read(0, &mut target).unwrap();
    assert!(target[..1 << 20].iter().all(|byte| *byte == 1));
    assert!(target[1 << 20..].iter().all(|byte| *byte == 2));
    let error = client.read(77, &mut [0; 10]).unwrap_err();
    assert!(matches!(
        error,
        ClientError::Read {
            offset: 77,
            length: 10,
            code: 5
        }
    ));
    let mut last = [0; 10];
    client.read(80, &mut last).unwrap();
    assert_eq!(last, [9; 10]);
    assert!(matches!(
        client.read(0, &mut last),
        Err(ClientError::Io(_, "hung up", _))
    ));
    drop(client);
    server.join().unwrap();
}

#[test]
fn an_answer_to_nothing_is_an_error() {
    let mut bytes = export_of(4096);
    bytes.extend(simple(9, 0, &[0; 10]));
    let (client, server) = against(bytes);
    let mut client = client.unwrap();
    assert!(matches!(
        client.read(0, &mut [0; 10]),
        Err(ClientError::Protocol(_))
    ));
    drop(client);
    server.join().unwrap();
}

proptest! {
    #[test]
    fn whatever_a_server_sends_there_is_an_end(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), honest in 0usize..80,
    ) {
        let mut all = export_of(1 << 20);
        all.truncate(honest);
        all.extend(bytes);
        let (client, server) = against(all);
        if let Ok(mut client) = client {
            let _any_answer = client.read(0, &mut [0; 100]);
        }
        server.join().unwrap();
    }
}
