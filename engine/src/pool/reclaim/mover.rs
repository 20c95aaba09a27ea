//! Emptying segments: what is live in them is moved, so that they die whole.
//!
//! ```text
//!   plan     survey; choose victims; freeze them; wait; pin a checkpoint and
//!            collect every name of a victim under its roots
//!   move     copy what is named, verified, and remap the names (R21)
//!   pages    have the pages in victims written anew, with what leads to them
//!   finish   a checkpoint, thaw, and a pass that frees what nothing names
//! ```
//! Safety rests on the last step alone: it is the pass of [`super`], which frees
//! only what no root names. Whatever the mover misses, does twice or leaves out
//! costs space.
//!
//! A remap changes no content, so it is not journalled (R21): it is an entry in
//! the volume's active layer, made under the append lock if the chunk's entry is
//! still the one that was copied, and durable with the next checkpoint. Until
//! then replay gives the old entry, and the old segment is there. The copy goes
//! through the stream of clients, so every rule about what a commit covers holds
//! for it as for a client's chunk (R14), also when a hit lands on it.

use std::{collections::BTreeSet, sync::Arc};

use tessera_dedup::Entry;
use tessera_raid::{SegmentId, device::BLOCK_BYTES};

use super::{
    copying::{Marks, Moved, place, remap},
    snapshots::Rewriting,
    survey::{Means, Victim},
};
use crate::{
    api::JobState,
    error::{EngineError, ErrorKind},
    jobs::JobRecord,
    map::{Tree, Visit},
    pool::{
        CheckpointKind,
        engine::Engine,
        pages::Pages,
        roots::Visited,
        roots::{Root, RootKind},
        space::pages_for,
    },
};

/// Memory that remembering one name takes, about.
const BYTES_PER_NAME: u64 = 64;

/// Somebody who names a chunk of a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    /// The volume, or the first of all snapshots that name the chunk.
    pub(super) tree: u64,
    pub(super) index: u64,
    pub(super) entry: Entry,
    pub(super) chunk_bytes: u32,
    pub(super) of_snapshot: bool,
}

/// A page in a victim: any record under it leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageName {
    tree: Tree,
    /// The first record under it.
    index: u64,
}

/// Where a pass stands.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Plan,
    Move(Box<Pass>),
}

#[derive(Debug)]
struct Pass {
    victims: Vec<Victim>,
    /// In the order of their places.
    names: Vec<Name>,
    pages: Vec<PageName>,
    /// Names that have been dealt with.
    done: usize,
    /// Where chunks that snapshots name are now.
    moved: Moved,
    /// Pages that the next checkpoint writes anew.
    touched: usize,
    rewriting: Rewriting,
    /// All snapshots name the new places.
    rewritten: bool,
    /// Free segments when it began.
    free_before: u32,
}

/// What the job remembers between steps. After a crash it begins with a survey:
/// what has been moved is elsewhere, and is not moved again.
#[derive(Debug, Default)]
pub(crate) struct ReclaimWork {
    job: u64,
    stage: Stage,
    /// The window of the next survey.
    window: u32,
    /// The round over all windows has freed something.
    gained: bool,
    /// The last pass over the window has freed nothing: what looks like waste
    /// is what moving itself costs.
    fruitless: bool,
    /// A pass has ended since the last plan.
    passed: bool,
    /// The most free segments at any plan so far, ...
    most_free: u32,
    /// ... and how many passes in a row have not got there.
    without_growth: u32,
}

impl ReclaimWork {
    /// Takes note of what is free at a plan; false when moving leads nowhere:
    /// each pass frees a segment, and what it writes takes one.
    fn is_worth_going_on(&mut self, free: u32) -> bool {
        if free > self.most_free {
            self.most_free = free;
            self.without_growth = 0;
        } else if std::mem::take(&mut self.passed) {
            self.without_growth += 1;
        }
        self.without_growth < PASSES_WITHOUT_GROWTH_MAX
    }
}

/// What a step came to.
enum Progress {
    /// Bytes moved; there is more.
    Moved(u64),
    /// There is nothing left that is worth moving.
    Over,
}

