//! Trees of volumes: merge, lookup, walk and block status against the model,
//! and what they cost in pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tessera_dedup::Entry;

use super::model::{Known, Model, Op, entry_for, histories, stored_entry};
use super::store::Store;
use crate::map::{
    Layer, MAX_HEIGHT, MergeStats, PageOwner, Pointer, RunKind, Tree, TreeShape, Visit, Walker,
    lookup, lookup_many, merge, merge_dropping, runs,
};

fn layer_of(ops: &[Op]) -> Layer {
    let mut layer = Layer::new();
    for op in ops {
        op.apply(&mut layer);
    }
    layer
}

fn merged(tree: &Tree, layer: &Layer, store: &Store) -> (Tree, MergeStats) {
    let mut stats = MergeStats::default();
    let tree = merge(tree, layer, store, &mut store.sink(), &mut stats).unwrap();
    (tree, stats)
}

/// Everything a walk of `pages` at a time comes across.
fn walk(tree: &Tree, store: &Store, pages: usize) -> (Vec<(u64, Entry)>, Vec<PageOwner>) {
    let (mut entries, mut owners) = (Vec::new(), Vec::new());
    let mut walker = Walker::new(*tree);
    loop {
        let before = store.reads.get();
        let done = walker
            .step(store, pages, &mut |visit| match visit {
                Visit::Page { level, index, .. } => {
                    owners.push(PageOwner {
                        tree: tree.id,
                        level,
                        index,
                    });
                }
                Visit::Entry { index, entry } => entries.push((index, entry)),
                Visit::Lost { .. } | Visit::Record { .. } => panic!("volumes have no records"),
            })
            .unwrap();
        assert!(store.reads.get() - before <= u64::try_from(pages).unwrap());
        if done {
            assert_eq!(walker.position(), None);
            return (entries, owners);
        }
    }
}

fn check_content(tree: &Tree, known: &Known, store: &Store) {
    assert!(tree.height <= MAX_HEIGHT);
    assert_eq!(Tree::decode(&tree.encode()), Some(*tree));
    let (entries, mut owners) = walk(tree, store, 5);
    assert_eq!(entries, known.stored());
    assert_eq!(walk(tree, store, 1000).0, entries);
    owners.sort_unstable();
    assert!(owners.iter().eq(store.pages_of(tree).keys()));

    let mut scattered: Vec<u64> = known.telling().into_iter().step_by(3).collect();
    scattered.reverse();
    let mut out = vec![Entry::HOLE; scattered.len()];
    store.forget_counts();
    lookup_many(tree, store, &scattered, &mut out).unwrap();
    assert!(
        store.batches.get() <= u64::from(tree.height),
        "a level is one batch"
    );
    for (index, entry) in scattered.iter().zip(out) {
        assert_eq!(entry, known.entry(*index), "at {index}");
    }
    for &first in scattered.iter().step_by(29) {
        let mut out = vec![None; 700];
        out[5] = Some(entry_for(77, 77));
        lookup(tree, store, first, &mut out).unwrap();
        assert_eq!(out[5], Some(entry_for(77, 77)), "known slots stay");
        for (index, entry) in (first..).zip(out) {
            assert!(
                index == first + 5 || entry == Some(known.entry(index)),
                "at {index}"
            );
        }
    }
}

/// Old pages that a change overlaps: all that a merge may read.
fn touched(old: &BTreeMap<PageOwner, Pointer>, layer: &Layer) -> u64 {
    let overlaps = |owner: &&PageOwner| {
        let (first, end) = TreeShape::VOLUME.page_range(owner.level, owner.index);
        layer
            .next_change(first)
            .is_some_and(|change| change.first() < end)
    };
    u64::try_from(old.keys().filter(overlaps).count()).unwrap()
}

