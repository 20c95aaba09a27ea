//! Every short sequence of requests, and some longer ones.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Chunk,
    Large,
    Partial,
    Discard,
    Zero,
    Flush,
    Fua,
    Checkpoint,
    MemberFails,
    MemberReplaced,
    /// Of volume a, under the number of the request, here and below.
    Snapshot,
    /// To the newest snapshot.
    RollBack,
    /// Of the newest snapshot.
    Clone,
    /// Deletes the newest snapshot.
    Forget,
    Reclaim,
    /// Volumes leave deduplication to later.
    Post,
    Dedup,
}

/// Those that need no other feature first: `TESSERA_ACTS=10` does with them.
pub const ALL: [Act; 17] = [
    Act::Chunk,
    Act::Large,
    Act::Partial,
    Act::Discard,
    Act::Zero,
    Act::Flush,
    Act::Fua,
    Act::Checkpoint,
    Act::MemberFails,
    Act::MemberReplaced,
    Act::Snapshot,
    Act::RollBack,
    Act::Clone,
    Act::Forget,
    Act::Reclaim,
    Act::Post,
    Act::Dedup,
];

/// Longer sequences with snapshots.
pub const OF_SNAPSHOTS: [&[Act]; 8] = [
    &[Act::Snapshot, Act::Chunk, Act::Checkpoint],
    &[Act::Large, Act::Snapshot, Act::Large, Act::RollBack],
    &[Act::Chunk, Act::Snapshot, Act::Clone, Act::Checkpoint],
    &[Act::Snapshot, Act::Checkpoint, Act::Chunk, Act::RollBack],
    &[Act::Chunk, Act::Snapshot, Act::Forget, Act::Checkpoint],
    &[
        Act::Snapshot,
        Act::Checkpoint,
        Act::Large,
        Act::Forget,
        Act::Reclaim,
    ],
    &[
        Act::Snapshot,
        Act::Chunk,
        Act::Snapshot,
        Act::Chunk,
        Act::Reclaim,
    ],
    &[
        Act::Snapshot,
        Act::Partial,
        Act::RollBack,
        Act::Chunk,
        Act::Clone,
    ],
];

/// Longer sequences with post-process deduplication that finds something: half
/// of what `Large` writes is stored already.
pub const OF_DEDUP: [&[Act]; 5] = [
    &[Act::Post, Act::Large, Act::Dedup],
    &[Act::Post, Act::Large, Act::Large, Act::Snapshot, Act::Dedup],
    &[
        Act::Post,
        Act::Large,
        Act::Snapshot,
        Act::Chunk,
        Act::Dedup,
        Act::RollBack,
    ],
    &[
        Act::Post,
        Act::Large,
        Act::Flush,
        Act::Dedup,
        Act::Partial,
        Act::Reclaim,
    ],
    &[
        Act::Post,
        Act::Large,
        Act::Snapshot,
        Act::Clone,
        Act::Dedup,
        Act::Forget,
    ],
];

/// Every sequence of that length, of the given acts, in which no snapshot is
/// asked for that is not there.
pub fn every_sequence(length: usize, acts: &[Act]) -> Vec<Vec<Act>> {
    let mut all: Vec<Vec<Act>> = vec![Vec::new()];
    for _ in 0..length {
        let longer = |sequence: &Vec<Act>| {
            let one_more = |act: &Act| [sequence.clone(), vec![*act]].concat();
            acts.iter().map(one_more).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all.retain(|sequence| is_possible(sequence));
    all
}

fn is_possible(sequence: &[Act]) -> bool {
    let mut snapshots = 0;
    sequence.iter().all(|act| {
        match act {
            Act::Snapshot => snapshots += 1,
            Act::RollBack | Act::Clone => return snapshots > 0,
            Act::Forget if snapshots == 0 => return false,
            Act::Forget => snapshots -= 1,
            _ => {}
        }
        true
    })
}
