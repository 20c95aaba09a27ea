//! Who names the chunks of a window.
//!
//! The walk takes the newest roots at each of its steps, so a name that is given
//! or taken meanwhile may be missing or wrong here. A wrong one is noticed when
//! it is to be changed; behind a missing one the chunk stays, and the next run
//! finds it.

use super::window::{Name, Window};
use crate::{
    api::DedupMode,
    map::Visit,
    pool::{
        engine::Engine,
        roots::{Root, RootKind},
        walk::{Found, TreesWalk},
    },
};

/// Names remembered for each chunk, on the average. One with more keeps some
/// of them, and its bytes.
const NAMES_PER_CHUNK: usize = 4;

/// What a root is to deduplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A volume whose names may be changed.
    Volume(u64),
    Snapshot,
    /// Of mode `off`.
    Off,
    /// A table, or gone.
    None,
}

impl Engine {
    /// One step; true at the end.
    pub(super) fn collect_names(&self, window: &mut Window, walk: &mut TreesWalk) -> bool {
        let names_max = window.chunks.len().saturating_mul(NAMES_PER_CHUNK);
        let mut last = None;
        self.walk_trees(walk, &mut |root: &Root, found: Found<'_>| {
            let Found::Visit(Visit::Entry { index, entry }) = found else {
                return false;
            };
            let Some(chunk) = window.find(&entry) else {
                return false;
            };
            let part = match last {
                Some((kind, part)) if kind == root.kind => part,
                _ => {
                    let part = self.part_of(root.kind);
                    last = Some((root.kind, part));
                    part
                }
            };
            let named = &mut window.chunks[chunk as usize];
            match part {
                Part::Volume(tree) => {
                    named.by_volume = true;
                    if window.names.len() < names_max {
                        window.names.push(Name { tree, index, chunk });
                    }
                }
                Part::Snapshot => named.by_snapshot = true,
                Part::Off => named.by_off = true,
                Part::None => {}
            }
            // What a snapshot shares with another need not be seen again, but
            // what a clone shares has a name of its own.
            part != Part::Snapshot
        })
    }

    fn part_of(&self, kind: RootKind) -> Part {
        let volumes = self.volumes.read();
        let mode = |id: u64| {
            let volume = volumes.by_id.get(&id)?;
            Some(volume.state.read().dedup)
        };
        match kind {
            RootKind::Table => Part::None,
            RootKind::Volume(id) => match mode(id) {
                Some(DedupMode::Off) => Part::Off,
                Some(_) => Part::Volume(id),
                None => Part::None,
            },
            // A snapshot is what its volume is now.
            RootKind::Snapshot(id) => {
                let snapshot = volumes.snapshots.get(&id);
                match snapshot.and_then(|snapshot| mode(snapshot.volume)) {
                    Some(DedupMode::Off) => Part::Off,
                    Some(_) => Part::Snapshot,
                    None => Part::None,
                }
            }
        }
    }
}
