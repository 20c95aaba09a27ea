//! Differences between trees against the model, and what finding them costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use proptest::prelude::*;
use tessera_dedup::{Entry, EntryKind};

use super::model::{Known, Model, Op, histories, stored_entry};
use super::store::Store;
use crate::map::{
    Differences, INDEX_LIMIT, Layer, MergeStats, Only, PageOwner, Tree, TreeShape, Visit, Walker,
    differences, exchanges, merge,
};

fn merged(tree: &Tree, ops: &[Op], store: &Store) -> Tree {
    let mut layer = Layer::new();
    for op in ops {
        op.apply(&mut layer);
    }
    let mut stats = MergeStats::default();
    merge(tree, &layer, store, &mut store.sink(), &mut stats).unwrap()
}

fn empty() -> Tree {
    Tree::empty(16, TreeShape::VOLUME)
}

/// All differences, found with bounds on each search.
fn found(
    pair: (&Tree, &Tree),
    store: &Store,
    range: Range<u64>,
    ranges: usize,
    pages: usize,
) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let part = differences(pair, store, at..range.end, ranges, pages).unwrap();
        let Differences { ranges: some, end } = part;
        assert!(end > at, "every search gets further");
        assert!(some.len() <= ranges);
        for one in some {
            assert!(one.start >= at && one.start < one.end && one.end <= end);
            match all.last_mut() {
                Some(last) if last.end == one.start => last.end = one.end,
                _ => all.push(one),
            }
        }
        at = end;
    }
    all
}

fn expected(one: &Known, two: &Known, range: Range<u64>) -> Vec<Range<u64>> {
    let mut edges: BTreeSet<u64> = [range.start, range.end].into();
    edges.extend(one.edges(range.start, range.end));
    edges.extend(two.edges(range.start, range.end));
    let zero = |entry: Entry| matches!(entry.kind, EntryKind::Hole | EntryKind::Zero);
    let mut all: Vec<Range<u64>> = Vec::new();
    for pair in edges.into_iter().collect::<Vec<_>>().windows(2) {
        let (a, b) = (one.entry(pair[0]), two.entry(pair[0]));
        if a == b || zero(a) && zero(b) {
            continue;
        }
        match all.last_mut() {
            Some(last) if last.end == pair[0] => last.end = pair[1],
            _ => all.push(pair[0]..pair[1]),
        }
    }
    all
}

fn known(histories: &[&Vec<Op>]) -> Known {
    let ops = histories.iter().copied().flatten().copied().collect();
    Model { ops }.known()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn differences_are_what_changed(
        histories in histories(3, 10),
        bounds in (1_usize..20, 0_usize..40),
        places in (0_u64..70_000, 0_u64..70_000),
    ) {
        let store = Store::default();
        let [a, b, c] = std::array::from_fn(|n| histories.get(n).cloned().unwrap_or_default());
        let first = merged(&empty(), &a, &store);
        let trees = [
            (empty(), known(&[])),
            (first, known(&[&a])),
            (merged(&first, &b, &store), known(&[&a, &b])),
            (merged(&empty(), &c, &store), known(&[&c])),
        ];
        for (one, known_one) in &trees {
            for (two, known_two) in &trees {
                let (ranges, pages) = bounds;
                for range in [0..INDEX_LIMIT, places.0..places.0 + places.1] {
                    let all = found((one, two), &store, range.clone(), ranges, pages);
                    prop_assert_eq!(all, expected(known_one, known_two, range));
                }
            }
        }
    }
}

/// What a tree names: its pages, and how often it names each chunk.
fn names(tree: &Tree, store: &Store) -> BTreeMap<(bool, u32, u32), i64> {
    let mut names = BTreeMap::new();
    let mut walker = Walker::new(*tree);
    while !walker
        .step(store, 7, &mut |visit| match visit {
            Visit::Page { pointer, .. } => {
                let Entry {
                    segment, position, ..
                } = pointer.entry;
                names.insert((true, segment.0, position), 1);
            }
            Visit::Entry { entry, .. } => {
                *names
                    .entry((false, entry.segment.0, entry.position))
                    .or_insert(0) += 1;
            }
            _ => {}
        })
        .unwrap()
    {}
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn exchanges_make_what_one_tree_names_of_what_another_does(
        histories in histories(3, 10),
        max_pages in 1_usize..40,
    ) {
        let store = Store::default();
        let [a, b, c] = std::array::from_fn(|n| histories.get(n).cloned().unwrap_or_default());
        let first = merged(&empty(), &a, &store);
        let second = merged(&first, &b, &store);
        let trees = [empty(), first, second, merged(&empty(), &c, &store)];
        for one in &trees {
            for two in &trees {
                let mut now = names(one, &store);
                let (mut at, mut goes_on) = (0, true);
                while goes_on {
                    let mut see = |comes: bool, only: Only| {
                        let (entry, page) = match only {
                            Only::Page(page) => (page.entry, true),
                            Only::Entry(entry) => (entry, false),
                        };
                        let names = now.entry((page, entry.segment.0, entry.position));
                        let names = names.or_insert(0);
                        *names = match (page, comes) {
                            (true, comes) => i64::from(comes),
                            (false, true) => *names + 1,
                            (false, false) => *names - 1,
                        };
                    };
                    let (next, read) =
                        exchanges((one, two), &store, at, max_pages, &mut see).unwrap();
                    prop_assert!(read <= max_pages);
                    goes_on = next.is_some();
                    at = next.unwrap_or(at);
                }
                now.retain(|_, names| *names != 0);
                prop_assert_eq!(now, names(two, &store));
            }
        }
    }
}

#[test]
fn what_trees_share_is_not_read() {
    let store = Store::default();
    let mut layer = Layer::new();
    for index in 0..100_000 {
        layer.set(index, stored_entry(1));
    }
    let mut stats = MergeStats::default();
    let old = merge(&empty(), &layer, &store, &mut store.sink(), &mut stats).unwrap();
    let mut layer = Layer::new();
    layer.set(77_777, stored_entry(2));
    let new = merge(&old, &layer, &store, &mut store.sink(), &mut stats).unwrap();
    store.forget_counts();
    let none = differences((&old, &old), &store, 0..INDEX_LIMIT, 9, 9).unwrap();
    assert_eq!((none.ranges.len(), store.reads.get()), (0, 0));
    let one = differences((&old, &new), &store, 0..INDEX_LIMIT, 9, 9).unwrap();
    assert_eq!(one.ranges, vec![77_777..77_778; 1]);
    assert_eq!(store.reads.get(), 2 * u64::from(old.height));
}

#[test]
fn a_damaged_page_is_named_and_not_passed_over() {
    let store = Store::default();
    let op = |seed| Op::Run {
        first: 0,
        count: 600,
        seed,
    };
    let old = merged(&empty(), &[op(1)], &store);
    let new = merged(&old, &[op(2)], &store);
    let leaf = PageOwner {
        tree: 16,
        level: 0,
        index: 1,
    };
    store.break_page(&store.pages_of(&new)[&leaf]);
    let error = differences((&old, &new), &store, 0..INDEX_LIMIT, 9, 9).unwrap_err();
    assert_eq!(error.page(), Some(leaf));
}
