//! Entry points for fuzzing: any bytes give an answer or an error, and what is
//! accepted is encoded to the same meaning again. Not part of the crate's
//! interface.

use std::sync::Arc;

use tessera_dedup::segment::{SEGMENT_RECORD_BYTES, SegmentRecord};

use crate::{
    catalogue::{VOLUME_RECORD_BYTES, VolumeRecord},
    journal::{Records, batch},
    map::{
        PAGE_BYTES, PageBytes, PageSource, Pointer, StoreError, StoreErrorKind, TREE_BYTES, Tree,
        Walker,
    },
    root::{EngineRecord, RootPage},
    snapshot::{SNAPSHOT_RECORD_BYTES, SnapshotRecord},
};

/// Bytes as a whole batch and its records, and as the records of a batch.
pub fn journal(bytes: &[u8]) {
    if let Some(batch) = batch::decode(bytes) {
        let (again, checksum) = batch::encode(&batch.header, &[&batch.payload]);
        let decoded = batch::decode(&again).expect("what is accepted can be written");
        assert_eq!((decoded.header, decoded.checksum), (batch.header, checksum));
        records(&batch.payload);
    }
    records(bytes);
}

fn records(bytes: &[u8]) {
    let items = Records::new(bytes);
    // Each takes at least its header, so this many are all.
    let most = bytes.len() / 8 + 1;
    assert!(
        items.take(most + 1).count() <= most,
        "records come to an end"
    );
}

/// Steps of a walk: a tree of garbage has no end worth waiting for.
const STEPS: usize = 8;
const PAGES_PER_STEP: usize = 32;

/// Bytes as a tree and its pages: the first 48 are the tree, and a pointer's
/// position chooses one of the pages behind them.
pub fn map(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<TREE_BYTES>() else {
        return;
    };
    let (pages, _) = rest.as_chunks::<PAGE_BYTES>();
    let Some(tree) = Tree::decode(head) else {
        return;
    };
    assert_eq!(tree.encode(), *head, "a tree is encoded in one way");
    let source = Garbage { pages };
    let mut walker = Walker::new(tree);
    for _ in 0..STEPS {
        if matches!(walker.step(&source, PAGES_PER_STEP, &mut |_| {}), Ok(true)) {
            break;
        }
    }
}

struct Garbage<'a> {
    pages: &'a [PageBytes],
}

impl PageSource for Garbage<'_> {
    fn read(&self, pointers: &[Pointer]) -> Vec<Result<Arc<PageBytes>, StoreError>> {
        let page = |pointer: &Pointer| {
            let number = pointer.entry.position as usize / PAGE_BYTES; // below 2^12
            let lost = || StoreError::new(StoreErrorKind::Corrupt);
            let chosen = number.checked_rem(self.pages.len()).ok_or_else(lost)?;
            Ok(Arc::new(self.pages[chosen]))
        };
        pointers.iter().map(page).collect()
    }
}

/// Bytes as an engine record, a root page, and the records of a volume, a
/// snapshot and a segment.
pub fn root(bytes: &[u8]) {
    if let Some(record) = EngineRecord::decode(bytes) {
        let again = EngineRecord::decode(&record.encode());
        assert_eq!(again, Some(record), "what is accepted can be written");
    }
    if let Some(page) = bytes.first_chunk::<PAGE_BYTES>().and_then(RootPage::decode) {
        let again = RootPage::decode(&page.encode());
        assert_eq!(again, Some(page), "what is accepted can be written");
    }
    if let Some(bytes) = bytes.first_chunk::<VOLUME_RECORD_BYTES>()
        && let Some(record) = VolumeRecord::decode(bytes)
    {
        assert_eq!(
            record.encode(),
            *bytes,
            "a volume's record is encoded in one way"
        );
    }
    if let Some(bytes) = bytes.first_chunk::<SNAPSHOT_RECORD_BYTES>()
        && let Some(record) = SnapshotRecord::decode(bytes)
    {
        assert_eq!(
            record.encode(),
            *bytes,
            "a snapshot's record is encoded in one way"
        );
    }
    if let Some(bytes) = bytes.first_chunk::<SEGMENT_RECORD_BYTES>()
        && let Some(record) = SegmentRecord::decode(bytes)
    {
        assert_eq!(
            record.encode(),
            *bytes,
            "a segment's record is encoded in one way"
        );
    }
}
