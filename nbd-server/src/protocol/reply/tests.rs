use super::*;
use crate::protocol::constants::BASE_ALLOCATION_ID;

const TO: Addressee = Addressee {
    cookie: 0x1122_3344_5566_7788,
    offset: 0x1000,
};
const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

#[test]
fn data_headers_say_where_the_data_belongs() {
    let mut simple = [0; SIMPLE_BYTES];
    data_header(&mut simple, HeaderStyle::Simple, TO, 0x1000, 512, true);
    assert_eq!(simple[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    assert_eq!(simple[8..], TO.cookie.to_be_bytes());

    let mut structured = [0; STRUCTURED_BYTES + 8];
    data_header(
        &mut structured,
        HeaderStyle::Structured,
        TO,
        0x1200,
        512,
        true,
    );
    assert_eq!(structured[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
    assert_eq!(structured[8..16], TO.cookie.to_be_bytes());
    assert_eq!(structured[16..20], 520u32.to_be_bytes());
    assert_eq!(structured[20..], 0x1200u64.to_be_bytes());

    // The header repeats the request's offset, the payload has the chunk's.
    let mut extended = [0; EXTENDED_BYTES + 8];
    data_header(&mut extended, HeaderStyle::Extended, TO, 0x1200, 512, false);
    assert_eq!(extended[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 0, 0, 1]);
    assert_eq!(extended[8..16], TO.cookie.to_be_bytes());
    assert_eq!(extended[16..24], TO.offset.to_be_bytes());
    assert_eq!(extended[24..32], 520u64.to_be_bytes());
    assert_eq!(extended[32..], 0x1200u64.to_be_bytes());
}

#[test]
fn the_announced_sizes_are_exact() {
    for style in STYLES {
        let mut header = vec![0xaa; data_header_bytes(style)];
        data_header(&mut header, style, TO, 0, 1, true);
        let mut ok = vec![0xaa; success_bytes(style)];
        success(&mut ok, style, TO);
        assert!(data_header_bytes(style) <= MAX_DATA_HEADER_BYTES);
        // The last bytes written are the cookie's or a length's, never 0xaa.
        assert_ne!(header.last(), Some(&0xaa));
        assert_ne!(ok.last(), Some(&0xaa));
    }
}

#[test]
fn an_extended_success_is_never_a_simple_reply() {
    let mut ok = [0; EXTENDED_BYTES];
    success(&mut ok, HeaderStyle::Extended, TO);
    assert_eq!(ok[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 0]);
    assert_eq!(ok[24..], [0; 8]);
}

#[test]
fn an_empty_read_is_a_chunk_where_chunks_are_in_use() {
    let mut out = Vec::new();
    empty_read(&mut out, HeaderStyle::Structured, TO);
    assert_eq!(out[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0]);
    assert_eq!(out[16..], [0; 4]);
}

#[test]
fn errors_carry_a_bounded_sentence() {
    let long = "ü".repeat(4000);
    for (style, header) in [
        (HeaderStyle::Structured, STRUCTURED_BYTES),
        (HeaderStyle::Extended, EXTENDED_BYTES),
    ] {
        let mut out = Vec::new();
        error(&mut out, style, TO, ErrorCode::NoSpace, &long);
        let payload = &out[header..];
        assert_eq!(out[4..8], [0, 1, 0x80, 1]);
        assert_eq!(payload[..4], 28u32.to_be_bytes());
        let length = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
        assert_eq!(payload.len(), 6 + length);
        assert!(length <= MAX_MESSAGE_BYTES);
        assert_eq!(std::str::from_utf8(&payload[6..]).unwrap(), &long[..length]);
    }
    let mut out = Vec::new();
    error(&mut out, HeaderStyle::Simple, TO, ErrorCode::Io, "ignored");
    assert_eq!(out.len(), SIMPLE_BYTES);
    assert_eq!(out[4..8], 5u32.to_be_bytes());
}

#[test]
fn neighbouring_extents_of_one_kind_are_merged() {
    let extents = [
        Extent {
            length: 4096,
            kind: ExtentKind::Hole,
        },
        Extent {
            length: 4096,
            kind: ExtentKind::Hole,
        },
        Extent {
            length: 512,
            kind: ExtentKind::Data,
        },
        Extent {
            length: 1,
            kind: ExtentKind::Zero,
        },
    ];
    let mut out = Vec::new();
    let runs: Vec<Run> = extents.iter().map(Run::from).collect();
    block_status(
        &mut out,
        HeaderStyle::Structured,
        TO,
        BASE_ALLOCATION_ID,
        &runs,
        true,
    );
    let words: Vec<u32> = out[STRUCTURED_BYTES..]
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [1, 8192, 3, 512, 0, 1, 2]);
    assert_eq!(out[4..8], [0, 1, 0, 5]);
    assert_eq!(out[16..20], (words.len() as u32 * 4).to_be_bytes());
}

#[test]
fn extended_extents_have_64_bits_and_a_count() {
    let extents = [
        Extent {
            length: 5 << 40,
            kind: ExtentKind::Hole,
        },
        Extent {
            length: 1,
            kind: ExtentKind::Data,
        },
    ];
    let mut out = Vec::new();
    let runs: Vec<Run> = extents.iter().map(Run::from).collect();
    block_status(
        &mut out,
        HeaderStyle::Extended,
        TO,
        BASE_ALLOCATION_ID,
        &runs,
        true,
    );
    assert_eq!(out[4..8], [0, 1, 0, 6]);
    assert_eq!(out[24..32], (8u64 + 2 * 16).to_be_bytes());
    assert_eq!(out[32..40], [0, 0, 0, 1, 0, 0, 0, 2]);
    assert_eq!(out[40..48], (5u64 << 40).to_be_bytes());
    assert_eq!(out[48..56], 3u64.to_be_bytes());
    assert_eq!(out.len(), EXTENDED_BYTES + 8 + 2 * 16);
}

#[test]
fn every_disk_error_has_its_number() {
    use tessera_engine::disk::DiskError;
    let range = DiskError::OutOfRange {
        offset: 0,
        length: 1,
        size: 0,
    };
    for (error, writing, number) in [
        (range.clone(), true, 28),
        (range, false, 22),
        (DiskError::ReadOnly, true, 1),
        (DiskError::NoSpace, true, 28),
        (DiskError::Io("x".into()), false, 5),
        (DiskError::NotFast, false, 95),
        (DiskError::Gone, false, 108),
    ] {
        assert_eq!(
            ErrorCode::from_disk(&error, writing).wire(),
            number,
            "{error}"
        );
    }
    assert_eq!(ErrorCode::Overflow.wire(), 75);
}

#[test]
fn each_context_has_its_chunk_and_only_the_last_ends_the_reply() {
    use tessera_engine::disk::ChangeExtent;
    let runs = [(7, true), (9, true), (1, false)]
        .map(|(length, changed)| Run::from(&ChangeExtent { length, changed }));
    let mut out = Vec::new();
    block_status(&mut out, HeaderStyle::Structured, TO, 2, &runs, false);
    let words: Vec<u32> = out[STRUCTURED_BYTES..]
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [2, 16, 1, 1, 0]);
    assert_eq!(out[4..8], [0, 0, 0, 5]);
}
