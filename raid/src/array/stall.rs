//! When to give up on a member that does not answer (R4, R5).
//!
//! A member that stalls is failed only if enough others have completed I/O
//! that was begun no earlier: so many that the array works with them alone.
//! When all stall together (the host was suspended, a shared controller
//! resets), nobody is failed and everybody waits.
//!
//! The evidence: members of the same batch that are no longer asked about
//! have completed their part, unless it failed: a member that is gone answers
//! at once, and the array does not work with it. Other batches report to [`Progress`]; and where
//! there is no other I/O, a probe reads a block of every other member.

use std::{
    cell::RefCell,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    Array,
    failures::shows_failure,
    roster::{OpenDevice, Roster},
};
use crate::{
    MemberIndex, MemberSet,
    device::{BLOCK_BYTES, Backend, DeviceHandle, Io, Verdict},
    member::read_at,
    sabotage::broken,
};

impl Array {
    /// A new beginning, later than all before.
    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reads a block of every one of `members`, each in a thread of its own
    /// because any of them may stall too.
    fn probe(&self, roster: &Roster, members: MemberSet) {
        for device in members.iter().filter_map(|member| roster.live(member)) {
            if device.probing.swap(true, Ordering::AcqRel) {
                continue;
            }
            let (backend, probed) = (Arc::clone(&self.backend), Arc::clone(device));
            let tick = self.tick();
            let run = move || probe(backend.as_ref(), &probed, tick);
            let thread = std::thread::Builder::new().name("stall-probe".into());
            if thread.spawn(run).is_err() {
                device.probing.store(false, Ordering::Release);
            }
        }
    }
}

fn probe(backend: &dyn Backend, device: &OpenDevice, tick: u64) {
    if read_at(backend, device.handle, 0, BLOCK_BYTES as u64, Duration::MAX).is_ok() {
        device.completed.fetch_max(tick, Ordering::Relaxed);
    }
    device.probing.store(false, Ordering::Release);
}

/// The verdict over one batch.
pub(super) struct BatchVerdict<'a> {
    array: &'a Array,
    roster: &'a Roster,
    /// The devices that the batch has operations on.
    involved: Vec<DeviceHandle>,
    tick: u64,
    begun: Instant,
    /// How often the backend asked about each device.
    asked: RefCell<Vec<(DeviceHandle, u32)>>,
    /// Devices of the batch that have finished, but do not work.
    broken: RefCell<Vec<DeviceHandle>>,
}

impl<'a> BatchVerdict<'a> {
    pub(super) fn new(array: &'a Array, roster: &'a Roster, batch: &[Io]) -> Self {
        let mut involved: Vec<DeviceHandle> = Vec::new();
        for io in batch {
            if !involved.contains(&io.device) {
                involved.push(io.device);
            }
        }
        Self {
            array,
            roster,
            involved,
            tick: array.tick(),
            begun: Instant::now(),
            asked: RefCell::new(Vec::new()),
            broken: RefCell::new(Vec::new()),
        }
    }

    pub(super) fn tick(&self) -> u64 {
        self.tick
    }

    /// Counts a question about a device; how many there were.
    fn ask(&self, device: DeviceHandle) -> u32 {
        let mut asked = self.asked.borrow_mut();
        if let Some((_, times)) = asked.iter_mut().find(|(other, _)| *other == device) {
            *times += 1;
            return *times;
        }
        asked.push((device, 1));
        1
    }

    fn asked(&self, device: DeviceHandle) -> u32 {
        let asked = self.asked.borrow();
        let found = asked.iter().find(|(other, _)| *other == device);
        found.map_or(0, |(_, times)| *times)
    }

    /// The members that have shown that they answer, when `stalled` was asked
    /// about `times`.
    fn answering(&self, stalled: DeviceHandle, times: u32) -> MemberSet {
        // All unfinished devices are asked about in turn, so one that is two
        // rounds short has finished its part of the batch.
        let finished = |device: &OpenDevice| {
            self.involved.contains(&device.handle)
                && self.asked(device.handle) + 2 <= times
                && !self.broken.borrow().contains(&device.handle)
        };
        let answers = |member: &MemberIndex| {
            let device = self.roster.live(*member);
            device.is_some_and(|device| {
                device.handle != stalled
                    && (finished(device) || device.completed.load(Ordering::Relaxed) > self.tick)
            })
        };
        self.roster.in_use().iter().filter(answers).collect()
    }
}