impl Engine {
    /// One step of a reclaim job; how many bytes it moved.
    pub(in crate::pool) fn reclaim_step(
        &self,
        work: &mut Option<ReclaimWork>,
        job: &JobRecord,
    ) -> Result<u64, EngineError> {
        if work.as_ref().is_none_or(|work| work.job != job.id) {
            self.forget_moving(work);
            *work = Some(ReclaimWork {
                job: job.id,
                ..ReclaimWork::default()
            });
        }
        match self.move_step(work.as_mut().expect("set above")) {
            Ok(Progress::Moved(bytes)) => Ok(bytes.max(1)),
            Ok(Progress::Over) => {
                self.end_job(job.id, JobState::Done, "");
                Ok(0)
            }
            Err(error) => {
                self.forget_moving(work);
                if error.kind() != ErrorKind::NoSpace {
                    return Err(error);
                }
                // Trying again would walk everything again for nothing.
                self.end_job(job.id, JobState::Failed, &error.to_string());
                Ok(0)
            }
        }
    }

    /// Lets go of the victims: the job was paused or has ended, or another
    /// begins.
    pub(in crate::pool) fn forget_moving(&self, work: &mut Option<ReclaimWork>) {
        if let Some(ReclaimWork {
            stage: Stage::Move(pass),
            ..
        }) = work.take()
        {
            self.let_go(&pass);
        }
    }

    fn let_go(&self, pass: &Pass) {
        let victims: Vec<SegmentId> = pass.victims.iter().map(|v| v.segment).collect();
        self.table.thaw(&victims);
        *self.evacuating.lock() = Arc::default();
        self.unnamed_copies.lock().clear();
    }

    /// Empties segments in the caller's thread until something is free that was
    /// not. False when there is nothing to win, or something damaged is in the
    /// way: that is not what the caller asked for, and a scrub tells of it.
    ///
    /// Must be called without an epoch guard and without locks.
    ///
    /// # Errors
    /// The pool's failure.
    pub(in crate::pool) fn empty_some_segments(&self) -> Result<bool, EngineError> {
        // After the job's step, if one is under way: it may be all it takes.
        let mut work = self.work.lock();
        let free = self.table.counts().free;
        if !self.moving_may_help() {
            return Ok(false);
        }
        loop {
            let progress = self.move_step(work.reclaim.get_or_insert_default());
            if self.table.counts().free > free {
                return Ok(true);
            }
            match progress {
                Ok(Progress::Moved(_)) => {}
                Ok(Progress::Over) => return Ok(false),
                Err(error) => {
                    self.forget_moving(&mut work.reclaim);
                    self.check_usable()?;
                    tracing::warn!(%error, "Chunks cannot be moved");
                    // Or every write would walk up to there again.
                    self.nothing_to_move();
                    return Ok(false);
                }
            }
        }
    }

    fn move_step(&self, work: &mut ReclaimWork) -> Result<Progress, EngineError> {
        match &mut work.stage {
            Stage::Plan => self.plan(work),
            Stage::Move(pass) if pass.done < pass.names.len() => {
                let (names, bytes, full) =
                    match self.move_some(&pass.names[pass.done..], &mut pass.moved) {
                        Ok((names, bytes)) => (names, bytes, false),
                        Err(error) if error.kind() == ErrorKind::NoSpace => (0, 0, true),
                        Err(error) => return Err(error),
                    };
                pass.done += names;
                if full {
                    // What has been moved may free enough to go on.
                    pass.done = pass.names.len();
                }
                self.jobs.lock().update(work.job, |record| {
                    record.checked += names as u64;
                    record.done_bytes += bytes;
                });
                Ok(Progress::Moved(bytes))
            }
            Stage::Move(pass) if pass.touched < pass.pages.len() => {
                self.touch_some(pass)?;
                Ok(Progress::Moved(0))
            }
            Stage::Move(pass) if !pass.rewritten => {
                let moved = &pass.moved;
                let now = |entry: &Entry| {
                    let (old, new) = moved.get(&place(entry))?;
                    (old == entry).then_some(*new)
                };
                let held = &self.unnamed_copies;
                pass.rewritten = self.rewrite_some(&mut pass.rewriting, &now, held)?;
                Ok(Progress::Moved(0))
            }
            Stage::Move(_) => {
                let Stage::Move(pass) = std::mem::take(&mut work.stage) else {
                    unreachable!("matched above");
                };
                let finished = self.finish_pass(&pass);
                self.let_go(&pass);
                finished?;
                work.fruitless = self.table.counts().free <= pass.free_before;
                work.gained |= !work.fruitless;
                work.passed = true;
                Ok(Progress::Moved(0))
            }
        }
    }

