use proptest::prelude::*;

use super::*;
use crate::protocol::constants::OPTION_REPLY_MAGIC;

struct Two;

impl Exports for Two {
    fn names(&self) -> Vec<String> {
        vec!["a".into(), "b".into()]
    }

    fn describe(&self, name: &str) -> Option<ExportInfo> {
        // The default export is `a`.
        let name = if name.is_empty() { "a" } else { name };
        let known = self.names().contains(&name.to_owned()) || name == "c";
        known.then(|| ExportInfo {
            name: name.into(),
            description: format!("disk {name}"),
            size: 1 << 20,
            read_only: name == "b",
        })
    }

    /// Of `c`, which is not listed.
    fn snapshots(&self, name: &str) -> Vec<String> {
        match name {
            "c" => vec!["s".into(), "t".into()],
            _ => Vec::new(),
        }
    }
}

/// A negotiation and the bytes it has answered.
struct Client {
    negotiation: Negotiation,
    output: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    option: u32,
    kind: u32,
    payload: Vec<u8>,
}

impl Client {
    fn greeted() -> Self {
        Self::with_flags(3)
    }

    fn with_flags(flags: u32) -> Self {
        Self::with(flags, Encryption::Unavailable)
    }

    fn with(flags: u32, encryption: Encryption) -> Self {
        let mut output = Vec::new();
        let negotiation = Negotiation::new(encryption, &mut output);
        assert_eq!(output, b"NBDMAGICIHAVEOPT\0\x03");
        output.clear();
        let mut client = Self {
            negotiation,
            output,
        };
        assert_eq!(client.feed(&flags.to_be_bytes()), (4, Step::Continue));
        client
    }

    fn feed(&mut self, bytes: &[u8]) -> (usize, Step) {
        let progress = self.negotiation.feed(bytes, &Two, &mut self.output);
        (progress.consumed, progress.step)
    }

    fn send(&mut self, option: u32, payload: &[u8]) -> Step {
        self.output.clear();
        let bytes = message(option, payload);
        let (mut used, mut step) = self.feed(&bytes);
        while step == Step::Continue && used < bytes.len() {
            let (more, next) = self.feed(&bytes[used..]);
            used += more;
            step = next;
        }
        assert_eq!(used, bytes.len(), "the whole option is consumed");
        step
    }

    fn replies(&self) -> Vec<Reply> {
        let mut cursor = Cursor(&self.output);
        let mut replies = Vec::new();
        while !cursor.is_empty() {
            assert_eq!(cursor.u64(), Some(OPTION_REPLY_MAGIC));
            let (option, kind) = (cursor.u32().unwrap(), cursor.u32().unwrap());
            let payload = cursor.counted().unwrap().to_vec();
            replies.push(Reply {
                option,
                kind,
                payload,
            });
        }
        replies
    }

    /// The types of the replies to an option.
    fn ask(&mut self, option: u32, payload: &[u8]) -> Vec<u32> {
        assert_eq!(self.send(option, payload), Step::Continue);
        let replies = self.replies();
        assert!(replies.iter().all(|reply| reply.option == option));
        replies.iter().map(|reply| reply.kind).collect()
    }

    fn go(&mut self, name: &str) -> Agreement {
        match self.send(option::GO, &query(name, &[])) {
            Step::Transmission(agreement) => agreement,
            other => panic!("GO ended in {other:?}"),
        }
    }
}

fn message(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.put_u32(option);
    bytes.put_u32(payload.len() as u32);
    bytes.put(payload);
    bytes
}

fn counted(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.put(text.as_bytes());
    bytes
}

fn query(name: &str, items: &[u16]) -> Vec<u8> {
    let mut bytes = counted(name);
    bytes.put_u16(items.len() as u16);
    items.iter().for_each(|item| bytes.put_u16(*item));
    bytes
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = counted(name);
    bytes.put_u32(queries.len() as u32);
    queries.iter().for_each(|query| bytes.put(&counted(query)));
    bytes
}

const ACK: u32 = option_reply::ACK;
const INVALID: u32 = option_reply::ERR_INVALID;

