//! What changed between two views: block status for incremental copies, and
//! `tessera snapshot diff`.
//!
//! Pages are compared by walking both maps and passing over what they share;
//! layers that only one of the views has are taken at their word. So the answer
//! is an upper bound: every byte that reads differently is in it, and what was
//! written with the bytes that were there before may be in it as well.

use std::{ops::Range, sync::Arc};

use super::{engine::Engine, pages::Pages, view::View, volume::Volume};
use crate::{
    api::{ChangedRange, SnapshotDiff},
    disk::{ChangeExtent, DiskError},
    error::{EngineError, ErrorKind},
    map::{self, Differences, Layer},
    snapshot::split_name,
};

/// Pages read for one answer: some milliseconds, for which an operation in
/// flight keeps freed segments from being used again.
const PAGES_MAX: usize = 512;

/// Ranges of one answer to [`Engine::snapshot_diff`]'s own steps.
const RANGES_PER_STEP: usize = 4096;

/// Ranges that a layer changes, as far as there is room.
fn layered(layer: &Layer, window: &mut Range<u64>, max: usize, out: &mut Vec<Range<u64>>) {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for change in layer.changes_from(window.start) {
        let (first, end) = (change.first(), change.end().min(window.end));
        if first >= window.end {
            break;
        }
        let full = ranges.len() == max;
        match ranges.last_mut() {
            Some(last) if last.end == first => last.end = end,
            _ if full => {
                window.end = first;
                break;
            }
            _ => ranges.push(first..end),
        }
    }
    out.extend(ranges);
}

/// What is different between two volumes or snapshots within a range of
/// chunks. The caller holds an epoch guard.
fn changed(
    engine: &Engine,
    (old, new): (&Volume, &Volume),
    range: Range<u64>,
    max: usize,
) -> Result<Differences, EngineError> {
    let mut window = range;
    let mut ranges = Vec::new();
    let view_of = |volume: &Volume, window: &mut Range<u64>, ranges: &mut Vec<Range<u64>>| {
        let state = volume.state.read();
        layered(&state.active, window, max, ranges);
        state.view.clone()
    };
    let views: [View; 2] = [
        view_of(old, &mut window, &mut ranges),
        view_of(new, &mut window, &mut ranges),
    ];
    let [one, two] = &views;
    let of = |view: &View| (view.tree.root, view.tree.height);
    // Over the same pages lie the same layers, up to where the views part.
    let same = match of(one) == of(two) {
        true => {
            let pairs = one.layers.iter().zip(&two.layers);
            pairs.take_while(|(a, b)| Arc::ptr_eq(a, b)).count()
        }
        false => 0,
    };
    for view in &views {
        for layer in &view.layers[same..] {
            layered(layer, &mut window, max, &mut ranges);
        }
    }
    let pages = Pages(&engine.reader);
    let trees = (&one.tree, &two.tree);
    let found = map::differences(trees, &pages, window, max, PAGES_MAX)?;
    ranges.extend(found.ranges);
    Ok(joined(ranges, found.end, max))
}

/// Ranges in order and joined, at most `max` of them.
fn joined(mut ranges: Vec<Range<u64>>, mut end: u64, max: usize) -> Differences {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let range = range.start..range.end.min(end);
        if range.is_empty() {
            continue;
        }
        let full = all.len() == max;
        match all.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ if full => {
                end = range.start;
                break;
            }
            _ => all.push(range),
        }
    }
    Differences { ranges: all, end }
}

impl Engine {
    /// Finds `NAME`, a snapshot of the volume, or `VOLUME@NAME`.
    pub(crate) fn snapshot_for(&self, of: u64, name: &str) -> Option<Arc<Volume>> {
        let volumes = self.volumes.read();
        let found = match split_name(name) {
            Some((volume, snapshot)) => volumes.snapshot(volume, snapshot).ok()?,
            None => Arc::clone(volumes.snapshot_of(of, name)?),
        };
        Some(Arc::clone(&found.disk))
    }

