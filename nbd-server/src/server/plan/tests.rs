use proptest::prelude::*;

use super::*;

#[test]
fn pieces_end_on_boundaries_of_the_disk() {
    const ALIGN: usize = 64 << 10;
    assert_eq!(piece(0, ALIGN + 5, true), ALIGN);
    assert_eq!(piece(100, ALIGN + 5, true), ALIGN - 100);
    assert_eq!(piece(100, ALIGN - 100, true), ALIGN - 100);
    // Nothing reaches a boundary: a finer one, or all of it, if it must be.
    assert_eq!(piece(100, 5000, false), 0);
    assert_eq!(piece(100, 5000, true), 4096 - 100);
    assert_eq!(piece(100, 50, true), 50);
}

proptest! {
    #[test]
    fn a_piece_is_never_longer_than_what_is_there(
        offset in 0..1u64 << 62,
        there in 1..1usize << 25,
        must in any::<bool>(),
    ) {
        let length = piece(offset, there, must);
        prop_assert!(length <= there);
        prop_assert!(!must || length > 0);
        if length > 0 && length < there {
            prop_assert_eq!((offset + length as u64) % PIECE_ALIGN_MIN, 0);
        }
    }
}

#[test]
fn a_payload_counts_as_arrived_only_when_all_of_it_is_there() {
    assert_eq!(arrived_whole(5, 5), Some(5));
    assert_eq!(arrived_whole(0, 0), Some(0));
    assert_eq!(arrived_whole(6, 5), None);
    assert_eq!(arrived_whole(u64::MAX, usize::MAX - 1), None);
}