    /// Chooses victims and collects who names them.
    fn plan(&self, work: &mut ReclaimWork) -> Result<Progress, EngineError> {
        if !work.fruitless {
            // What is dead already costs nothing.
            self.reclaim_pass()?;
        }
        let free_before = self.table.counts().free;
        if !work.is_worth_going_on(free_before) {
            self.nothing_to_move();
            return Ok(Progress::Over);
        }
        let reclaim = self.reclaim.lock();
        let sealed = self.sealed();
        self.checkpoint_now(CheckpointKind::Normal)?;
        let survey = self.survey(&self.roots(), &sealed, work.window)?;
        let means = Means {
            room: self.room_for_moving(),
            names: (self.budget.layers as u64 / BYTES_PER_NAME).max(1024),
        };
        let segment_bytes = u64::from(self.geometry.segment_bytes);
        let victims = survey.victims(segment_bytes, means);
        if victims.is_empty() || std::mem::take(&mut work.fruitless) {
            work.window = survey.next.unwrap_or(0);
            // Another round only if this one gave something.
            if survey.next.is_some() || std::mem::take(&mut work.gained) {
                return Ok(Progress::Moved(0));
            }
            drop(reclaim);
            self.nothing_to_move();
            return Ok(Progress::Over);
        }
        let segments: Vec<SegmentId> = victims.iter().map(|victim| victim.segment).collect();
        self.table.freeze(&segments);
        let collected = self.collect(&segments);
        drop(reclaim);
        let (names, pages) = match collected {
            Ok(collected) => collected,
            Err(error) => {
                self.table.thaw(&segments);
                return Err(error);
            }
        };
        let total: u64 = victims.iter().map(|victim| victim.bytes).sum();
        self.jobs.lock().update(work.job, |record| {
            record.total_bytes = record.done_bytes + total;
        });
        tracing::info!(segments = victims.len(), bytes = total, "Emptying segments");
        *self.evacuating.lock() = Arc::new(segments.into_iter().collect());
        work.stage = Stage::Move(Box::new(Pass {
            victims,
            names,
            pages,
            done: 0,
            moved: Moved::new(),
            touched: 0,
            rewriting: Rewriting::default(),
            rewritten: false,
            free_before,
        }));
        Ok(Progress::Moved(0))
    }

    /// Bytes that can be moved without touching what checkpoints need.
    pub(in crate::pool) fn room_for_moving(&self) -> u64 {
        let kept = self
            .reserve_segments()
            .saturating_sub(self.moving_segments());
        let free = u64::from(self.table.counts().free).saturating_sub(kept);
        let pages = {
            let state = self.state.lock();
            state.active_pages + state.frozen_pages
        };
        (free * self.usable_segment_bytes()).saturating_sub(pages * BLOCK_BYTES as u64)
    }

