//! Saying exactly what is lost: which bytes of which volumes.
//!
//! Two questions have one answer. A scrub has places that no copy verifies of,
//! and asks who names them. A pool with more failed members than its layout
//! survives asks which of all the places that maps name can still be read; for
//! that nothing but maps is read, because the layout tells where data lies.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringTreemap;
use tessera_dedup::Entry;
use tessera_raid::{
    MemberSet, MemberState, SegmentId,
    device::{AlignedBuf, BLOCK_BYTES},
};

use super::{
    CheckpointKind,
    engine::Engine,
    pages::Pages,
    roots::{RootKind, place},
    volume::Volume,
    walk::{Found, TreesWalk},
};
use crate::{
    api::{LossReport, LostRange, VolumeLoss},
    error::EngineError,
    jobs::JobRecord,
    map::{PageOwner, Pointer, Tree, Visit, Walker},
};

const PAGES_PER_STEP: usize = 256;
/// Ranges told of each volume; more make the report incomplete.
const RANGES_MAX: usize = 1000;

/// Where things are lost: what to ask of each pointer.
trait Lost {
    fn is_lost(&mut self, entry: &Entry) -> bool;
}

/// Places that a scrub found.
#[derive(Debug)]
struct Places {
    wanted: BTreeSet<(SegmentId, u32)>,
    /// Those that something names.
    named: BTreeSet<(SegmentId, u32)>,
}

impl Lost for Places {
    fn is_lost(&mut self, entry: &Entry) -> bool {
        let place = (entry.segment, entry.position);
        let lost = self.wanted.contains(&place);
        if lost {
            self.named.insert(place);
        }
        lost
    }
}

/// Places whose members are gone.
struct Gone<'a> {
    engine: &'a Engine,
    failed: MemberSet,
}

impl Lost for Gone<'_> {
    fn is_lost(&mut self, entry: &Entry) -> bool {
        let array = &self.engine.array;
        let Some(record) = self.engine.table.record(entry.segment) else {
            return true;
        };
        let Some(layout) = array.layout(record.layout) else {
            return true;
        };
        let (stripe, unit) = (layout.stripe_data_bytes(), layout.stripe_unit_bytes);
        let first = entry.position / unit;
        let last = (entry.position + entry.stored.max(1) - 1) / unit;
        let per_stripe = stripe / unit;
        (first..=last).any(|number| {
            let (stripe, within) = (number / per_stripe, number % per_stripe);
            layout
                .reconstructions(stripe, within, self.failed)
                .is_empty()
        })
    }
}

/// Chunks of one volume that are lost, in order and joined.
#[derive(Debug, Default)]
struct Ranges {
    chunks: Vec<(u64, u64)>,
    /// Pages that could not be read.
    pages: u64,
    complete: bool,
}

impl Ranges {
    fn add(&mut self, first: u64, count: u64) {
        let full = self.chunks.len() >= RANGES_MAX;
        match self.chunks.last_mut() {
            Some((start, length)) if start.saturating_add(*length) >= first => {
                // A page that is visited again may begin before what was last.
                let end = start
                    .saturating_add(*length)
                    .max(first.saturating_add(count));
                *start = (*start).min(first);
                *length = end - *start;
            }
            _ if full => self.complete = false,
            _ => self.chunks.push((first, count)),
        }
    }
}

