//! Damaged and unreadable pages: named, never believed, passed over by walks.

use proptest::prelude::*;
use tessera_dedup::{Entry, EntryKind, Generation};
use tessera_raid::{LayoutId, SegmentId, SlotIndex};

use super::model::stored_entry;
use super::store::{Store, kind};
use crate::map::{
    Damage, Layer, MapError, MergeStats, PageOwner, Pointer, StoreErrorKind, TREE_BYTES, Tree,
    TreeShape, Visit, Walker, Wide, lookup, lookup_many, merge, runs,
};

/// Three levels, a thousand leaves, two entries each.
fn mapped(store: &Store) -> Tree {
    let mut layer = Layer::new();
    for leaf in 0..1000 {
        layer.set_run(leaf * 256, &[stored_entry(1); 2]);
    }
    let mut stats = MergeStats::default();
    let empty = Tree::empty(6, TreeShape::VOLUME);
    merge(&empty, &layer, store, &mut store.sink(), &mut stats).unwrap()
}

fn owner(level: u8, index: u64) -> PageOwner {
    PageOwner {
        tree: 6,
        level,
        index,
    }
}

fn pointer(store: &Store, tree: &Tree, level: u8, index: u64) -> Pointer {
    store.pages_of(tree)[&owner(level, index)]
}

/// Every reader that must look into leaf 300, slot 1.
fn attempts(tree: &Tree, store: &Store) -> Vec<MapError> {
    let index = 300 * 256 + 1;
    vec![
        lookup(tree, store, index, &mut [None; 4]).unwrap_err(),
        lookup_many(tree, store, &[7, index], &mut [Entry::HOLE; 2]).unwrap_err(),
        runs(tree, &[], store, index, 1, 1).unwrap_err(),
    ]
}

/// A change of leaf 300, slot 1.
fn change(tree: &Tree, store: &Store) -> Result<(Tree, MergeStats), MapError> {
    let mut layer = Layer::new();
    layer.set(300 * 256 + 1, stored_entry(2));
    let mut stats = MergeStats::default();
    let tree = merge(tree, &layer, store, &mut store.sink(), &mut stats)?;
    Ok((tree, stats))
}

#[test]
fn what_lies_under_a_lost_page_stays_an_error_and_never_fails_a_merge() {
    for level in 0..3 {
        let store = Store::default();
        let old = mapped(&store);
        store.break_page(&pointer(&store, &old, level, 300 >> (8 * level)));
        let (tree, stats) = change(&old, &store).unwrap();
        assert_eq!((stats.pages_lost, stats.exact), (1, false));
        assert_eq!(Tree::decode(&tree.encode()), Some(tree));
        // Again, over pages that say so themselves.
        let (tree, stats) = change(&tree, &store).unwrap();
        assert_eq!(stats.pages_lost, 0);

        let first = 300_u64 >> (8 * level) << (8 * level);
        let lost = first * 256..(first + (1 << (8 * level))) * 256;
        for leaf in (0..1000).step_by(50) {
            let mut out = [None; 2];
            lookup(&tree, &store, leaf * 256, &mut out).unwrap();
            let expected = match leaf {
                300 => [Entry::LOST, stored_entry(2)],
                _ if lost.contains(&(leaf * 256)) => [Entry::LOST; 2],
                _ => [stored_entry(1); 2],
            };
            assert_eq!(out, expected.map(Some), "leaf {leaf}, level {level}");
        }
        let mut told = 0;
        let done = Walker::new(tree).step(&store, 4000, &mut |visit| {
            if let Visit::Lost { first, count } = visit {
                assert!(lost.contains(&first) && first + count <= lost.end);
                told += count;
            }
        });
        assert_eq!((done.unwrap(), told), (true, lost.end - lost.start - 1));
    }
}

#[test]
fn a_change_of_everything_under_a_lost_page_ends_the_loss() {
    let store = Store::default();
    let old = mapped(&store);
    store.break_page(&pointer(&store, &old, 1, 1));
    let (tree, _) = change(&old, &store).unwrap();
    let mut layer = Layer::new();
    layer.fill(256 * 256, 256 * 256, Entry::ZERO);
    let mut stats = MergeStats::default();
    let tree = merge(&tree, &layer, &store, &mut store.sink(), &mut stats).unwrap();
    let mut out = [None; 2];
    lookup(&tree, &store, 300 * 256, &mut out).unwrap();
    assert_eq!(out, [Some(Entry::ZERO); 2]);
}

