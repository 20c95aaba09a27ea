use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{SendFlags, send};

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn pair() -> (Arc<Outbox>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Arc::new(Outbox::new(ours.into()).unwrap()), theirs)
}

fn read(client: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// Fills the socket until it takes no more; how many bytes it took.
fn stuff(outbox: &Outbox) -> usize {
    let mut total = 0;
    loop {
        match send(&outbox.transport.socket, &[b'.'; 1000], SendFlags::DONTWAIT) {
            Ok(count) => total += count,
            Err(Errno::AGAIN) => return total,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_completion_goes_straight_to_the_socket() {
    let (outbox, mut client) = pair();
    outbox.begin(2);
    outbox.complete(b"reply one", 1);
    assert_eq!(read(&mut client, 9), b"reply one");
    assert_eq!(outbox.in_flight(), 1);
    assert!(!outbox.has_pending());
    // Nobody had to be woken for that.
    assert_eq!(outbox.wait(Some(Duration::ZERO)).unwrap(), Wake::TimedOut);
}

#[test]
fn a_completion_never_waits_and_the_connection_thread_sends_the_rest() {
    let (outbox, mut client) = pair();
    let stuffed = stuff(&outbox);
    outbox.begin(2);
    outbox.complete(b"first ", 1);
    outbox.complete(b"second", 1);
    assert!(outbox.has_pending());
    assert_eq!(outbox.wait(Some(LONG)).unwrap(), Wake::Woken);
    let sender = std::thread::spawn({
        let outbox = Arc::clone(&outbox);
        move || outbox.send(&mut [IoSlice::new(b" third")], LONG)
    });
    assert!(read(&mut client, stuffed).iter().all(|byte| *byte == b'.'));
    assert_eq!(read(&mut client, 18), b"first second third");
    sender.join().unwrap().unwrap();
}

#[test]
fn completions_do_not_cut_into_a_message_that_is_being_sent() {
    let (outbox, mut client) = pair();
    let message: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    outbox.begin(1000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (head, tail) = message.split_at(100_001);
            let mut parts = [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)];
            outbox.send(&mut parts, LONG).unwrap();
            // Completions that come later than that go to the socket at once, and
            // fill it: the rest is for the connection's thread, as ever.
            assert!(outbox.settle(0, LONG));
        });
        // The message is on its way, and longer than the socket holds.
        let first = read(&mut client, 1000);
        scope.spawn(|| (0..1000).for_each(|_| outbox.complete(b"done", 1)));
        let mut rest = read(&mut client, message.len() - first.len() + 4000);
        let done = rest.split_off(message.len() - first.len());
        assert!([first, rest].concat() == message);
        assert_eq!(done, b"done".repeat(1000));
    });
    assert_eq!(outbox.in_flight(), 0);
    assert!(!outbox.has_pending());
}

#[test]
fn many_parts_arrive_in_order() {
    let (outbox, mut client) = pair();
    let texts: Vec<String> = (0..500).map(|index| format!("{index:04}")).collect();
    let mut parts: Vec<_> = texts
        .iter()
        .map(|text| IoSlice::new(text.as_bytes()))
        .collect();
    outbox.send(&mut parts, LONG).unwrap();
    assert_eq!(read(&mut client, 2000), texts.concat().as_bytes());
}

#[test]
fn a_client_that_takes_nothing_ends_the_send_at_the_deadline() {
    let (outbox, _client) = pair();
    stuff(&outbox);
    let error = outbox
        .send(&mut [IoSlice::new(b"x")], Duration::from_millis(10))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    // Later completions are dropped, not kept.
    outbox.begin(1);
    outbox.complete(&[0; 100], 1);
    assert!(!outbox.has_pending());
    assert!(!outbox.settle(0, LONG));
}

#[test]
fn settle_waits_for_completions_and_sends_them() {
    let (outbox, mut client) = pair();
    outbox.begin(3);
    std::thread::scope(|scope| {
        let settled = scope.spawn(|| outbox.settle(1, LONG));
        outbox.complete(b"a", 1);
        outbox.complete(b"b", 1);
        assert!(settled.join().unwrap());
    });
    assert_eq!(read(&mut client, 2), b"ab");
    assert_eq!(outbox.in_flight(), 1);
    assert!(!outbox.settle(0, Duration::from_millis(10)));
}

#[test]
fn a_vanished_client_is_noticed_without_a_signal() {
    let (outbox, client) = pair();
    drop(client);
    outbox.begin(2);
    outbox.complete(b"to nobody", 1);
    outbox.complete(b"to nobody", 1);
    assert!(outbox.send(&mut [IoSlice::new(b"x")], LONG).is_err());
    assert!(!outbox.settle(0, LONG));
}

#[test]
fn disconnecting_interrupts_a_wait() {
    let (outbox, _client) = pair();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| outbox.wait(Some(LONG)).unwrap());
        outbox.disconnect();
        assert_ne!(waiting.join().unwrap(), Wake::TimedOut);
    });
    assert_eq!(outbox.receive(&mut [0; 8]).unwrap(), Some(0));
}