impl Verdict for BatchVerdict<'_> {
    fn failed(&self, io: &Io) {
        let mut broken = self.broken.borrow_mut();
        if shows_failure(io) && !broken.contains(&io.device) {
            broken.push(io.device);
        }
    }

    fn abandon(&self, device: DeviceHandle) -> bool {
        let (array, roster) = (self.array, self.roster);
        if roster.by_handle(device).is_none() {
            return false;
        }
        let times = self.ask(device);
        let waited = self.begun.elapsed();
        let limit = array.limits.get().stall;
        if waited < limit {
            if limit > Duration::ZERO && waited >= limit / 2 {
                let others = roster.in_use().iter().filter(|member| {
                    roster
                        .live(*member)
                        .is_some_and(|live| live.handle != device)
                });
                array.probe(roster, others.collect());
            }
            return false;
        }
        // R4: enough others, and the layouts do without the stalled one.
        let silent = roster.all.difference(self.answering(device, times));
        let mut abandon = array.layouts.iter().all(|layout| layout.survives(silent));
        abandon |= broken("R4.stall");
        abandon &= !broken("R5.give_up");
        if abandon {
            tracing::warn!(?device, ?waited, "giving up on a stalled member");
        }
        abandon
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        CreateSpec, Level, Limits, MemoryWitness, OpenOptions, Sizes,
        device::{IoOp, sim::SimWorld},
    };

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
            stall_limit: Limits::default().stall,
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

    /// A batch with a sync of each of `members`.
    fn batch(roster: &Roster, members: &[u8]) -> Vec<Io> {
        let sync = |member: &u8| roster.io(MemberIndex(*member), 0, IoOp::Sync);
        members.iter().map(sync).collect()
    }

    fn completed(roster: &Roster, tick: u64, members: &[u8]) {
        for member in members {
            let device = roster.device(MemberIndex(*member));
            device.completed.fetch_max(tick, Ordering::Relaxed);
        }
    }

    /// Asks in rounds about `stalled`, as a backend does that waits for them;
    /// who was given up.
    fn given_up(verdict: &BatchVerdict<'_>, stalled: &[u8]) -> Vec<u8> {
        let mut given_up = Vec::new();
        for _ in 0..5 {
            for member in stalled {
                if !given_up.contains(member)
                    && verdict.abandon(verdict.roster.device(MemberIndex(*member)).handle)
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
        let roster = array.roster();
        let verdict = BatchVerdict::new(&array, &roster, &batch(&roster, &[0, 1, 2, 3]));
        assert_eq!(given_up(&verdict, &[2]), [2]);
    }

    #[test]
    fn r4_one_that_is_gone_is_no_evidence_against_one_that_stalls() {
        for (errno, gone) in [
            (libc::ENODEV, true),
            (libc::EIO, true),
            (libc::ENOSPC, false),
        ] {
            let array = array(Level::Raid5, 4);
            let roster = array.roster();
            let mut batch = batch(&roster, &[0, 1, 2, 3]);
            let verdict = BatchVerdict::new(&array, &roster, &batch);
            batch[3].outcome = Some(Err(std::io::Error::from_raw_os_error(errno)));
            verdict.failed(&batch[3]);
            let expected: &[u8] = if gone { &[] } else { &[2] };
            assert_eq!(given_up(&verdict, &[2]), expected, "errno {errno}");
        }
    }

    #[test]
    fn r4_when_all_stall_everybody_waits() {
        for level in [Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10] {
            let array = array(level, 4);
            let roster = array.roster();
            let verdict = BatchVerdict::new(&array, &roster, &batch(&roster, &[0, 1, 2, 3]));
            assert_eq!(given_up(&verdict, &[0, 1, 2, 3]), [0u8; 0], "{level}");
        }
    }

    #[test]
    fn r4_more_stalls_than_survivable_fail_nobody() {
        let array = array(Level::Raid5, 4);
        let roster = array.roster();
        let verdict = BatchVerdict::new(&array, &roster, &batch(&roster, &[0, 1, 2, 3]));
        assert_eq!(given_up(&verdict, &[1, 2]), [0u8; 0]);
        let array = self::array(Level::Raid6, 5);
        let roster = array.roster();
        let verdict = BatchVerdict::new(&array, &roster, &batch(&roster, &[0, 1, 2, 3, 4]));
        assert_eq!(
            given_up(&verdict, &[1, 2]),
            [1, 2],
            "RAID 6 does without both"
        );
    }

    #[test]
    fn r4_other_batches_count_only_if_they_began_later() {
        let array = array(Level::Raid5, 3);
        let earlier = array.tick();
        let roster = array.roster();
        let verdict = BatchVerdict::new(&array, &roster, &batch(&roster, &[1]));
        assert_eq!(
            given_up(&verdict, &[1]),
            [0u8; 0],
            "nothing is known of the others"
        );
        completed(&roster, earlier, &[0, 2]);
        assert_eq!(given_up(&verdict, &[1]), [0u8; 0], "those began before");
        let later = array.tick();
        completed(&roster, later, &[0]);
        assert_eq!(given_up(&verdict, &[1]), [0u8; 0], "one is not enough");
        completed(&roster, later, &[2]);
        assert_eq!(given_up(&verdict, &[1]), [1]);
    }

    #[test]
    fn r4_a_probe_shows_that_the_others_answer() {
        let array = array(Level::Raid5, 3);
        let roster = array.roster();
        let verdict = BatchVerdict::new(&array, &roster, &batch(&roster, &[1]));
        array.probe(&roster, members(&[0, 2]));
        let probing = |member| {
            roster
                .device(MemberIndex(member))
                .probing
                .load(Ordering::Acquire)
        };
        while probing(0) || probing(2) {
            std::thread::yield_now();
        }
        assert_eq!(given_up(&verdict, &[1]), [1]);
    }
}