#[test]
fn an_unreadable_page_is_named_by_every_operation() {
    for level in 0..3 {
        let store = Store::default();
        let tree = mapped(&store);
        let index = 300 >> (8 * level);
        store.break_page(&pointer(&store, &tree, level, index));
        for error in attempts(&tree, &store) {
            assert_eq!(error.page(), Some(owner(level, index)));
            assert_eq!(kind(&error), Some(StoreErrorKind::Corrupt));
            assert!(!error.is_no_space());
        }
    }
}

#[test]
fn an_entry_that_cannot_have_been_written_is_damage() {
    let page_entry = Entry {
        kind: EntryKind::Page,
        ..stored_entry(1)
    };
    let raw_entry = Entry {
        kind: EntryKind::Raw,
        ..stored_entry(1)
    };
    for (level, bytes) in [
        (0, [0xff; 16]),
        (0, page_entry.encode()),
        (1, [0xff; 16]),
        (1, raw_entry.encode()),
    ] {
        let store = Store::default();
        let tree = mapped(&store);
        let (index, slot) = if level == 0 { (300, 1) } else { (1, 300 - 256) };
        store.overwrite(&pointer(&store, &tree, level, index), slot * 16, &bytes);
        let expected = if level == 0 {
            Damage::Entry { slot }
        } else {
            Damage::Pointer { slot }
        };
        let merged = change(&tree, &store).unwrap_err();
        for error in attempts(&tree, &store).into_iter().chain([merged]) {
            let MapError::Damaged { page, damage } = error else {
                panic!("{error}")
            };
            assert_eq!((page, damage), (owner(level, index), expected));
        }
    }
}

#[test]
fn a_walk_goes_on_behind_a_damaged_page() {
    let store = Store::default();
    let tree = mapped(&store);
    store.break_page(&pointer(&store, &tree, 0, 3));
    store.overwrite(&pointer(&store, &tree, 0, 500), 16 * 9, &[0xff; 16]);
    store.overwrite(&pointer(&store, &tree, 1, 2), 16 * 40, &[0xff; 16]);
    let mut bad = Vec::new();
    let mut leaves = Vec::new();
    let mut walker = Walker::new(tree);
    loop {
        let step = walker.step(&store, 7, &mut |visit| {
            if let Visit::Page {
                level: 0, index, ..
            } = visit
            {
                leaves.push(index);
            }
        });
        match step {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => bad.push(error.page().unwrap()),
        }
    }
    assert_eq!(bad, [owner(0, 3), owner(0, 500), owner(1, 2)]);
    let expected = (0..1000).filter(|&leaf| leaf != 3 && leaf != 500 && leaf >> 8 != 2);
    assert!(leaves.into_iter().eq(expected));
}

#[test]
fn dropping_an_unreadable_page_works_but_is_not_exact() {
    let store = Store::default();
    let tree = mapped(&store);
    store.break_page(&pointer(&store, &tree, 0, 3));
    let mut layer = Layer::new();
    layer.fill(0, 256 * 10, Entry::HOLE);
    let mut stats = MergeStats::default();
    let tree = merge(&tree, &layer, &store, &mut store.sink(), &mut stats).unwrap();
    assert_eq!((stats.exact, stats.logical_delta), (false, -2 * 9));
    let mut out = [None; 300];
    lookup(&tree, &store, 3 * 256, &mut out).unwrap();
    assert_eq!(out, [Some(Entry::HOLE); 300]);
}

#[test]
fn an_unreadable_leaf_is_mended_by_changing_all_of_it() {
    let store = Store::default();
    let tree = mapped(&store);
    store.break_page(&pointer(&store, &tree, 0, 3));
    let mut layer = Layer::new();
    layer.set(2 * 256, stored_entry(2));
    layer.set_run(3 * 256, &[stored_entry(2); 100]);
    layer.fill(3 * 256 + 100, 155, Entry::HOLE);
    layer.set(3 * 256 + 255, stored_entry(3));
    let mut stats = MergeStats::default();
    let tree = merge(&tree, &layer, &store, &mut store.sink(), &mut stats).unwrap();
    assert_eq!((stats.exact, stats.logical_delta), (false, 101));
    let mut out = [None; 256];
    lookup(&tree, &store, 3 * 256, &mut out).unwrap();
    assert_eq!(out[99..101], [Some(stored_entry(2)), Some(Entry::HOLE)]);
    assert_eq!(out[255], Some(stored_entry(3)));
}