impl Engine {
    /// What of all volumes cannot be read, as of the newest checkpoint.
    pub(crate) fn losses(&self) -> Result<LossReport, EngineError> {
        let mut failed: MemberSet = self
            .array
            .status()
            .members
            .iter()
            .filter(|member| member.state != MemberState::Online)
            .map(|member| member.index)
            .collect();
        if self.array.status().stopped.is_some() {
            // Of those that the pool cannot do without none is ever recorded
            // as failed (R4): ask them.
            for member in self.array.journal_members() {
                let block = AlignedBuf::zeroed(BLOCK_BYTES);
                if self.array.journal_read(member, 0, block).is_err() {
                    failed.insert(member);
                }
            }
        }
        failed = failed.intersection(self.array.current_layout().member_set());
        let mut gone = Gone {
            engine: self,
            failed,
        };
        let _no_reclaim = self.reclaim.lock();
        let mut report = LossReport {
            volumes: Vec::new(),
            complete: true,
        };
        let mut whole = RoaringTreemap::new();
        for (name, chunk_bytes, size_bytes, tree) in self.volume_trees() {
            let ranges = self.lost_ranges(tree, &mut whole, &mut gone);
            if ranges.chunks.is_empty() {
                continue;
            }
            report.complete &= ranges.complete;
            let ranges: Vec<LostRange> = ranges
                .chunks
                .iter()
                .filter_map(|(first, count)| {
                    let offset = first.saturating_mul(chunk_bytes);
                    let end = first.saturating_add(*count).saturating_mul(chunk_bytes);
                    let length = end.min(size_bytes).checked_sub(offset)?;
                    (length > 0).then_some(LostRange { offset, length })
                })
                .collect();
            report.volumes.push(VolumeLoss {
                volume: name,
                bytes: ranges.iter().map(|range| range.length).sum(),
                ranges,
            });
        }
        Ok(report)
    }

    /// Of volumes and of snapshots: name, bytes of a chunk, size, map.
    fn volume_trees(&self) -> Vec<(String, u64, u64, Tree)> {
        let volumes = self.volumes.read();
        let mut trees = Vec::new();
        for (name, volume) in &volumes.by_name {
            let mut push = |name: String, of: &Volume| {
                let state = of.state.read();
                let chunk_bytes = u64::from(of.chunk_bytes);
                trees.push((name, chunk_bytes, state.size_bytes, state.view.tree));
            };
            push(name.clone(), volume);
            for (snapshot, of) in volumes.snapshots_of.get(&volume.id).into_iter().flatten() {
                push(format!("{name}@{snapshot}"), &of.disk);
            }
        }
        trees
    }

    /// The caller keeps the tree's segments from being freed. `whole` has the
    /// leaves that were looked into for another tree and have lost nothing.
    fn lost_ranges(&self, tree: Tree, whole: &mut RoaringTreemap, lost: &mut dyn Lost) -> Ranges {
        let pages = Pages(&self.reader);
        let mut walker = Walker::new(tree);
        let mut ranges = Ranges {
            complete: true,
            ..Ranges::default()
        };
        // Looked into in this walk; a leaf leaves it again with its first loss.
        let mut seen = RoaringTreemap::new();
        let mut leaf = None;
        loop {
            let mut enter = |pointer: &Pointer, owner: PageOwner| {
                owner.level > 0 || !whole.contains(place(pointer))
            };
            let step = walker.step_if(&pages, PAGES_PER_STEP, &mut enter, &mut |visit| {
                match visit {
                    Visit::Entry { index, entry } if lost.is_lost(&entry) => ranges.add(index, 1),
                    Visit::Lost { first, count } => ranges.add(first, count),
                    Visit::Page {
                        pointer,
                        level,
                        index,
                    } => {
                        leaf = (level == 0).then(|| place(&pointer));
                        if !lost.is_lost(&pointer.entry) {
                            seen.extend(leaf);
                            return;
                        }
                        // It was read from a cache, and will not be again.
                        let span = tree.shape.capacity(level + 1);
                        ranges.add(index.saturating_mul(span), span);
                    }
                    Visit::Entry { .. } | Visit::Record { .. } => return,
                }
                if let Some(leaf) = leaf {
                    seen.remove(leaf);
                }
            });
            match step {
                Ok(true) => {
                    *whole |= seen;
                    return ranges;
                }
                Ok(false) => {}
                Err(error) => match error.page() {
                    Some(PageOwner { level, index, .. }) => {
                        let span = tree.shape.capacity(level.saturating_add(1));
                        ranges.pages += 1;
                        ranges.add(index.saturating_mul(span), span);
                    }
                    None => {
                        ranges.complete = false;
                        return ranges;
                    }
                },
            }
        }
    }
}

/// Finding out who names the places that a scrub found damaged, step by step.
#[derive(Debug)]
pub(crate) struct Naming {
    job: u64,
    walk: TreesWalk,
    places: Places,
    by_root: BTreeMap<RootKind, Ranges>,
}

impl Naming {
    pub(crate) fn is_of(&self, job: u64) -> bool {
        self.job == job
    }
}