fn check_cost(store: &Store, old: &Tree, new: &Tree, layer: &Layer, stats: &MergeStats) {
    let (old, new) = (store.pages_of(old), store.pages_of(new));
    assert_eq!(
        stats.pages_read,
        touched(&old, layer),
        "every touched page is read once"
    );
    let known: BTreeSet<u32> = old.values().map(|p| p.entry.segment.0).collect();
    let fresh: Vec<_> = new
        .iter()
        .filter(|(_, p)| !known.contains(&p.entry.segment.0))
        .collect();
    assert_eq!(
        stats.pages_written,
        u64::try_from(fresh.len()).unwrap(),
        "no page in vain"
    );
    for (owner, pointer) in fresh {
        if let Some(before) = old.get(owner) {
            assert_ne!(
                store.peek(before),
                store.peek(pointer),
                "{owner} had not changed"
            );
        }
    }
    for (owner, pointer) in &new {
        let page = store.peek(pointer);
        let zero = page.chunks(16).all(|entry| entry == Entry::ZERO.encode());
        assert!(
            !zero && page.iter().any(|&byte| byte != 0),
            "{owner} needs no page"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn merging_layers_gives_what_was_done(history in histories(5, 12)) {
        let store = Store::default();
        let mut model = Model::default();
        let mut tree = Tree::empty(11, TreeShape::VOLUME);
        for ops in history {
            let layer = layer_of(&ops);
            let stored = model.known().stored().len();
            model.ops.extend(ops);
            let known = model.known();
            store.forget_counts();
            let written = store.written();
            let (new, stats) = merged(&tree, &layer, &store);
            prop_assert!(stats.exact);
            let change = i64::try_from(known.stored().len()).unwrap() - i64::try_from(stored).unwrap();
            prop_assert_eq!(stats.logical_delta, change);
            prop_assert_eq!(stats.pages_read, store.reads.get());
            prop_assert_eq!(stats.pages_written, store.written() - written);
            check_cost(&store, &tree, &new, &layer, &stats);
            check_content(&new, &known, &store);
            tree = new;
        }
    }

    #[test]
    fn old_trees_stay_readable(history in histories(4, 8)) {
        let store = Store::default();
        let mut model = Model::default();
        let mut trees = vec![(Tree::empty(3, TreeShape::VOLUME), model.clone())];
        for ops in history {
            let (tree, _) = merged(&trees.last().unwrap().0, &layer_of(&ops), &store);
            model.ops.extend(ops);
            trees.push((tree, model.clone()));
        }
        for (tree, model) in trees {
            prop_assert_eq!(walk(&tree, &store, 64).0, model.known().stored());
        }
    }

    #[test]
    fn volumes_with_wide_pointers_work_alike(history in histories(3, 8)) {
        let store = Store::default();
        let shape = TreeShape { wide_pointers: true, ..TreeShape::VOLUME };
        let mut tree = Tree::empty(11, shape);
        let mut model = Model::default();
        for ops in history {
            tree = merged(&tree, &layer_of(&ops), &store).0;
            model.ops.extend(ops);
            check_content(&tree, &model.known(), &store);
        }
    }

    #[test]
    fn block_status_stacks_layers_over_pages(
        history in histories(4, 8), first in 0u64..2000, far: bool, most in 0usize..40,
    ) {
        let store = Store::default();
        let mut model = Model::default();
        let mut layers: Vec<Layer> = history.iter().map(|ops| layer_of(ops)).collect();
        model.ops = history.concat();
        let (tree, _) = merged(&Tree::empty(1, TreeShape::VOLUME), &layers.remove(0), &store);
        let stack: Vec<&Layer> = layers.iter().rev().collect();
        let count = if far { 1 << 52 } else { 3000 };
        let found = runs(&tree, &stack, &store, first, count, most).unwrap();
        let found: Vec<(u64, RunKind)> = found.iter().map(|run| (run.count, run.kind)).collect();
        prop_assert_eq!(found, model.known().runs(first, first + count, most));
    }

    #[test]
    fn a_walk_can_be_taken_up_at_its_position(history in histories(2, 12), pages in 1usize..9) {
        let store = Store::default();
        let model = Model { ops: history.concat() };
        let (tree, _) = merged(&Tree::empty(1, TreeShape::VOLUME), &layer_of(&model.ops), &store);
        let mut seen = BTreeMap::new();
        let mut walker = Walker::new(tree);
        loop {
            let before = walker.position();
            let done = walker.step(&store, pages, &mut |visit| {
                if let Visit::Entry { index, entry } = visit {
                    assert_eq!(seen.insert(index, entry), None, "{index} came twice");
                }
            });
            if done.unwrap() {
                break;
            }
            if walker.position() > before {
                walker = Walker::starting_at(tree, walker.position().unwrap());
            }
        }
        prop_assert!(seen.into_iter().eq(model.known().stored()));
    }
}

#[test]
fn filling_an_unmapped_volume_touches_no_page() {
    let store = Store::default();
    let empty = Tree::empty(1, TreeShape::VOLUME);
    let mut layer = Layer::new();
    layer.fill(0, 1 << 32, Entry::HOLE);
    let (tree, stats) = merged(&empty, &layer, &store);
    assert_eq!((tree, stats), (empty, MergeStats::default()));

    layer.fill(0, 1 << 32, Entry::ZERO);
    let (tree, stats) = merged(&empty, &layer, &store);
    assert_eq!((tree.height, tree.root), (4, Pointer::ZERO));
    assert_eq!(stats, MergeStats::default());
    let found = runs(&tree, &[], &store, 0, 1 << 33, 9).unwrap();
    let found: Vec<_> = found.iter().map(|run| (run.count, run.kind)).collect();
    assert_eq!(found, [(1 << 32, RunKind::Zero), (1 << 32, RunKind::Hole)]);

    layer.fill(0, 1 << 40, Entry::HOLE);
    let (tree, stats) = merged(&tree, &layer, &store);
    assert_eq!((tree, stats), (empty, MergeStats::default()));
    assert_eq!((store.reads.get(), store.written()), (0, 0));
}

/// `count` leaves with `per_leaf` entries each.
fn mapped(store: &Store, count: u64, per_leaf: u64) -> Tree {
    let mut layer = Layer::new();
    for leaf in 0..count {
        for slot in 0..per_leaf {
            layer.set(leaf * 256 + slot, stored_entry(1));
        }
    }
    merged(&Tree::empty(1, TreeShape::VOLUME), &layer, store).0
}

#[test]
fn one_changed_entry_rewrites_one_path() {
    let store = Store::default();
    let tree = mapped(&store, 1000, 3);
    assert_eq!(tree.height, 3);
    store.forget_counts();
    let mut layer = Layer::new();
    layer.set(256 * 700 + 2, stored_entry(2));
    let (_, stats) = merged(&tree, &layer, &store);
    let expected = MergeStats {
        logical_delta: 0,
        pages_written: 3,
        pages_read: 3,
        exact: true,
        pages_lost: 0,
    };
    assert_eq!((stats, store.batches.get()), (expected, 3));
}

#[test]
fn setting_what_is_there_already_writes_nothing() {
    let store = Store::default();
    let tree = mapped(&store, 300, 3);
    let mut layer = Layer::new();
    layer.set_run(256, &[stored_entry(1); 3]);
    layer.fill(256 + 3, 253, Entry::HOLE);
    let (new, stats) = merged(&tree, &layer, &store);
    assert_eq!((new, stats.pages_written), (tree, 0));
}

#[test]
fn reads_of_a_merge_go_out_in_batches() {
    let store = Store::default();
    let tree = mapped(&store, 1024, 1);
    store.forget_counts();
    let mut layer = Layer::new();
    for leaf in 0..1024 {
        layer.set(leaf * 256 + 9, stored_entry(3));
    }
    let (_, stats) = merged(&tree, &layer, &store);
    assert_eq!(
        (stats.pages_read, stats.pages_written),
        (1024 + 4 + 1, 1024 + 4 + 1)
    );
    // 1024 leaves 128 at a time, and the inner pages when they come up.
    assert!(
        store.batches.get() <= 8 + 5,
        "{} batches",
        store.batches.get()
    );
    assert!(store.widest_batch.get() <= 128);
}

#[test]
fn dropping_a_subtree_counts_its_entries_in_batches() {
    let store = Store::default();
    let tree = mapped(&store, 1000, 7);
    store.forget_counts();
    let mut layer = Layer::new();
    layer.fill(100 * 256, 800 * 256, Entry::HOLE);
    let (tree, stats) = merged(&tree, &layer, &store);
    assert_eq!((stats.logical_delta, stats.exact), (-800 * 7, true));
    // The root, and the two pages above leaves that remain in part.
    assert_eq!(stats.pages_written, 3);
    assert_eq!(stats.pages_read, 1 + 4 + 800);
    assert!(store.batches.get() <= 30, "{} batches", store.batches.get());

    let gone = merge_dropping(&tree);
    assert_eq!(gone, Tree::empty(1, TreeShape::VOLUME));
}

#[test]
fn block_status_of_the_first_run_reads_little() {
    let store = Store::default();
    let mut layer = Layer::new();
    for leaf in 0..512 {
        layer.set(leaf * 256, stored_entry(1));
    }
    let (tree, _) = merged(&Tree::empty(1, TreeShape::VOLUME), &layer, &store);
    store.forget_counts();
    let found = runs(&tree, &[], &store, 0, 512 * 256, 1).unwrap();
    assert_eq!((found[0].count, found[0].kind), (1, RunKind::Stored));
    assert!(store.reads.get() <= 8, "{} pages", store.reads.get());

    // Pages under a change are not looked into.
    let mut cover = Layer::new();
    cover.fill(0, 500 * 256, Entry::ZERO);
    store.forget_counts();
    let found = runs(&tree, &[&cover, &layer], &store, 0, 500 * 256, 9).unwrap();
    assert_eq!((found.len(), store.reads.get()), (1, 0));
}

#[test]
fn a_lookup_reads_one_page_a_level() {
    let store = Store::default();
    let tree = mapped(&store, 300, 3);
    store.forget_counts();
    lookup(&tree, &store, 255 * 256, &mut [None; 512]).unwrap();
    // Two leaves under two different parents.
    assert_eq!((store.batches.get(), store.reads.get()), (3, 5));
    store.forget_counts();
    lookup(&tree, &store, 0, &mut [Some(Entry::ZERO); 512]).unwrap();
    lookup(&tree, &store, 1 << 50, &mut [None; 512]).unwrap();
    assert_eq!(store.reads.get(), 0);
}

#[test]
fn pages_that_trees_share_can_be_walked_once() {
    let store = Store::default();
    let tree = mapped(&store, 300, 2);
    let mut layer = Layer::new();
    layer.set(256 * 299, stored_entry(9));
    let (newer, _) = merged(&tree, &layer, &store);
    let mut seen = BTreeSet::new();
    let mut entries = 0;
    let mut reads = Vec::new();
    for tree in [tree, newer] {
        store.forget_counts();
        let mut walker = Walker::new(tree);
        let mut enter = |pointer: &Pointer, _| seen.insert(pointer.entry.segment.0);
        let mut visit =
            |visit: Visit<'_>| entries += u64::from(matches!(visit, Visit::Entry { .. }));
        while !walker.step_if(&store, 20, &mut enter, &mut visit).unwrap() {}
        reads.push(store.reads.get());
    }
    // The second tree differs in a leaf of two entries and the path to it.
    assert_eq!((reads, entries), (vec![300 + 3, 3], 600 + 2));
}