#[test]
fn unknown_client_flags_end_the_negotiation() {
    let mut output = Vec::new();
    let mut negotiation = Negotiation::new(Encryption::Unavailable, &mut output);
    let progress = negotiation.feed(&7u32.to_be_bytes(), &Two, &mut output);
    assert_eq!(progress.step, Step::Closed(Closed::UnknownClientFlags(7)));
}

#[test]
fn an_unknown_option_is_refused_and_its_payload_consumed() {
    let mut client = Client::greeted();
    for option in [0, 4, option::STARTTLS, 12, u32::MAX] {
        assert_eq!(client.ask(option, &[9; 300]), [option_reply::ERR_UNSUP]);
    }
    assert_eq!(client.ask(option::LIST, &[]).last(), Some(&ACK));
}

#[test]
fn an_oversize_option_is_refused_and_skipped_without_being_held() {
    let mut client = Client::greeted();
    let payload = vec![0; MAX_OPTION_BYTES + 1];
    let bytes = message(option::INFO, &payload);
    // The header alone is answered, so nothing of the payload has to be kept.
    assert_eq!(client.feed(&bytes[..16]), (16, Step::Continue));
    assert_eq!(client.replies()[0].kind, option_reply::ERR_TOO_BIG);
    assert_eq!(client.feed(&[]), (0, Step::NeedMore));
    assert_eq!(
        client.feed(&payload[1..]),
        (MAX_OPTION_BYTES, Step::Continue)
    );
    assert_eq!(client.feed(&payload[..1]), (1, Step::Continue));
    client.output.clear();
    assert_eq!(client.ask(option::LIST, &[]).last(), Some(&ACK));
}

#[test]
fn list_names_every_export_and_takes_no_payload() {
    let mut client = Client::greeted();
    assert_eq!(
        client.ask(option::LIST, &[]),
        [option_reply::SERVER, option_reply::SERVER, ACK]
    );
    assert_eq!(client.replies()[1].payload, b"\0\0\0\x01bdisk b");
    assert_eq!(client.ask(option::LIST, &[0]), [INVALID]);
}

#[test]
fn abort_is_acknowledged_whatever_its_payload() {
    let mut client = Client::greeted();
    let bytes = message(option::ABORT, b"bye");
    let (_, step) = client.feed(&bytes);
    assert_eq!(step, Step::Closed(Closed::Aborted));
    assert_eq!(client.replies()[0].kind, ACK);
}

#[test]
fn export_name_starts_transmission_with_or_without_zeroes() {
    for (flags, padding) in [(1, 124), (3, 0), (0, 124)] {
        let mut client = Client::with_flags(flags);
        let step = client.send(option::EXPORT_NAME, b"b");
        let Step::Transmission(agreement) = step else {
            panic!("{step:?}")
        };
        assert_eq!(agreement.export.name, "b");
        assert_eq!(agreement.style, HeaderStyle::Simple);
        assert_eq!(client.output.len(), 10 + padding);
        assert_eq!(client.output[..8], (1u64 << 20).to_be_bytes());
        assert_eq!(
            client.output[8..10],
            agreement.transmission_flags().to_be_bytes()
        );
    }
}

#[test]
fn export_name_can_only_be_refused_by_closing() {
    for name in [&b"nonesuch"[..], b"\xff\xfe", b"a\0"] {
        let mut client = Client::greeted();
        assert_eq!(
            client.send(option::EXPORT_NAME, name),
            Step::Closed(Closed::ExportRefused),
            "{name:?}"
        );
        assert!(client.output.is_empty());
    }
    let mut client = Client::greeted();
    client.ask(option::EXTENDED_HEADERS, &[]);
    assert_eq!(
        client.send(option::EXPORT_NAME, b"a"),
        Step::Closed(Closed::ExportRefused)
    );
    let long = message(option::EXPORT_NAME, &[b'x'; MAX_STRING_BYTES + 1]);
    let (_, step) = Client::greeted().feed(&long);
    assert_eq!(step, Step::Closed(Closed::ExportRefused));
}

#[test]
fn without_fixed_newstyle_only_export_name_works() {
    let mut client = Client::with_flags(0);
    let (_, step) = client.feed(&message(option::LIST, &[]));
    assert_eq!(step, Step::Closed(Closed::NotFixedNewstyle(option::LIST)));
}

