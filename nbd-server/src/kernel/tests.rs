//! What is decided without a kernel; `scripts/vm-attach-test.sh` has one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;

const FLAGS: u16 = transmission_flag::HAS_FLAGS
    | transmission_flag::SEND_FLUSH
    | transmission_flag::SEND_FUA
    | transmission_flag::SEND_TRIM;

fn terms(size: u64) -> Terms {
    Terms {
        size,
        flags: FLAGS,
        block_bytes: None,
    }
}

#[test]
fn devices_are_named_as_the_kernel_names_them() {
    for text in ["/dev/nbd3", "nbd3"] {
        assert_eq!(text.parse::<DeviceNumber>().unwrap(), DeviceNumber(3));
    }
    assert_eq!(DeviceNumber(3).to_string(), "/dev/nbd3");
    for text in [
        "",
        "nbd",
        "/dev/sda",
        "/dev/nbd0p1",
        "nbd+1",
        "nbd-1",
        "nbd99999999999",
    ] {
        let error = text.parse::<DeviceNumber>().unwrap_err();
        assert!(matches!(error, AttachError::NoDevice(_)), "{text}");
    }
}

#[test]
fn the_block_is_a_sector_or_what_the_server_demands() {
    let with = |block_bytes| Terms {
        block_bytes,
        ..terms(1 << 20)
    };
    assert_eq!(block_of(with(None)).unwrap(), 512);
    assert_eq!(block_of(with(Some(1))).unwrap(), 512);
    assert_eq!(block_of(with(Some(4096))).unwrap(), 4096);
    for wrong in [8192, 3000] {
        assert!(block_of(with(Some(wrong))).is_err());
    }
    assert!(block_of(terms(511)).is_err());
}

#[test]
fn an_export_may_grow_and_gain_but_not_shrink_or_lose() {
    let before = terms(1 << 30);
    assert!(check_same(before, before).is_ok());
    assert!(check_same(before, terms(2 << 30)).is_ok());
    let more = Terms {
        flags: FLAGS | transmission_flag::CAN_MULTI_CONN,
        ..before
    };
    assert!(check_same(before, more).is_ok());

    let smaller = check_same(before, terms(1 << 29)).unwrap_err();
    assert!(
        smaller
            .to_string()
            .contains("536870912 bytes instead of 1073741824")
    );
    let read_only = Terms {
        flags: FLAGS | transmission_flag::READ_ONLY,
        ..before
    };
    assert!(check_same(before, read_only).is_err());
    assert!(check_same(read_only, before).is_ok());
    // The kernel would go on sending flushes, or none.
    let without_flush = Terms {
        flags: FLAGS & !transmission_flag::SEND_FLUSH,
        ..before
    };
    assert!(check_same(before, without_flush).is_err());
    let larger_blocks = Terms {
        block_bytes: Some(4096),
        ..before
    };
    assert!(check_same(before, larger_blocks).is_err());
}