impl Engine {
    /// Begins to turn the places that a scrub found damaged into sentences
    /// about volumes. Those that nothing names are no loss.
    pub(crate) fn begin_naming(&self, job: &JobRecord) -> Result<Naming, EngineError> {
        if !self.read_only {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        Ok(Naming {
            job: job.id,
            walk: TreesWalk::default(),
            places: Places {
                wanted: job.damaged.iter().copied().collect(),
                named: BTreeSet::new(),
            },
            by_root: BTreeMap::new(),
        })
    }

    /// One step of it; true when all is named.
    pub(crate) fn naming_step(&self, naming: &mut Naming) -> bool {
        let Naming {
            walk,
            places,
            by_root,
            ..
        } = naming;
        self.walk_trees(walk, &mut |root, found| {
            let span_of = |level: u8| root.tree.shape.capacity(level.saturating_add(1));
            let (first, count, page) = match found {
                Found::Visit(Visit::Entry { index, entry }) if places.is_lost(&entry) => {
                    (index, 1, false)
                }
                Found::Visit(Visit::Lost { first, count }) => (first, count, false),
                Found::Visit(Visit::Page {
                    pointer,
                    level,
                    index,
                }) if places.is_lost(&pointer.entry) => {
                    // It was read from a cache, and will not be again.
                    let span = span_of(level);
                    (index.saturating_mul(span), span, false)
                }
                Found::Damaged(error) => match error.page() {
                    Some(PageOwner { level, index, .. }) => {
                        let span = span_of(level);
                        (index.saturating_mul(span), span, true)
                    }
                    None => return false,
                },
                Found::Visit(_) => return false,
            };
            if root.kind != RootKind::Table {
                let ranges = by_root.entry(root.kind).or_default();
                ranges.pages += u64::from(page);
                ranges.add(first, count);
            }
            true
        })
    }

    /// Puts what was named into the job.
    pub(crate) fn finish_naming(&self, job: &JobRecord, naming: Naming) {
        let mut sentences = Vec::new();
        let mut pages = 0;
        let mut by_root = naming.by_root;
        for (kind, name, chunk_bytes) in self.names_of_roots() {
            let Some(ranges) = by_root.remove(&kind) else {
                continue;
            };
            pages += ranges.pages;
            for (first, count) in ranges.chunks {
                let offset = first.saturating_mul(chunk_bytes);
                let length = count.saturating_mul(chunk_bytes);
                sentences.push(format!(
                    "Volume {name}: {length} bytes at {offset} are lost"
                ));
            }
        }
        let all_known = job.damaged.len() as u64 == job.lost;
        let named = naming.places.named.len() as u64 + pages;
        if !all_known {
            let more = job.lost.saturating_sub(job.damaged.len() as u64);
            sentences.push(format!("{more} more damaged places were not looked up"));
        }
        let mut jobs = self.jobs.lock();
        // What an ended scrub counted stays; this names what is left of it.
        if all_known && job.is_active() {
            jobs.update(job.id, |record| record.lost = named);
        }
        jobs.set_losses(job.id, sentences);
    }

    /// Volumes and snapshots by name, with the bytes of their chunks.
    fn names_of_roots(&self) -> Vec<(RootKind, String, u64)> {
        let volumes = self.volumes.read();
        let mut names = Vec::new();
        for (name, volume) in &volumes.by_name {
            let chunk_bytes = u64::from(volume.chunk_bytes);
            names.push((RootKind::Volume(volume.id), name.clone(), chunk_bytes));
            for (snapshot, of) in volumes.snapshots_of.get(&volume.id).into_iter().flatten() {
                let full = format!("{name}@{snapshot}");
                names.push((RootKind::Snapshot(of.id), full, chunk_bytes));
            }
        }
        names
    }

    /// Names at once what ended scrubs found lost, where no job thread will.
    pub(crate) fn name_for_a_look(&self) {
        if !self.read_only {
            return;
        }
        loop {
            let unnamed = self.jobs.lock().unnamed().cloned();
            let Some(job) = unnamed else { return };
            let Ok(mut naming) = self.begin_naming(&job) else {
                return;
            };
            while !self.naming_step(&mut naming) {}
            self.finish_naming(&job, naming);
        }
    }
}