#[test]
fn info_sends_the_export_always_and_the_rest_when_asked() {
    let mut client = Client::greeted();
    assert_eq!(
        client.ask(option::INFO, &query("a", &[])),
        [option_reply::INFO, ACK]
    );
    assert_eq!(client.replies()[0].payload.len(), 12);
    // Unknown and repeated items do no harm.
    let all = [3, 2, 1, 0, 99, 3];
    client.ask(option::INFO, &query("", &all));
    let items: Vec<_> = client
        .replies()
        .into_iter()
        .map(|reply| reply.payload)
        .collect();
    assert_eq!(items.len(), 5);
    assert_eq!(items[1], b"\0\x01a");
    assert_eq!(items[2], b"\0\x02disk a");
    assert_eq!(items[3], [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
}

#[test]
fn info_then_go_give_the_same_answer() {
    let mut client = Client::greeted();
    client.ask(option::STRUCTURED_REPLY, &[]);
    client.ask(
        option::SET_META_CONTEXT,
        &contexts("b", &["base:allocation"]),
    );
    let request = query("b", &[0, 1, 2, 3]);
    client.ask(option::INFO, &request);
    let mut info = client.replies();
    let step = client.send(option::GO, &request);
    assert!(matches!(step, Step::Transmission(_)));
    info.iter_mut().for_each(|reply| reply.option = option::GO);
    assert_eq!(info, client.replies());
}

#[test]
fn malformed_info_is_refused_and_the_next_one_works() {
    let mut client = Client::greeted();
    let mut too_few_items = query("a", &[1, 2]);
    too_few_items.truncate(too_few_items.len() - 1);
    let mut too_many = query("a", &[1]);
    too_many.push(0);
    let mut name_too_long = query("a", &[]);
    name_too_long[3] = 200;
    let mut not_utf8 = query("a", &[]);
    not_utf8[4] = 0xff;
    for bad in [
        vec![],
        vec![0; 3],
        too_few_items,
        too_many,
        name_too_long,
        not_utf8,
        query("a\0", &[]),
    ] {
        assert_eq!(client.ask(option::INFO, &bad), [INVALID], "{bad:?}");
        assert_eq!(client.ask(option::GO, &bad), [INVALID], "{bad:?}");
    }
    let long = "x".repeat(MAX_STRING_BYTES + 1);
    assert_eq!(
        client.ask(option::INFO, &query(&long, &[])),
        [option_reply::ERR_TOO_BIG]
    );
    assert_eq!(
        client.ask(option::GO, &query("nonesuch", &[])),
        [option_reply::ERR_UNKNOWN]
    );
    assert_eq!(client.go("a").export.name, "a");
}

#[test]
fn bytes_behind_go_are_left_alone() {
    let mut client = Client::greeted();
    let mut bytes = message(option::GO, &query("a", &[]));
    let length = bytes.len();
    bytes.extend([0x25, 0x60, 0x95, 0x13]);
    let (used, step) = client.feed(&bytes);
    assert_eq!(used, length);
    assert!(matches!(step, Step::Transmission(_)));
}

#[test]
fn structured_replies_and_extended_headers_take_turns_as_the_protocol_says() {
    let mut client = Client::greeted();
    assert_eq!(client.ask(option::STRUCTURED_REPLY, &[1]), [INVALID]);
    assert_eq!(client.ask(option::STRUCTURED_REPLY, &[]), [ACK]);
    assert_eq!(client.ask(option::STRUCTURED_REPLY, &[]), [INVALID]);
    assert_eq!(client.ask(option::EXTENDED_HEADERS, &[1]), [INVALID]);
    assert_eq!(client.ask(option::EXTENDED_HEADERS, &[]), [ACK]);
    assert_eq!(client.ask(option::EXTENDED_HEADERS, &[]), [INVALID]);
    assert_eq!(
        client.ask(option::STRUCTURED_REPLY, &[]),
        [option_reply::ERR_EXT_HEADER_REQD]
    );
    assert_eq!(client.go("a").style, HeaderStyle::Extended);
    let mut client = Client::greeted();
    client.ask(option::STRUCTURED_REPLY, &[]);
    assert_eq!(client.go("a").style, HeaderStyle::Structured);
}

#[test]
fn contexts_need_structured_replies() {
    let mut client = Client::greeted();
    let request = contexts("a", &["base:allocation"]);
    for option in [option::SET_META_CONTEXT, option::LIST_META_CONTEXT] {
        assert_eq!(client.ask(option, &request), [INVALID]);
    }
    client.ask(option::EXTENDED_HEADERS, &[]);
    for option in [option::SET_META_CONTEXT, option::LIST_META_CONTEXT] {
        assert_eq!(
            client.ask(option, &request),
            [option_reply::META_CONTEXT, ACK]
        );
    }
}

#[test]
fn wildcards_list_but_do_not_choose() {
    const FOUND: &[u32] = &[option_reply::META_CONTEXT, ACK];
    for (queries, listed, chosen) in [
        (&["base:"][..], FOUND, &[ACK][..]),
        (&["base:allocation"], FOUND, FOUND),
        (
            &["base:other", "qemu:dirty", "nonsense", ""],
            &[ACK],
            &[ACK],
        ),
        (
            &["x-y:z", "base:allocation", "base:allocation"],
            FOUND,
            FOUND,
        ),
        (&[], FOUND, &[ACK]),
    ] {
        let mut client = Client::greeted();
        client.ask(option::STRUCTURED_REPLY, &[]);
        let request = contexts("a", queries);
        assert_eq!(
            client.ask(option::LIST_META_CONTEXT, &request),
            listed,
            "{queries:?}"
        );
        assert_eq!(
            client.ask(option::SET_META_CONTEXT, &request),
            chosen,
            "{queries:?}"
        );
        if chosen == FOUND {
            assert_eq!(client.replies()[0].payload, b"\0\0\0\x01base:allocation");
        }
        assert_eq!(client.go("a").contexts.set.is_empty(), chosen != FOUND);
    }
}

#[test]
fn a_context_counts_only_for_the_export_that_go_names() {
    for (chosen_for, gone_to, valid) in [
        ("a", "a", true),
        ("a", "b", false),
        ("", "a", true),
        ("a", "", true),
        ("b", "", false),
    ] {
        let mut client = Client::greeted();
        client.ask(option::STRUCTURED_REPLY, &[]);
        client.ask(
            option::SET_META_CONTEXT,
            &contexts(chosen_for, &["base:allocation"]),
        );
        assert_eq!(
            !client.go(gone_to).contexts.set.is_empty(),
            valid,
            "{chosen_for:?} then {gone_to:?}"
        );
    }
}

#[test]
fn choosing_contexts_again_forgets_the_old_ones_even_when_it_fails() {
    let good = contexts("a", &["base:allocation"]);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut short = good.clone();
    short.pop();
    let mut endless = contexts("a", &[]);
    *endless.last_mut().unwrap() = 0xff;
    let too_big = vec![0; MAX_OPTION_BYTES + 1];
    for bad in [
        trailing,
        short,
        endless,
        contexts("nonesuch", &[]),
        contexts("a", &["\0"]),
        too_big,
    ] {
        let mut client = Client::greeted();
        client.ask(option::STRUCTURED_REPLY, &[]);
        client.ask(option::SET_META_CONTEXT, &good);
        assert!(client.ask(option::SET_META_CONTEXT, &bad)[0] > ACK);
        assert!(client.go("a").contexts.set.is_empty());
    }
}

#[test]
fn snapshots_are_contexts_of_their_own() {
    let since = |snapshot: &str| format!("tessera:changed-since:{snapshot}");
    let mut client = Client::greeted();
    client.ask(option::STRUCTURED_REPLY, &[]);
    for (queries, listed) in [
        (
            &[][..],
            vec!["base:allocation".to_owned(), since("s"), since("t")],
        ),
        (&["tessera:"], vec![since("s"), since("t")]),
        (&["tessera:changed-since:"], vec![since("s"), since("t")]),
        (&["tessera:changed-since:t"], vec![since("t")]),
        (&["tessera:changed-since:x", "tessera:other"], vec![]),
    ] {
        client.ask(option::LIST_META_CONTEXT, &contexts("c", queries));
        let found: Vec<String> = client.replies()[..listed.len()]
            .iter()
            .map(|reply| String::from_utf8(reply.payload[4..].to_vec()).unwrap())
            .collect();
        assert_eq!(found, listed, "{queries:?}");
    }
    let queries = [
        since("t"),
        "base:allocation".to_owned(),
        since("s"),
        since("t"),
    ];
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    client.ask(option::SET_META_CONTEXT, &contexts("c", &queries));
    let ids: Vec<u8> = client.replies()[..3]
        .iter()
        .map(|reply| reply.payload[3])
        .collect();
    assert_eq!(ids, [2, 1, 3]);
    let chosen = client.go("c").contexts;
    assert_eq!(chosen.set.iter().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(chosen.snapshot(1), None);
    assert_eq!(chosen.snapshot(2), Some("t"));
    assert_eq!(chosen.snapshot(3), Some("s"));
}

#[test]
fn listing_contexts_leaves_the_chosen_ones() {
    let mut client = Client::greeted();
    client.ask(option::STRUCTURED_REPLY, &[]);
    client.ask(
        option::SET_META_CONTEXT,
        &contexts("a", &["base:allocation"]),
    );
    client.ask(option::LIST_META_CONTEXT, &contexts("b", &[]));
    assert!(!client.go("a").contexts.set.is_empty());
}

#[test]
fn transmission_flags_say_what_works_and_nothing_else() {
    use transmission_flag as flag;
    let base = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::CAN_MULTI_CONN
        | flag::SEND_CACHE;
    let writable = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    assert_eq!(
        transmission_flags(false, HeaderStyle::Simple, false),
        base | writable
    );
    assert_eq!(
        transmission_flags(true, HeaderStyle::Simple, false),
        base | flag::READ_ONLY
    );
    assert_eq!(
        transmission_flags(false, HeaderStyle::Structured, true),
        base | writable | flag::SEND_DF
    );
    assert_eq!(
        transmission_flags(false, HeaderStyle::Extended, false),
        base | writable | flag::SEND_DF
    );
    assert_eq!(
        transmission_flags(true, HeaderStyle::Extended, true),
        base | flag::READ_ONLY | flag::SEND_DF | flag::BLOCK_STATUS_PAYLOAD
    );
}

#[test]
fn a_server_shutting_down_refuses_everything_but_abort() {
    let mut client = Client::greeted();
    client.negotiation.shut_down();
    for option in [option::LIST, option::GO, option::STRUCTURED_REPLY, 99] {
        assert_eq!(client.ask(option, &[1, 2, 3]), [option_reply::ERR_SHUTDOWN]);
    }
    let (_, step) = client.feed(&message(option::ABORT, &[]));
    assert_eq!(step, Step::Closed(Closed::Aborted));
    let (_, step) = client.feed(&message(option::EXPORT_NAME, b"a"));
    assert_eq!(step, Step::Closed(Closed::ExportRefused));
}

#[test]
fn a_client_may_not_haggle_for_ever() {
    let mut client = Client::greeted();
    for _ in 0..MAX_OPTIONS {
        assert_eq!(client.ask(99, &[]), [option_reply::ERR_UNSUP]);
    }
    let (_, step) = client.feed(&message(99, &[]));
    assert_eq!(step, Step::Closed(Closed::TooManyOptions));
}

#[test]
fn a_wrong_option_magic_ends_the_negotiation() {
    let (_, step) = Client::greeted().feed(b"GET / HTTP/1.1\r\n");
    assert_eq!(step, Step::Closed(Closed::BadMagic));
}

#[test]
fn without_tls_there_is_no_such_option() {
    let mut client = Client::greeted();
    assert_eq!(client.ask(option::STARTTLS, &[]), [option_reply::ERR_UNSUP]);
}

#[test]
fn where_tls_is_required_nothing_else_works_before_it() {
    let mut client = Client::with(3, Encryption::Required);
    for option in [
        option::LIST,
        option::GO,
        option::INFO,
        option::STRUCTURED_REPLY,
        99,
    ] {
        assert_eq!(
            client.ask(option, &[]),
            [option_reply::ERR_TLS_REQD],
            "{option}"
        );
    }
    let (_, step) = client.feed(&message(option::STARTTLS, &[]));
    assert_eq!(step, Step::StartTls);
    let mut other = Client::with(3, Encryption::Required);
    let (_, step) = other.feed(&message(option::EXPORT_NAME, b"a"));
    assert_eq!(step, Step::Closed(Closed::ExportRefused));
    let mut third = Client::with(3, Encryption::Required);
    let (_, step) = third.feed(&message(option::ABORT, &[]));
    assert_eq!(step, Step::Closed(Closed::Aborted));
}

#[test]
fn tls_begins_once_and_forgets_what_was_agreed_before() {
    let mut client = Client::with(3, Encryption::Offered);
    assert_eq!(
        client.ask(option::STRUCTURED_REPLY, &[]),
        [option_reply::ACK]
    );
    assert_eq!(
        client.ask(option::STARTTLS, b"x"),
        [option_reply::ERR_INVALID]
    );
    let (_, step) = client.feed(&message(option::STARTTLS, &[]));
    assert_eq!(step, Step::StartTls);
    client.output.clear();
    client.negotiation.tls_started();
    assert_eq!(
        client.ask(option::STARTTLS, &[]),
        [option_reply::ERR_INVALID]
    );
    // Structured replies have to be asked for again.
    assert_eq!(
        client.ask(
            option::SET_META_CONTEXT,
            &contexts("a", &["base:allocation"])
        ),
        [option_reply::ERR_INVALID]
    );
    assert_eq!(
        client.ask(option::STRUCTURED_REPLY, &[]),
        [option_reply::ACK]
    );
}

/// Feeds bytes in the given portions, as a socket would.
fn run(bytes: &[u8], portions: &[usize]) -> (Vec<u8>, Option<Step>, usize) {
    let mut output = Vec::new();
    let mut negotiation = Negotiation::new(Encryption::Unavailable, &mut output);
    let (mut used, mut there, mut portion) = (0, 0, 0);
    loop {
        let progress = negotiation.feed(&bytes[used..there], &Two, &mut output);
        used += progress.consumed;
        match progress.step {
            Step::Continue => {}
            Step::NeedMore => {
                assert_eq!(progress.consumed, 0);
                assert!(there - used <= MAX_OPTION_BYTES + OPTION_HEADER_BYTES);
                if there == bytes.len() {
                    return (output, None, used);
                }
                let more = portions.get(portion).copied().unwrap_or(usize::MAX).max(1);
                portion += 1;
                there = there.saturating_add(more).min(bytes.len());
            }
            end => return (output, Some(end), used),
        }
    }
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("a"), Just("b"), Just(""), Just("c")];
    let queries = prop::collection::vec(
        prop_oneof![Just("base:"), Just("base:allocation"), Just("x:y")],
        0..3,
    );
    prop_oneof![
        (0..13u32, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(option, payload)| message(option, &payload)),
        (6..8u32, name.clone(), prop::collection::vec(0..5u16, 0..4))
            .prop_map(|(option, name, items)| message(option, &query(name, &items))),
        (9..11u32, name, queries)
            .prop_map(|(option, name, queries)| message(option, &contexts(name, &queries))),
        (8..12u32).prop_map(|option| message(option, &[])),
        prop::collection::vec(any::<u8>(), 0..24),
    ]
}

proptest! {
    /// However the bytes are cut up, the answer is the same.
    #[test]
    fn portions_do_not_matter(
        flags in prop_oneof![4 => Just(3u32), 1 => 0..5u32],
        options in prop::collection::vec(any_option(), 0..12),
        portions in prop::collection::vec(0..50usize, 0..60),
    ) {
        let mut bytes = flags.to_be_bytes().to_vec();
        options.iter().for_each(|option| bytes.put(option));
        prop_assert_eq!(run(&bytes, &[]), run(&bytes, &portions));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        run(&bytes, &[]);
        let mut greeted = 3u32.to_be_bytes().to_vec();
        greeted.put_u64(OPTION_MAGIC);
        greeted.put(&bytes);
        run(&greeted, &[]);
    }
}