    pub(in crate::pool) fn make_room_for_moving(&self, bytes: u64) -> Result<(), EngineError> {
        if self.room_for_moving() >= bytes {
            return Ok(());
        }
        // A checkpoint turns the worst case of the layers into the truth.
        if self.state.lock().active_pages > 0 {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        if self.room_for_moving() >= bytes {
            return Ok(());
        }
        let message = "No segment is free to move chunks to";
        Err(EngineError::new(ErrorKind::NoSpace, message))
    }

    /// Every name of a chunk and every page in the given segments.
    fn collect(&self, segments: &[SegmentId]) -> Result<(Vec<Name>, Vec<PageName>), EngineError> {
        self.wait_for_operations()?;
        self.checkpoint_now(CheckpointKind::Normal)?;
        let roots = self.roots();
        let wanted: BTreeSet<SegmentId> = segments.iter().copied().collect();
        let (mut names, mut pages) = (Vec::new(), Vec::new());
        // All snapshots are one owner: what has moved has moved for all.
        let mut of_snapshots = Visited::default();
        let mut named_by_snapshots = BTreeSet::new();
        for Root { kind, tree } in roots.all() {
            let Some((id, chunk_bytes)) = self.owner_of(kind) else {
                continue;
            };
            let of_snapshot = matches!(kind, RootKind::Snapshot(_));
            // Each volume has names of its own in pages that it shares.
            let visited = match of_snapshot {
                true => &mut of_snapshots,
                false => &mut Visited::default(),
            };
            self.walk_names(tree, visited, &mut |visit| match visit {
                Visit::Page {
                    pointer,
                    level,
                    index,
                } if wanted.contains(&pointer.entry.segment) && !of_snapshot => {
                    pages.push(PageName {
                        tree,
                        index: tree.shape.first_record(level, index),
                    })
                }
                Visit::Entry { index, entry }
                    if wanted.contains(&entry.segment)
                        && (!of_snapshot || named_by_snapshots.insert(place(&entry))) =>
                {
                    names.push(Name {
                        tree: id,
                        index,
                        entry,
                        chunk_bytes,
                        of_snapshot,
                    });
                }
                _ => {}
            })?;
        }
        names.sort_unstable_by_key(|name| {
            let Entry {
                segment, position, ..
            } = name.entry;
            (segment, position, name.tree, name.index)
        });
        Ok((names, pages))
    }

    /// The id under which a root's names are changed, and its chunk size. `None`
    /// for what has been deleted meanwhile.
    fn owner_of(&self, kind: RootKind) -> Option<(u64, u32)> {
        let volumes = self.volumes.read();
        match kind {
            RootKind::Table => Some((0, 0)),
            RootKind::Volume(id) => Some((id, volumes.by_id.get(&id)?.chunk_bytes)),
            RootKind::Snapshot(id) => Some((id, volumes.snapshots.get(&id)?.disk.chunk_bytes)),
        }
    }

    /// Has some of the pages in victims written anew by the next checkpoint.
    fn touch_some(&self, pass: &mut Pass) -> Result<(), EngineError> {
        let end = pass.pages.len().min(pass.touched + TOUCHES_PER_STEP);
        for page in &pass.pages[pass.touched..end] {
            self.touch(page)?;
        }
        pass.touched = end;
        if end.is_multiple_of(PAGES_PER_CHECKPOINT) {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        Ok(())
    }

    /// Has the summaries that lie in victims written anew by the next
    /// checkpoint; then frees what is dead.
    fn finish_pass(&self, pass: &Pass) -> Result<(), EngineError> {
        let victims: BTreeSet<SegmentId> = pass.victims.iter().map(|v| v.segment).collect();
        let mut moved = Vec::new();
        for (id, record) in self.table.live() {
            let holder = record.summary.segment;
            if record.summary.blocks > 0 && holder != id && victims.contains(&holder) {
                moved.extend(self.read_summary(id, &record));
            }
        }
        self.state.lock().recovered.extend(moved);
        self.checkpoint_now(CheckpointKind::Normal)?;
        self.unnamed_copies.lock().clear();
        let _reclaim = self.reclaim.lock();
        self.reclaim_dead()?;
        self.finish_releases()
    }

    /// Puts an edit that changes nothing where it leads a checkpoint to a page.
    fn touch(&self, page: &PageName) -> Result<(), EngineError> {
        let shape = page.tree.shape;
        if !shape.holds_entries() {
            return self.touch_table(page);
        }
        let Some(volume) = self.volumes.read().by_id.get(&page.tree.id).cloned() else {
            return Ok(());
        };
        let _guard = self.epochs.enter();
        let key = (volume.id, page.index);
        let marks = Marks::new(self, [key].into_iter());
        let entry = volume.entries_at(&Pages(&self.reader), [page.index].into_iter())?[0];
        let mut state = self.state.lock();
        if marks.holds(&state, key) && !volume.is_deleted() {
            remap(&volume, page.index, entry);
            state.active_pages += pages_for(1);
        }
        drop(state);
        Ok(())
    }

    fn touch_table(&self, page: &PageName) -> Result<(), EngineError> {
        let roots = self.roots();
        let tree = page.tree.id;
        if tree == roots.page.segments.id {
            let id = u32::try_from(page.index).map_err(|_| {
                EngineError::damaged("The segment table has a page beyond every segment")
            })?;
            self.table
                .mark_dirty(&[SegmentId(id.min(self.table.len() - 1))]);
        } else if tree == roots.page.jobs.id {
            self.jobs.lock().rewrite_all();
        } else if tree == roots.page.catalogue.id {
            // Its pages hold few records: all of them are written anew.
            for volume in self.volumes.read().by_id.values() {
                volume.state.write().record_changed = true;
            }
        } else if tree == roots.page.snapshots.id {
            let mut state = self.state.lock();
            let volumes = self.volumes.read();
            if let Some((_, first)) = volumes.snapshots.range(page.index..).next() {
                state.new_snapshots.push(Arc::clone(first));
            }
        }
        Ok(())
    }
}

/// Passes in a row after which no more is free than ever before. Clients may
/// take what one or two of them free; what all of them free, the job itself
/// writes, or somebody who will have it freed again when space runs short.
const PASSES_WITHOUT_GROWTH_MAX: u32 = 16;

/// Pages that one step has written anew.
const TOUCHES_PER_STEP: usize = 256;

/// Pages written anew with one checkpoint.
const PAGES_PER_CHECKPOINT: usize = 4096;
