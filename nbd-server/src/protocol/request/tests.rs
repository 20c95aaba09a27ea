use proptest::prelude::*;

use super::*;
use crate::protocol::constants::BASE_ALLOCATION_ID;

fn compact(flags: u16, command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(77u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn header(flags: u16, command: u16, offset: u64, length: u64) -> RequestHeader {
    RequestHeader {
        flags,
        command,
        cookie: 77,
        offset,
        length,
    }
}

fn terms(style: HeaderStyle) -> Terms {
    Terms {
        style,
        contexts: ContextSet::ALLOCATION,
        read_only: false,
        size: 1 << 30,
    }
}

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

#[test]
fn a_compact_header_is_28_bytes_and_every_prefix_is_incomplete() {
    let bytes = compact(1, command::WRITE, 4096, 512);
    assert_eq!(bytes.len(), COMPACT_BYTES);
    for end in 0..bytes.len() {
        assert_eq!(
            parse(HeaderStyle::Structured, &bytes[..end]),
            Parsed::Incomplete
        );
    }
    let expected = header(1, command::WRITE, 4096, 512);
    assert_eq!(parse(HeaderStyle::Simple, &bytes), Parsed::Header(expected));
}

#[test]
fn an_extended_header_carries_a_64_bit_length() {
    let mut bytes = EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend([0, 0, 0, 4]);
    bytes.extend(5u64.to_be_bytes());
    bytes.extend(0u64.to_be_bytes());
    bytes.extend((1u64 << 40).to_be_bytes());
    assert_eq!(bytes.len(), EXTENDED_BYTES);
    let expected = RequestHeader {
        flags: 0,
        command: command::TRIM,
        cookie: 5,
        offset: 0,
        length: 1 << 40,
    };
    assert_eq!(
        parse(HeaderStyle::Extended, &bytes),
        Parsed::Header(expected)
    );
    assert_eq!(
        parse(HeaderStyle::Extended, &bytes[..31]),
        Parsed::Incomplete
    );
}

#[test]
fn each_style_refuses_the_other_magic_as_soon_as_it_is_there() {
    let compact = REQUEST_MAGIC.to_be_bytes();
    let extended = EXTENDED_REQUEST_MAGIC.to_be_bytes();
    assert_eq!(
        parse(HeaderStyle::Extended, &compact),
        Parsed::BadMagic(REQUEST_MAGIC)
    );
    assert_eq!(
        parse(HeaderStyle::Simple, &extended),
        Parsed::BadMagic(EXTENDED_REQUEST_MAGIC)
    );
}

#[test]
fn only_writes_carry_a_payload_unless_an_extended_flag_says_so() {
    for style in STYLES {
        assert_eq!(header(0, command::WRITE, 0, 9).payload_bytes(style), 9);
        assert_eq!(header(0, command::READ, 0, 9).payload_bytes(style), 0);
    }
    let flagged = header(command_flag::PAYLOAD_LEN, command::READ, 0, 9);
    assert_eq!(flagged.payload_bytes(HeaderStyle::Structured), 0);
    assert_eq!(flagged.payload_bytes(HeaderStyle::Extended), 9);
}

#[test]
fn ranges_past_the_end_meet_the_error_of_their_command() {
    let terms = terms(HeaderStyle::Structured);
    let size = terms.size;
    for (command, error) in [
        (command::READ, ErrorCode::Invalid),
        (command::WRITE, ErrorCode::NoSpace),
        (command::TRIM, ErrorCode::Invalid),
        (command::WRITE_ZEROES, ErrorCode::Invalid),
        (command::CACHE, ErrorCode::Invalid),
        (command::BLOCK_STATUS, ErrorCode::Invalid),
    ] {
        assert!(
            terms.validate(&header(0, command, size - 512, 512)).is_ok(),
            "{command}"
        );
        for (offset, length) in [
            (size - 511, 512),
            (size, 1),
            (u64::MAX, 1),
            (u64::MAX - 5, 512),
        ] {
            let result = terms.validate(&header(0, command, offset, length));
            assert_eq!(result, Err(error), "command {command} at {offset}+{length}");
        }
    }
}

#[test]
fn a_read_only_export_refuses_what_writes_and_nothing_else() {
    let terms = Terms {
        read_only: true,
        ..terms(HeaderStyle::Structured)
    };
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(
            terms.validate(&header(0, command, 0, 512)),
            Err(ErrorCode::Perm)
        );
        // Even where the range is wrong as well.
        assert_eq!(
            terms.validate(&header(0, command, 1 << 40, 512)),
            Err(ErrorCode::Perm)
        );
    }
    for command in [command::READ, command::CACHE, command::BLOCK_STATUS] {
        assert!(terms.validate(&header(0, command, 0, 512)).is_ok());
    }
    assert_eq!(
        terms.validate(&header(0, command::FLUSH, 0, 0)),
        Ok(Action::Flush)
    );
}

#[test]
fn every_command_takes_fua_and_no_flag_it_does_not_know() {
    use command_flag as flag;
    let all = [
        flag::NO_HOLE,
        flag::DF,
        flag::REQ_ONE,
        flag::FAST_ZERO,
        flag::PAYLOAD_LEN,
        1 << 6,
        1 << 15,
    ];
    for style in STYLES {
        let terms = terms(style);
        for (command, length, allowed) in [
            (
                command::READ,
                512,
                if style == HeaderStyle::Simple {
                    0
                } else {
                    flag::DF
                },
            ),
            (
                command::WRITE,
                512,
                if style == HeaderStyle::Extended {
                    flag::PAYLOAD_LEN
                } else {
                    0
                },
            ),
            (command::FLUSH, 0, 0),
            (command::TRIM, 512, 0),
            (command::CACHE, 512, 0),
            (command::WRITE_ZEROES, 512, flag::NO_HOLE | flag::FAST_ZERO),
            (
                command::BLOCK_STATUS,
                512,
                flag::REQ_ONE
                    | if style == HeaderStyle::Extended {
                        flag::PAYLOAD_LEN
                    } else {
                        0
                    },
            ),
        ] {
            let try_with = |flags| terms.validate(&header(flags, command, 0, length));
            // An extended block status with a payload is 264 bytes at most.
            let fits = |flags: u16| flags & flag::PAYLOAD_LEN == 0 || command == command::WRITE;
            assert!(try_with(flag::FUA).is_ok(), "{style:?} {command}");
            for other in all {
                if allowed & other == 0 {
                    assert_eq!(
                        try_with(other),
                        Err(ErrorCode::Invalid),
                        "{style:?} {command} {other}"
                    );
                } else if fits(other) {
                    assert!(try_with(other).is_ok(), "{style:?} {command} {other}");
                }
            }
        }
    }
}

#[test]
fn transfers_end_at_32_mib_but_ranges_without_payload_do_not() {
    let most = MAX_PAYLOAD_BYTES;
    for (style, error) in [
        (HeaderStyle::Simple, ErrorCode::Invalid),
        (HeaderStyle::Structured, ErrorCode::Overflow),
        (HeaderStyle::Extended, ErrorCode::Overflow),
    ] {
        let terms = Terms {
            size: 1 << 50,
            ..terms(style)
        };
        assert!(terms.validate(&header(0, command::READ, 0, most)).is_ok());
        assert_eq!(
            terms.validate(&header(0, command::READ, 0, most + 1)),
            Err(error)
        );
        assert!(terms.validate(&header(0, command::WRITE, 0, most)).is_ok());
        assert_eq!(
            terms.validate(&header(0, command::WRITE, 0, most + 1)),
            Err(ErrorCode::Invalid)
        );
        for command in [
            command::TRIM,
            command::WRITE_ZEROES,
            command::CACHE,
            command::BLOCK_STATUS,
        ] {
            assert!(terms.validate(&header(0, command, 0, 1 << 50)).is_ok());
        }
    }
}

#[test]
fn flags_turn_into_what_they_ask_for() {
    use command_flag as flag;
    let terms = terms(HeaderStyle::Extended);
    let validate = |flags, command, length| terms.validate(&header(flags, command, 0, length));
    assert_eq!(
        validate(flag::DF, command::READ, 1),
        Ok(Action::Read { whole: true })
    );
    assert_eq!(
        validate(flag::FUA | flag::PAYLOAD_LEN, command::WRITE, 1),
        Ok(Action::Write { fua: true })
    );
    assert_eq!(
        validate(flag::NO_HOLE | flag::FAST_ZERO, command::WRITE_ZEROES, 1),
        Ok(Action::WriteZeroes {
            fua: false,
            keep_allocated: true
        })
    );
    assert_eq!(
        validate(flag::FUA, command::TRIM, 1),
        Ok(Action::Trim { fua: true })
    );
    assert_eq!(
        validate(flag::REQ_ONE, command::BLOCK_STATUS, 1),
        Ok(Action::BlockStatus { one: true })
    );
    assert_eq!(validate(0xffff, command::DISC, 3), Ok(Action::Disconnect));
    assert_eq!(validate(0, command::FLUSH, 1), Err(ErrorCode::Invalid));
    for unknown in [8, 9, 0xffff] {
        assert_eq!(validate(0, unknown, 0), Err(ErrorCode::Invalid));
    }
}

#[test]
fn block_status_needs_the_context_and_a_range() {
    let terms = terms(HeaderStyle::Structured);
    let without = Terms {
        contexts: ContextSet::NONE,
        ..terms
    };
    let ask = header(0, command::BLOCK_STATUS, 0, 512);
    assert!(terms.validate(&ask).is_ok());
    assert_eq!(without.validate(&ask), Err(ErrorCode::Invalid));
    assert_eq!(
        terms.validate(&header(0, command::BLOCK_STATUS, 0, 0)),
        Err(ErrorCode::Invalid)
    );
}

#[test]
fn a_block_status_payload_names_chosen_contexts_once_each() {
    let terms = terms(HeaderStyle::Extended);
    let payload = |length: u64, ids: &[u32]| {
        let mut bytes = length.to_be_bytes().to_vec();
        ids.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
        bytes
    };
    assert_eq!(
        terms.query(0, &payload(4096, &[BASE_ALLOCATION_ID])),
        Ok((4096, ContextSet::ALLOCATION))
    );
    for bad in [
        payload(4096, &[]),
        payload(4096, &[2]),
        payload(4096, &[BASE_ALLOCATION_ID, BASE_ALLOCATION_ID]),
        payload(0, &[BASE_ALLOCATION_ID]),
        payload(1 << 40, &[BASE_ALLOCATION_ID]),
        vec![1, 2, 3],
        Vec::new(),
    ] {
        assert_eq!(terms.query(0, &bad), Err(ErrorCode::Invalid), "{bad:?}");
    }
    assert_eq!(
        terms.query(u64::MAX, &payload(9, &[BASE_ALLOCATION_ID])),
        Err(ErrorCode::Invalid)
    );
    let mut contexts = ContextSet::NONE;
    assert!(contexts.insert(2) && contexts.insert(4) && !contexts.insert(2));
    assert!(!contexts.insert(0) && !contexts.insert(17));
    let terms = Terms { contexts, ..terms };
    assert_eq!(terms.query(0, &payload(9, &[4, 2])), Ok((9, contexts)));
    for bad in [&[1][..], &[3], &[2, 2], &[2, 17]] {
        let refused = terms.query(0, &payload(9, bad));
        assert_eq!(refused, Err(ErrorCode::Invalid), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_parse_or_do_not(bytes in prop::collection::vec(any::<u8>(), 0..64), style in 0..3usize) {
        match parse(STYLES[style], &bytes) {
            Parsed::Header(_) => prop_assert!(bytes.len() >= header_bytes(STYLES[style])),
            Parsed::Incomplete => prop_assert!(bytes.len() < header_bytes(STYLES[style])),
            Parsed::BadMagic(_) => prop_assert!(bytes.len() >= 4),
        }
    }

    /// Whatever a client sends, an accepted range lies within the export.
    #[test]
    fn accepted_ranges_lie_within_the_export(
        flags in any::<u16>(),
        command in 0..10u16,
        offset in prop_oneof![any::<u64>(), 0..5000u64],
        length in prop_oneof![any::<u64>(), 0..5000u64],
        size in 0..8192u64,
        style in 0..3usize,
        read_only in any::<bool>(),
        block_status in any::<bool>(),
    ) {
        let contexts = if block_status { ContextSet::ALLOCATION } else { ContextSet::NONE };
        let terms = Terms { style: STYLES[style], contexts, read_only, size };
        let header = RequestHeader { flags, command, cookie: 0, offset, length };
        match terms.validate(&header) {
            Err(_) | Ok(Action::Disconnect | Action::Flush | Action::BlockStatusQuery { .. }) => {}
            Ok(_) => prop_assert!(offset.checked_add(length).is_some_and(|end| end <= size)),
        }
    }
}
