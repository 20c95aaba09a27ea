//! When to give up on a member that does not answer (R4, R5).
//!
//! A member that stalls is failed only if enough others have completed I/O
//! that was begun no earlier: so many that the array works with them alone.
//! When all stall together (the host was suspended, a shared controller
//! resets), nobody is failed and everybody waits.
//!
//! The evidence: members of the same batch that are no longer asked about
//! have completed their part; other batches report to [`Progress`]; and where
//! there is no other I/O, a probe reads a block of every other member.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::Array;
use crate::{
    MemberIndex, MemberSet,
    device::{BLOCK_BYTES, Backend, DeviceHandle, Verdict},
    member::read_at,
    sabotage::broken,
};

/// What members have completed lately, in ticks: a count of batches begun.
pub(super) struct Progress {
    backend: Arc<dyn Backend>,
    devices: Vec<Option<DeviceHandle>>,
    ticks: AtomicU64,
    /// By member: the beginning of the latest-begun batch it has completed.
    completed: Vec<AtomicU64>,
    /// Members with a probe under way.
    probing: AtomicU64,
}

impl Progress {
    pub(super) fn new(backend: Arc<dyn Backend>, devices: Vec<Option<DeviceHandle>>) -> Self {
        let completed = devices.iter().map(|_| AtomicU64::new(0)).collect();
        Self {
            backend,
            devices,
            ticks: AtomicU64::new(0),
            completed,
            probing: AtomicU64::new(0),
        }
    }

    fn begin(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The members completed operations that were begun at `tick`.
    pub(super) fn completed(&self, tick: u64, members: impl Iterator<Item = MemberIndex>) {
        for member in members {
            self.completed[member.index()].fetch_max(tick, Ordering::Relaxed);
        }
    }

    fn has_completed_since(&self, member: MemberIndex, tick: u64) -> bool {
        self.completed[member.index()].load(Ordering::Relaxed) > tick
    }

    /// Reads a block of every one of `members`, each in a thread of its own
    /// because any of them may stall too.
    fn probe(self: &Arc<Self>, members: MemberSet) {
        for member in members.iter() {
            let bit = MemberSet::of(member).0;
            let Some(device) = self.devices[member.index()] else {
                continue;
            };
            if self.probing.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
                continue;
            }
            let progress = Arc::clone(self);
            let run = move || {
                let tick = progress.begin();
                let backend = progress.backend.as_ref();
                if read_at(backend, device, 0, BLOCK_BYTES as u64).is_ok() {
                    progress.completed(tick, std::iter::once(member));
                }
                progress.probing.fetch_and(!bit, Ordering::AcqRel);
            };
            if std::thread::Builder::new()
                .name("stall-probe".into())
                .spawn(run)
                .is_err()
            {
                self.probing.fetch_and(!bit, Ordering::AcqRel);
            }
        }
    }
}

/// The verdict over one batch.
pub(super) struct BatchVerdict<'a> {
    array: &'a Array,
    members: MemberSet,
    tick: u64,
    begun: Instant,
    /// How often the backend asked about each member.
    asked: RefCell<Vec<u32>>,
}

impl<'a> BatchVerdict<'a> {
    pub(super) fn new(array: &'a Array, members: MemberSet) -> Self {
        Self {
            array,
            members,
            tick: array.progress.begin(),
            begun: Instant::now(),
            asked: RefCell::new(Vec::new()),
        }
    }

    pub(super) fn tick(&self) -> u64 {
        self.tick
    }

    /// The members that have shown that they answer.
    fn answering(&self, stalled: MemberIndex) -> MemberSet {
        let asked = self.asked.borrow();
        // All unfinished members are asked about in turn, so one that is two
        // rounds short has finished its part of the batch.
        let finished = |member: MemberIndex| {
            self.members.contains(member) && asked[member.index()] + 2 <= asked[stalled.index()]
        };
        self.array
            .in_use()
            .without(stalled)
            .iter()
            .filter(|member| {
                finished(*member) || self.array.progress.has_completed_since(*member, self.tick)
            })
            .collect()
    }
}

