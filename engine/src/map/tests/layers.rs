//! Layers: newest wins, for points and fills alike.

use proptest::prelude::*;
use tessera_dedup::Entry;

use super::model::{Known, Model, Op, entry_for, histories, stored_entry};
use crate::map::{Change, Layer};

fn layer_of(ops: &[Op]) -> Layer {
    let mut layer = Layer::new();
    for op in ops {
        op.apply(&mut layer);
    }
    layer
}

fn check_changes(layer: &Layer, known: &Known, from: u64) {
    let mut at = from;
    for change in layer.changes_from(from) {
        assert!(change.first() >= at && change.end() > change.first());
        // Nothing was said between this change and the one before.
        for index in known
            .edges(at, change.first())
            .chain((at < change.first()).then_some(at))
        {
            assert_eq!(known.get(index), None, "{index} is missing");
        }
        for index in known
            .edges(change.first(), change.end())
            .chain([change.first()])
        {
            assert_eq!(known.get(index), Some(change.entry()), "at {index}");
        }
        at = change.end();
    }
    for index in known.edges(at, u64::MAX).chain([at]) {
        assert_eq!(known.get(index), None, "{index} is missing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_layer_says_what_was_done_last(history in histories(1, 40)) {
        let model = Model { ops: history.concat() };
        let layer = layer_of(&model.ops);
        let known = model.known();
        for index in known.telling() {
            prop_assert_eq!(layer.get(index), known.get(index), "at {}", index);
            let next = layer.next_change(index);
            prop_assert_eq!(next.filter(|next| next.first() == index).map(|next| next.entry()), known.get(index));
        }
        for index in known.telling().into_iter().step_by(97) {
            let mut out = [None; 300];
            out[7] = Some(Entry::ZERO);
            layer.lookup(index, &mut out);
            for (at, slot) in (index..).zip(out) {
                let said = if at == index + 7 { Some(Entry::ZERO) } else { known.get(at) };
                prop_assert_eq!(slot, said, "at {}", at);
            }
            check_changes(&layer, &known, index);
        }
        check_changes(&layer, &known, 0);
        let points = layer.changes_from(0).filter(|c| matches!(c, Change::Point { .. })).count();
        prop_assert_eq!(points, layer.points());
    }

    #[test]
    fn absorbing_a_newer_layer_is_doing_its_changes(history in histories(3, 15)) {
        let model = Model { ops: history.concat() };
        let mut layer = Layer::new();
        for ops in &history {
            layer.absorb(&layer_of(ops));
        }
        check_changes(&layer, &model.known(), 0);
    }
}

#[test]
fn a_layer_without_changes_says_nothing() {
    let mut layer = Layer::new();
    assert!(layer.is_empty());
    layer.fill(5, 0, Entry::HOLE);
    layer.set_run(5, &[]);
    assert!(layer.is_empty() && layer.memory_bytes() == 0);
    assert_eq!((layer.get(5), layer.next_change(0)), (None, None));
}

#[test]
fn neighbouring_fills_of_one_kind_become_one() {
    let mut layer = Layer::new();
    for index in (0..1000).rev().step_by(2).chain((0..1000).step_by(2)) {
        layer.fill(index, 1, Entry::HOLE);
    }
    assert_eq!(layer.fills(), 1);
    let whole = Change::Fill {
        first: 0,
        count: 1000,
        entry: Entry::HOLE,
    };
    assert_eq!(layer.next_change(0), Some(whole));
}

#[test]
fn changes_take_few_bytes_in_order_and_at_random() {
    let mut ordered = Layer::new();
    let mut random = Layer::new();
    let mut runs = Layer::new();
    let count = 1 << 16;
    let mut place = 1u64;
    for index in 0..count {
        ordered.set(index, entry_for(1, index));
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        random.set(place >> 28, entry_for(1, index));
        if index % 64 == 0 {
            let entries: Vec<Entry> = (index..index + 64).map(|i| entry_for(2, i)).collect();
            runs.set_run((place >> 34) * 64, &entries);
        }
    }
    let per_point = |layer: &Layer| layer.memory_bytes() / layer.points();
    assert!(
        per_point(&ordered) <= 26,
        "{} bytes in order",
        per_point(&ordered)
    );
    assert!(
        per_point(&random) <= 45,
        "{} bytes at random",
        per_point(&random)
    );
    assert!(per_point(&runs) <= 45, "{} bytes in runs", per_point(&runs));
}

#[test]
fn removed_points_give_their_memory_back() {
    let mut layer = Layer::new();
    for index in 0..100_000 {
        layer.set(index * 3, entry_for(1, index));
    }
    let full = layer.memory_bytes();
    // Leave one point in a hundred.
    for index in 0..1000 {
        layer.fill(index * 300 + 1, 299, Entry::HOLE);
    }
    assert_eq!(layer.points(), 1000);
    assert!(
        layer.memory_bytes() < full / 10,
        "{} of {full}",
        layer.memory_bytes()
    );
    layer.fill(0, 1 << 40, Entry::ZERO);
    assert_eq!((layer.points(), layer.fills()), (0, 1));
    assert!(layer.memory_bytes() < 200);
}

#[test]
#[should_panic(expected = "stores nothing")]
fn a_fill_with_a_stored_entry_is_a_broken_invariant() {
    Layer::new().fill(0, 2, stored_entry(1));
}

#[test]
#[should_panic(expected = "beyond every volume")]
fn an_index_beyond_the_limit_is_a_broken_invariant() {
    Layer::new().set(u64::MAX - 1, Entry::HOLE);
}