    /// See [`crate::disk::Disk::changed_since`]; `of` is the id of the volume
    /// whose snapshots have short names.
    pub(crate) fn changed_since(
        &self,
        volume: &Volume,
        of: u64,
        name: &str,
        (offset, length): (u64, u64),
        max: usize,
    ) -> Result<Vec<ChangeExtent>, DiskError> {
        let missing = || DiskError::Io(format!("There is no snapshot {name:?}"));
        let since = self.snapshot_for(of, name).ok_or_else(missing)?;
        if since.chunk_bytes != volume.chunk_bytes {
            return Err(DiskError::Io(format!(
                "Snapshot {name:?} has chunks of another size"
            )));
        }
        let _guard = self.epochs.enter();
        let chunk = u64::from(volume.chunk_bytes);
        let (first, last) = (offset / chunk, (offset + length).div_ceil(chunk));
        let found = changed(self, (&since, volume), first..last, max.div_ceil(2))
            .map_err(|error| error.to_disk_error())?;
        let mut extents = Vec::new();
        let mut at = offset;
        let end = (found.end * chunk).min(offset + length);
        let mut push = |to: u64, changed: bool| {
            let to = to.min(end);
            if to > at && extents.len() < max {
                extents.push(ChangeExtent {
                    length: to - at,
                    changed,
                });
                at = to;
            }
        };
        for range in found.ranges {
            push(range.start * chunk, false);
            push(range.end * chunk, true);
        }
        push(end, false);
        Ok(extents)
    }

    /// What changed from a snapshot to another snapshot or a volume, from
    /// `offset` on and in at most `max` ranges.
    pub(crate) fn snapshot_diff(
        &self,
        from: &str,
        to: &str,
        offset: u64,
        max: usize,
    ) -> Result<SnapshotDiff, EngineError> {
        if offset == 0 {
            // With what layers hold in pages the answer is as exact as it gets.
            self.refresh_counts();
        }
        let find = |name: &str| {
            let volumes = self.volumes.read();
            match split_name(name) {
                Some((volume, snapshot)) => {
                    let found = volumes.snapshot(volume, snapshot)?;
                    Ok(Arc::clone(&found.disk))
                }
                None => volumes.volume(name),
            }
        };
        let (old, new) = (find(from)?, find(to)?);
        if old.chunk_bytes != new.chunk_bytes {
            let message = format!("{from:?} and {to:?} have chunks of different sizes");
            return Err(EngineError::new(ErrorKind::InvalidArgument, message));
        }
        let chunk = u64::from(new.chunk_bytes);
        let (from_bytes, to_bytes) = (old.state.read().size_bytes, new.state.read().size_bytes);
        let chunks = to_bytes.div_ceil(chunk);
        let mut ranges: Vec<ChangedRange> = Vec::new();
        let mut at = offset / chunk;
        while at < chunks && ranges.len() < max {
            if old.is_deleted() || new.is_deleted() {
                let message = format!("{from:?} or {to:?} has been deleted meanwhile");
                return Err(EngineError::new(ErrorKind::NotFound, message));
            }
            let found = {
                let _guard = self.epochs.enter();
                let step = RANGES_PER_STEP.min(max - ranges.len());
                changed(self, (&old, &new), at..chunks, step)?
            };
            for range in found.ranges {
                let offset = range.start * chunk;
                let length = (range.end * chunk).min(to_bytes) - offset;
                match ranges.last_mut() {
                    Some(last) if last.offset + last.length == offset => last.length += length,
                    _ => ranges.push(ChangedRange { offset, length }),
                }
            }
            at = found.end;
        }
        Ok(SnapshotDiff {
            from: from.to_owned(),
            to: to.to_owned(),
            from_bytes,
            to_bytes,
            changed_bytes: ranges.iter().map(|range| range.length).sum(),
            ranges,
            end: (at * chunk).min(to_bytes),
        })
    }
}
