//! The page store: where map trees read their pages and where a checkpoint
//! puts new ones.

use std::{collections::BTreeSet, sync::Arc};

use tessera_dedup::{
    ChunkReader, Entry, EntryKind, Generation, Owner, PlacedPage, ReadError,
    segment::{NewChunk, SegmentRecord, Stream},
};
use tessera_raid::{
    SegmentId,
    device::AlignedBuf,
    layout::{Placement, Slots},
};

use super::engine::Engine;
use crate::{
    error::{EngineError, ErrorKind},
    map::{
        PAGE_BYTES, PageBytes, PageOwner, PageSink, PageSource, Pointer, StoreError,
        StoreErrorKind, Wide,
    },
};

/// Reads pages through the verified, cached reader.
pub(crate) struct Pages<'a>(pub(crate) &'a ChunkReader);

impl PageSource for Pages<'_> {
    fn read(&self, pointers: &[Pointer]) -> Vec<Result<Arc<PageBytes>, StoreError>> {
        let wide = pointers.iter().any(|pointer| pointer.wide.is_some());
        let results = if wide {
            let placed: Vec<PlacedPage> = pointers.iter().filter_map(placed).collect();
            assert_eq!(
                placed.len(),
                pointers.len(),
                "a tree's pointers are all wide or none"
            );
            self.0.read_placed(&placed)
        } else {
            let entries: Vec<Entry> = pointers.iter().map(|pointer| pointer.entry).collect();
            self.0.read_page(&entries)
        };
        results
            .into_iter()
            .map(|result| result.map_err(store_error))
            .collect()
    }
}

fn placed(pointer: &Pointer) -> Option<PlacedPage> {
    pointer.wide.map(|wide| PlacedPage {
        entry: pointer.entry,
        generation: wide.generation,
        placement: Placement {
            layout: wide.layout,
            slots: Slots::Equal(wide.slot),
        },
    })
}

fn store_error(error: ReadError) -> StoreError {
    StoreError::caused_by(StoreErrorKind::Corrupt, error)
}

/// Appends pages to the map stream. Owns the stripe buffers it needs, from the
/// checkpoint's own pool (R23).
pub(crate) struct MapAppender<'a> {
    engine: &'a Engine,
    spare: Vec<AlignedBuf>,
    pub(crate) pages_written: u64,
    evacuating: Arc<BTreeSet<SegmentId>>,
}

impl<'a> MapAppender<'a> {
    pub(crate) fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            spare: Vec::new(),
            pages_written: 0,
            evacuating: Arc::clone(&engine.evacuating.lock()),
        }
    }

    /// Appends one 4 KiB block and says where it went.
    pub(crate) fn append(
        &mut self,
        kind: EntryKind,
        owner: Owner,
        block: &[u8],
    ) -> Result<(Entry, Generation, SegmentRecord), EngineError> {
        let checksum = crc32c::crc32c(block);
        self.refill()?;
        let chunk = NewChunk {
            kind,
            bytes: block,
            checksum,
            logical_bytes: u32::try_from(block.len()).expect("a block is short"),
            fingerprint: None,
            owner,
        };
        let mut state = self.engine.state.lock();
        let sequence = state.sequence;
        let appended = state
            .appender
            .append(Stream::Map, &chunk, &mut self.spare, sequence)
            .map_err(|full| no_space().caused_by(full))?;
        drop(state);
        let record = self
            .engine
            .table
            .record(appended.entry.segment)
            .expect("just written");
        self.pages_written += 1;
        Ok((appended.entry, appended.generation, record))
    }

    /// Appends consecutive blocks that will be read as one extent.
    pub(crate) fn append_run(
        &mut self,
        owner: Owner,
        blocks: &[u8],
    ) -> Result<tessera_dedup::segment::SummaryExtent, EngineError> {
        let count = u16::try_from(blocks.len() / PAGE_BYTES).map_err(|_| no_space())?;
        self.reserve_run(u32::from(count))?;
        let mut extent = tessera_dedup::segment::SummaryExtent::default();
        for (number, block) in (0u64..).zip(blocks.chunks_exact(PAGE_BYTES)) {
            let owner = Owner {
                level: 0,
                index: number,
                ..owner
            };
            let (entry, _, _) = self.append(EntryKind::Raw, owner, block)?;
            if number == 0 {
                extent.segment = entry.segment;
                extent.offset = entry.position;
            }
            extent.blocks += 1;
        }
        Ok(extent)
    }

    pub(crate) fn reserve_run(&mut self, blocks: u32) -> Result<(), EngineError> {
        let reserved = self
            .engine
            .state
            .lock()
            .appender
            .reserve_run(Stream::Map, blocks);
        reserved.map_err(|full| no_space().caused_by(full))
    }

    fn refill(&mut self) -> Result<(), EngineError> {
        while self.spare.len() < 2 {
            let length = self.engine.geometry.stripe_bytes as usize;
            match self.engine.map_buffers.try_take(length) {
                Some(buffer) => self.spare.push(buffer),
                None => {
                    // The buffers are in stripes on their way to the members.
                    self.engine.writer.step()?;
                }
            }
        }
        Ok(())
    }
}

fn no_space() -> EngineError {
    EngineError::new(ErrorKind::NoSpace, "No segment is free for map pages")
}

impl PageSink for MapAppender<'_> {
    fn leaves(&self, page: &Pointer) -> bool {
        self.evacuating.contains(&page.entry.segment)
    }

    fn write(&mut self, owner: PageOwner, page: &PageBytes) -> Result<Pointer, StoreError> {
        let owned = Owner {
            tree: owner.tree,
            level: owner.level + 1,
            index: owner.index,
        };
        let (entry, generation, record) =
            self.append(EntryKind::Page, owned, page).map_err(|error| {
                let kind = match error.kind() {
                    ErrorKind::NoSpace => StoreErrorKind::NoSpace,
                    ErrorKind::Failed => StoreErrorKind::Stopped,
                    _ => StoreErrorKind::Io,
                };
                StoreError::caused_by(kind, error)
            })?;
        self.engine
            .reader
            .remember_page(entry, generation, Arc::new(*page));
        let wide = Wide {
            layout: record.layout,
            slot: record.slot,
            generation,
        };
        Ok(Pointer {
            entry,
            wide: Some(wide),
        })
    }
}