impl Verdict for BatchVerdict<'_> {
    fn abandon(&self, device: DeviceHandle) -> bool {
        let array = self.array;
        let Some(stalled) = array
            .all
            .iter()
            .find(|m| array.member(*m).device == Some(device))
        else {
            return false;
        };
        {
            let mut asked = self.asked.borrow_mut();
            asked.resize(array.members.len(), 0);
            asked[stalled.index()] += 1;
        }
        let waited = self.begun.elapsed();
        if waited < array.stall_limit {
            if array.stall_limit > Duration::ZERO && waited >= array.stall_limit / 2 {
                array.progress.probe(array.in_use().without(stalled));
            }
            return false;
        }
        // R4: enough others, and the layouts do without the stalled one.
        let silent = array.all.difference(self.answering(stalled));
        let mut abandon = array.layouts.iter().all(|layout| layout.survives(silent));
        abandon |= broken("R4.stall");
        abandon &= !broken("R5.give_up");
        if abandon {
            tracing::warn!(member = %stalled, ?waited, "giving up on a stalled member");
        }
        abandon
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{CreateSpec, Level, MemoryWitness, OpenOptions, Sizes, device::sim::SimWorld};

    /// An array whose stall limit has always passed.
    fn array(level: Level, width: usize) -> Array {
        let world = SimWorld::new(1);
        let members: Vec<PathBuf> = (0..width).map(|n| format!("disk{n}").into()).collect();
        for path in &members {
            world.add_device(path, 4 << 20);
        }
        let witness = MemoryWitness::new();
        let sizes = Sizes {
            segment_data_bytes_target: 1 << 18,
            journal_bytes: Some(1 << 16),
        };
        let spec = CreateSpec {
            level,
            stripe_unit_bytes: 4096,
            members,
            force: false,
            sizes,
        };
        Array::create(world.backend(), &spec, b"", Box::new(witness.clone())).unwrap();
        let options = OpenOptions {
            stall_limit: Duration::ZERO,
            ..OpenOptions::default()
        };
        Array::open(world.backend(), &spec.members, Box::new(witness), &options).unwrap()
    }

    fn members(members: &[u8]) -> MemberSet {
        members.iter().map(|member| MemberIndex(*member)).collect()
    }

    /// Asks in rounds about `stalled`, as a backend does that waits for them;
    /// who was given up.
    fn given_up(verdict: &BatchVerdict<'_>, stalled: &[u8]) -> Vec<u8> {
        let mut given_up = Vec::new();
        for _ in 0..5 {
            for member in stalled {
                if !given_up.contains(member)
                    && verdict.abandon(verdict.array.device(MemberIndex(*member)))
                {
                    given_up.push(*member);
                }
            }
        }
        given_up
    }

    #[test]
    fn r4_one_that_stalls_while_the_others_finish_is_given_up() {
        let array = array(Level::Raid5, 4);
        let verdict = BatchVerdict::new(&array, members(&[0, 1, 2, 3]));
        assert_eq!(given_up(&verdict, &[2]), [2]);
    }

    #[test]
    fn r4_when_all_stall_everybody_waits() {
        for level in [Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10] {
            let array = array(level, 4);
            let verdict = BatchVerdict::new(&array, members(&[0, 1, 2, 3]));
            assert_eq!(given_up(&verdict, &[0, 1, 2, 3]), [0u8; 0], "{level}");
        }
    }

    #[test]
    fn r4_more_stalls_than_survivable_fail_nobody() {
        let array = array(Level::Raid5, 4);
        let verdict = BatchVerdict::new(&array, members(&[0, 1, 2, 3]));
        assert_eq!(given_up(&verdict, &[1, 2]), [0u8; 0]);
        let array = self::array(Level::Raid6, 5);
        let verdict = BatchVerdict::new(&array, members(&[0, 1, 2, 3, 4]));
        assert_eq!(
            given_up(&verdict, &[1, 2]),
            [1, 2],
            "RAID 6 does without both"
        );
    }

    #[test]
    fn r4_other_batches_count_only_if_they_began_later() {
        let array = array(Level::Raid5, 3);
        let earlier = array.progress.begin();
        let verdict = BatchVerdict::new(&array, members(&[1]));
        assert_eq!(
            given_up(&verdict, &[1]),
            [0u8; 0],
            "nothing is known of the others"
        );
        array.progress.completed(earlier, members(&[0, 2]).iter());
        assert_eq!(given_up(&verdict, &[1]), [0u8; 0], "those began before");
        let later = array.progress.begin();
        array.progress.completed(later, members(&[0]).iter());
        assert_eq!(given_up(&verdict, &[1]), [0u8; 0], "one is not enough");
        array.progress.completed(later, members(&[2]).iter());
        assert_eq!(given_up(&verdict, &[1]), [1]);
    }

    #[test]
    fn r4_a_probe_shows_that_the_others_answer() {
        let array = array(Level::Raid5, 3);
        let verdict = BatchVerdict::new(&array, members(&[1]));
        array.progress.probe(members(&[0, 2]));
        while array.progress.probing.load(Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        assert_eq!(given_up(&verdict, &[1]), [1]);
    }
}
