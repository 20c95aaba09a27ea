//! Trees made anew in steps, against the same in one go.

use super::model::stored_entry;
use super::store::Store;
use crate::map::{Layer, MergeStats, Rewrite, Rewritten, Tree, TreeShape, lookup, merge};

const CHUNKS: u64 = 150_000;

fn tree(store: &Store) -> Tree {
    let mut layer = Layer::new();
    for index in 0..CHUNKS {
        layer.set(index, stored_entry(u32::try_from(index % 7).unwrap()));
    }
    let empty = Tree::empty(16, TreeShape::VOLUME);
    let mut stats = MergeStats::default();
    merge(&empty, &layer, store, &mut store.sink(), &mut stats).unwrap()
}

#[test]
fn a_tree_is_made_anew_in_bounded_steps() {
    let store = Store::default();
    let old = tree(&store);
    let moved = |entry: &_| (*entry == stored_entry(3)).then(|| stored_entry(99));
    for max_pages in [1, 5, 64, 100_000] {
        let mut made = Rewritten::default();
        let mut steps = 0;
        let new = loop {
            steps += 1;
            store.forget_counts();
            let mut sink = store.sink();
            let mut rewrite = Rewrite::new(&store, &mut sink, &moved, &mut made, max_pages);
            let done = rewrite.tree(&old).unwrap();
            assert!(store.reads.get() <= max_pages.max(20) as u64, "{max_pages}");
            if let Some(new) = done {
                break new;
            }
            assert!(steps < 2_000, "every step gets further");
        };
        assert_eq!(steps > 1, max_pages < 1_000, "{max_pages}");
        let mut found = vec![None; 1_000];
        for first in (0..CHUNKS).step_by(1_000) {
            found.fill(None);
            lookup(&new, &store, first, &mut found).unwrap();
            for (index, entry) in (first..).zip(&found) {
                let seed = match index % 7 {
                    3 => 99,
                    other => u32::try_from(other).unwrap(),
                };
                assert_eq!(*entry, Some(stored_entry(seed)), "{max_pages}, {index}");
            }
        }
        // The same once more costs nothing.
        store.forget_counts();
        let mut sink = store.sink();
        let again = Rewrite::new(&store, &mut sink, &moved, &mut made, 1).tree(&old);
        assert_eq!((again.unwrap(), store.reads.get()), (Some(new), 0));
    }
}
