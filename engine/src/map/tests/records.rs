//! Tables of records: the segment table and the catalogue.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::store::Store;
use crate::map::{
    MapError, MergeStats, Tree, TreeShape, for_each_record, lookup_record, merge_records,
};

fn all(tree: &Tree, store: &Store) -> Vec<(u64, Vec<u8>)> {
    let mut records = Vec::new();
    for_each_record::<MapError>(tree, store, |index, bytes| {
        records.push((index, bytes.to_vec()));
        Ok(())
    })
    .unwrap();
    records
}

fn check_table(shape: TreeShape, batches: Vec<Vec<(u64, u8)>>) {
    let store = Store::default();
    let mut tree = Tree::empty(2, shape);
    let mut model: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for batch in batches {
        let changes: BTreeMap<u64, Vec<u8>> = batch
            .into_iter()
            .map(|(index, byte)| (index, vec![byte & 3; shape.record_bytes]))
            .collect();
        let mut stats = MergeStats::default();
        let written = store.written();
        tree = merge_records(&tree, &changes, &store, &mut store.sink(), &mut stats).unwrap();
        assert_eq!(Tree::decode(&tree.encode()), Some(tree));
        let before = i64::try_from(model.len()).unwrap();
        for (index, record) in changes {
            if record[0] == 0 {
                model.remove(&index);
                assert_eq!(lookup_record(&tree, &store, index).unwrap(), None);
            } else {
                assert_eq!(
                    lookup_record(&tree, &store, index).unwrap().as_ref(),
                    Some(&record)
                );
                model.insert(index, record);
            }
        }
        assert_eq!(
            stats.logical_delta,
            i64::try_from(model.len()).unwrap() - before
        );
        assert_eq!(stats.pages_written, store.written() - written);
        assert_eq!(tree.is_empty(), model.is_empty());
        assert!(all(&tree, &store).into_iter().eq(model.clone()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn tables_hold_what_was_put_in(
        batches in proptest::collection::vec(
            proptest::collection::vec((prop_oneof![0u64..200, 0u64..100_000], any::<u8>()), 0..60),
            1..6,
        ),
    ) {
        check_table(TreeShape::SEGMENT_TABLE, batches.clone());
        check_table(TreeShape::CATALOGUE, batches);
    }
}

#[test]
fn a_visitor_stops_the_visit_with_its_own_error() {
    #[derive(Debug)]
    enum Mine {
        Stop(u64),
        Map,
    }
    impl From<MapError> for Mine {
        fn from(_: MapError) -> Self {
            Self::Map
        }
    }
    let store = Store::default();
    let changes = (0..500).map(|index| (index, vec![1; 256])).collect();
    let tree = Tree::empty(2, TreeShape::CATALOGUE);
    let mut stats = MergeStats::default();
    let tree = merge_records(&tree, &changes, &store, &mut store.sink(), &mut stats).unwrap();
    let mut visited = 0;
    let stopped = for_each_record(&tree, &store, |index, _| {
        visited += 1;
        if index == 20 {
            Err(Mine::Stop(index))
        } else {
            Ok(())
        }
    });
    assert!(matches!(stopped, Err(Mine::Stop(20))));
    assert_eq!(visited, 21);
}

#[test]
fn a_record_beyond_the_limit_is_refused() {
    let store = Store::default();
    let changes = BTreeMap::from([(1 << 60, vec![1; 64])]);
    let mut stats = MergeStats::default();
    let tree = Tree::empty(2, TreeShape::SEGMENT_TABLE);
    let refused = merge_records(&tree, &changes, &store, &mut store.sink(), &mut stats);
    assert!(matches!(refused, Err(MapError::IndexTooLarge { tree: 2, index }) if index == 1 << 60));
    assert_eq!(store.written(), 0);
}