#[test]
fn a_full_pool_fails_the_merge_and_leaves_the_old_tree() {
    let store = Store::default();
    let tree = mapped(&store);
    let mut layer = Layer::new();
    layer.set(0, stored_entry(2));
    for room in 0..3 {
        store.room.set(Some(room));
        let mut stats = MergeStats::default();
        let error = merge(&tree, &layer, &store, &mut store.sink(), &mut stats).unwrap_err();
        assert!(error.is_no_space());
        let level = u8::try_from(room).unwrap();
        assert_eq!(error.page(), Some(owner(level, 0)), "children come first");
    }
    let mut out = [None];
    lookup(&tree, &store, 0, &mut out).unwrap();
    assert_eq!(out, [Some(stored_entry(1))]);
}

#[test]
fn garbage_for_a_page_is_refused_at_every_height() {
    // The page points to itself in every slot: only the height ends a descent.
    for height in 1..=8 {
        let store = Store::default();
        let mut tree = mapped(&store);
        tree.height = height;
        for slot in 0..256 {
            store.overwrite(&tree.root, slot * 16, &tree.root.entry.encode());
        }
        let error = lookup(&tree, &store, 9, &mut [None; 4]).unwrap_err();
        assert_eq!(error.page(), Some(owner(0, 0)));
        let step = Walker::new(tree).step(&store, 1000, &mut |_| {});
        assert_eq!(step.unwrap_err().page(), Some(owner(0, 0)));
    }
}

proptest! {
    #[test]
    fn decoding_a_tree_is_total_and_inverse(mut bytes: [u8; TREE_BYTES], plain in 0u8..4) {
        // Random bytes alone are hardly ever a tree: help with what is fixed.
        if plain > 0 {
            bytes[8..16].copy_from_slice(&[16, 0, plain & 1, 1, 0, 0, 0, 0]);
            let entry = Entry { kind: EntryKind::Page, ..stored_entry(1) };
            bytes[16..32].copy_from_slice(&entry.encode());
            bytes[34..36].fill(0);
            bytes[40] = entry.generation;
            if plain == 2 {
                bytes[32..].fill(0);
            }
        }
        let decoded = Tree::decode(&bytes);
        prop_assert!(plain == 0 || decoded.is_some());
        if let Some(tree) = decoded {
            prop_assert_eq!(tree.encode(), bytes);
        }
    }
}

#[test]
fn trees_that_cannot_be_are_not_decoded() {
    let store = Store::default();
    let good = mapped(&store).encode();
    assert!(Tree::decode(&good).is_some());
    let refused = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        assert_eq!(Tree::decode(&bytes), None, "byte {at} = {byte}");
    };
    refused(8, 24); // records of 24 bytes
    refused(10, 2); // an unknown flag
    refused(11, 0); // an empty tree with a root
    refused(11, 9); // higher than any
    refused(12, 1); // reserved
    refused(40, 1); // beyond a narrow pointer
}

#[test]
fn the_stored_form_of_a_tree_does_not_change() {
    let entry = Entry {
        kind: EntryKind::Page,
        segment: SegmentId(0x0403_0201),
        position: 0x0007_0605,
        stored: 0x2_1008,
        generation: 0xa0,
        checksum: 0x0f0e_0d0c,
    };
    let wide = Wide {
        layout: LayoutId(0x1211),
        slot: SlotIndex(0x1615_1413),
        generation: Generation(0x2726_2524_2322_21a0),
    };
    let tree = Tree {
        id: 0x3837_3635_3433_3231,
        shape: TreeShape::SEGMENT_TABLE,
        height: 2,
        root: Pointer {
            entry,
            wide: Some(wide),
        },
    };
    // As drawn in docs/format/map.md.
    let stored = [
        [0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38],
        [64, 0, 1, 2, 0, 0, 0, 0],
        [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08],
        [0x10, 4 << 2 | 0x2, 0xa0, 0, 0x0c, 0x0d, 0x0e, 0x0f],
        [0x11, 0x12, 0, 0, 0x13, 0x14, 0x15, 0x16],
        [0xa0, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27],
    ];
    assert_eq!(tree.encode(), stored.as_flattened());
    let mut unknown_form = tree.encode();
    unknown_form[34] = 1;
    assert_eq!(Tree::decode(&unknown_form), None);
    let mut other_generation = tree.encode();
    other_generation[40] = 1;
    assert_eq!(Tree::decode(&other_generation), None);
}
