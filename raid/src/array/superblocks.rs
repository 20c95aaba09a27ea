//! The one writer of superblocks (R6), the degrade barrier (R2) and commits.
//!
//! There is one *desired* record and one that is *durable*. Whoever changes
//! the desired one waits until it, or a newer one, is durable; one of those
//! who wait does the writing for all, without holding a lock. A member that
//! fails during the write changes the desired record, and so becomes the next
//! write.
//!
//! One write, in this order:
//! 1. the copy at the front of every member in use, durably;
//! 2. the copy at the end, durably: only now may the sequence go on (R1);
//! 3. the witness, if the membership has changed (R3);
//! 4. those who wait are told.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::MutexGuard;
use uuid::Uuid;

use super::{Array, ENGINE_RECORD_BYTES, FAILED, Fault};
use crate::{
    Kind, MemberIndex, MemberSet, RaidError, WitnessMember, WitnessRecord,
    device::{AlignedBuf, BufSlice, IoOp},
    member::places,
    sabotage::broken,
    superblock::{PoolRecord, SUPERBLOCK_BYTES, Standing, encode},
};

/// The state of the superblocks.
pub(super) struct Superblocks {
    /// What is to be durable; its sequence is assigned when it is written.
    desired: PoolRecord,
    desired_version: u64,
    /// What is durable on every member in use.
    durable: PoolRecord,
    /// The desired version that is durable and witnessed.
    durable_version: u64,
    writing: bool,
    /// The writer's own, one a member (R6, R23).
    buffers: Vec<Arc<AlignedBuf>>,
    /// The membership change that the witness holds.
    witnessed: Option<Uuid>,
}

impl Superblocks {
    pub(super) fn new(record: PoolRecord) -> Self {
        let length = SUPERBLOCK_BYTES as usize;
        let buffers = record
            .members
            .iter()
            .map(|_| Arc::new(AlignedBuf::zeroed(length)));
        Self {
            buffers: buffers.collect(),
            desired: record.clone(),
            desired_version: 0,
            durable: record,
            durable_version: 0,
            writing: false,
            witnessed: None,
        }
    }
}

impl Array {
    /// The engine's record as of the last superblock that is durable.
    pub fn engine_record(&self) -> Vec<u8> {
        self.superblocks.lock().durable.engine_record.clone()
    }

    /// Whether the superblock that was opened was marked clean.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// The one counter of superblocks (R1).
    pub fn sequence(&self) -> u64 {
        self.superblocks.lock().durable.sequence
    }

    /// How many membership changes there were.
    pub fn membership_epoch(&self) -> u64 {
        self.superblocks.lock().durable.history.epoch
    }

    /// The durable record.
    pub(super) fn durable_record(&self) -> PoolRecord {
        self.superblocks.lock().durable.clone()
    }

    /// Advances the sequence with a new engine record, durable on every
    /// in-sync member on return (R1).
    ///
    /// With `clean` nothing may be written afterwards before a commit without
    /// it. Whatever the record refers to is durable already (see
    /// [`Array::sync`]).
    ///
    /// # Errors
    /// `Stopped` where it cannot be made durable; the array then writes
    /// nothing more. `InvalidArgument` where the record is longer than
    /// [`ENGINE_RECORD_BYTES`].
    pub fn commit(&self, engine_record: &[u8], clean: bool) -> Result<(), RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        self.check_stopped()?;
        check_engine_record(engine_record)?;
        if clean {
            self.clean.store(true, Ordering::Release);
        }
        let mut state = self.superblocks.lock();
        state.desired.engine_record = engine_record.to_vec();
        state.desired.clean = clean;
        state.desired.commits += 1;
        state.desired_version += 1;
        let version = state.desired_version;
        self.wait_for(state, version)?;
        if !clean {
            self.clean.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// R2: fails members; on `Ok` that is durable on the survivors and
    /// witnessed. A read-only array only stops using them.
    pub(super) fn degrade(&self, failing: MemberSet, why: &str) -> Result<(), RaidError> {
        let mut state = self.superblocks.lock();
        self.note_failures(&mut state, failing, FAILED, why)?;
        if broken("R2.degrade") {
            return Ok(());
        }
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    /// R4: an order to fail a member is refused where a failure would stop
    /// the array.
    pub(super) fn check_dispensable(&self, member: MemberIndex) -> Result<(), RaidError> {
        let state = self.superblocks.lock();
        let failed = state.desired.not_in_sync();
        if failed.contains(member) || state.desired.survives(failed.with(member)) {
            return Ok(());
        }
        Err(RaidError::new(
            Kind::TooFewMembers,
            format!(
                "{} cannot be done without",
                self.names(MemberSet::of(member))
            ),
        ))
    }

    /// Notes standings found while opening. Done before anything is written,
    /// because members that are not there cannot be written to; made durable
    /// by [`Array::flush_changes`].
    pub(super) fn note_changes(
        &self,
        changes: &[(MemberIndex, Standing)],
    ) -> Result<(), RaidError> {
        let mut state = self.superblocks.lock();
        for (member, standing) in changes {
            let why = match standing {
                Standing::Absent => "it was not found",
                Standing::Stale => "it is behind the others",
                _ => "it has become too small",
            };
            self.note_failures(&mut state, MemberSet::of(*member), *standing, why)?;
        }
        Ok(())
    }

    /// Makes everything noted durable: R1, before the first write.
    pub(super) fn flush_changes(&self) -> Result<(), RaidError> {
        if broken("R1.absent") {
            return Ok(());
        }
        let state = self.superblocks.lock();
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    /// R2: returns once every member that a write skipped is known as failed
    /// on disk. `used` are the members that took part.
    pub(super) fn barrier(&self, used: MemberSet) -> Result<(), RaidError> {
        if broken("R2.barrier") {
            return Ok(());
        }
        let skipped = self.all.difference(used);
        if skipped
            .difference(MemberSet(self.recorded.load(Ordering::Acquire)))
            .is_empty()
        {
            return Ok(());
        }
        let state = self.superblocks.lock();
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    fn note_failures(
        &self,
        state: &mut Superblocks,
        failing: MemberSet,
        standing: Standing,
        why: &str,
    ) -> Result<(), RaidError> {
        let failed = state.desired.not_in_sync();
        let fresh = failing.difference(failed);
        if fresh.is_empty() {
            return Ok(());
        }
        let names = self.names(fresh);
        // R4: never record more failures than the layouts survive.
        if !state.desired.survives(failed.union(fresh)) && !broken("R4.no_suicide") {
            if self.read_only {
                return Err(RaidError::new(
                    Kind::Unrecoverable,
                    format!("{names} cannot be done without ({why})"),
                ));
            }
            return Err(self.stop(format!("{names} cannot be done without ({why})")));
        }
        tracing::error!(pool = %self.pool, members = %names, reason = why, "member failed");
        for member in fresh.iter() {
            state.desired.members[member.index()].standing = standing;
        }
        self.in_use.fetch_and(!fresh.0, Ordering::AcqRel);
        if self.read_only {
            // Nothing is written, so there is nothing that skipped them.
            return Ok(());
        }
        state.desired.history.push(self.witness.issue_id());
        state.desired_version += 1;
        Ok(())
    }

    /// Waits until `version` of the desired record is durable, writing it
    /// unless somebody else does.
    fn wait_for(
        &self,
        mut state: MutexGuard<'_, Superblocks>,
        version: u64,
    ) -> Result<(), RaidError> {
        while state.durable_version < version {
            self.check_stopped()?;
            if state.writing {
                self.superblocks_written.wait(&mut state);
                continue;
            }
            state.writing = true;
            let outcome = self.write_desired(&mut state);
            state.writing = false;
            // Also after an error: those who wait see that writes stopped.
            self.superblocks_written.notify_all();
            outcome?;
        }
        Ok(())
    }

    /// Writes the newest desired record once. The lock is released meanwhile.
    fn write_desired(&self, state: &mut MutexGuard<'_, Superblocks>) -> Result<(), RaidError> {
        let version = state.desired_version;
        let mut record = state.desired.clone();
        record.sequence = state.durable.sequence + 1;
        for (row, before) in record.members.iter_mut().zip(&state.durable.members) {
            if row.standing != before.standing {
                row.changed_at = record.sequence;
            }
        }
        let mut buffers = std::mem::take(&mut state.buffers);
        let witnessed = state.witnessed == Some(record.history.head());
        let mut write = || {
            if broken("R3.order") {
                let _too_early = self.witness.store(&self.witness_record(&record));
            }
            let (failing, why) = self.write_copies(&record, &mut buffers);
            // After a failure this record is followed by another, and only
            // that one is acknowledged and witnessed.
            let stored = match failing.is_empty() && !witnessed && !broken("R3.witness") {
                true => self.witness.store(&self.witness_record(&record)),
                false => Ok(()),
            };
            (failing, why, stored)
        };
        let (failing, why, stored) = match broken("R6.no_lock") {
            true => write(),
            false => MutexGuard::unlocked(state, write),
        };
        state.buffers = buffers;
        // R3: without the witness the change is not known to have happened.
        if let Err(error) = stored {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error} ({source})"),
                None => error.to_string(),
            };
            return Err(self.stop(reason));
        }
        if !failing.is_empty() {
            // Becomes the next write; nobody is told before it is done.
            // Checked first: if the array stops here, the sequence stays.
            self.note_failures(state, failing, FAILED, &why)?;
        }
        // Every member still in use holds the record now, so the sequence may
        // go on (R1).
        for (desired, written) in state.desired.members.iter_mut().zip(&record.members) {
            desired.changed_at = written.changed_at;
        }
        state.desired.sequence = record.sequence;
        if failing.is_empty() {
            state.witnessed = Some(record.history.head());
            state.durable_version = match broken("R6.newest") {
                true => state.desired_version,
                false => version,
            };
            self.recorded
                .store(record.not_in_sync().0, Ordering::Release);
        }
        state.durable = record;
        Ok(())
    }

    /// Writes a record's copies to the members it calls in sync; who failed,
    /// and why the first one did.
    fn write_copies(
        &self,
        record: &PoolRecord,
        buffers: &mut [Arc<AlignedBuf>],
    ) -> (MemberSet, String) {
        let mut failing = MemberSet::EMPTY;
        let mut why = String::new();
        let mut members = record_in_sync(record);
        if broken("R1.every_member") {
            members = members.iter().take(members.len().max(2) - 1).collect();
        }
        for member in members.iter() {
            let buffer = &mut buffers[member.index()];
            // An operation abandoned on a stalled member still owns its
            // buffer (R5): it gets to keep it.
            if Arc::get_mut(buffer).is_none() {
                *buffer = Arc::new(AlignedBuf::zeroed(SUPERBLOCK_BYTES as usize));
            }
            let bytes = Arc::get_mut(buffer).expect("the buffer is not shared");
            encode(record, member, bytes);
        }
        // 1. the fronts, 2. the ends.
        for place in 0..if broken("R1.second_copy") { 1 } else { 2 } {
            let targets = members.difference(failing);
            let mut batch: Vec<_> = targets
                .iter()
                .map(|member| {
                    let size = record.members[member.index()].size_bytes;
                    let data = vec![BufSlice::whole(Arc::clone(&buffers[member.index()]))];
                    let offset = places(record.sequence, size)[place];
                    self.io(
                        member,
                        offset,
                        IoOp::Write {
                            data,
                            durable: !broken("sync.superblock"),
                        },
                    )
                })
                .collect();
            self.run(&mut batch, targets.iter());
            for (io, member) in batch.iter().zip(targets.iter()) {
                // The areas are preallocated: being short of space here is a
                // failure like any other, because the sequence cannot wait.
                if let Some(Err(error)) = &io.outcome {
                    self.count_error(member);
                    if failing.is_empty() {
                        why = format!("its superblock cannot be written: {error}");
                    }
                    failing.insert(member);
                }
            }
        }
        (failing, why)
    }

    /// R1: gives members the newest superblock that they lack, before it is
    /// followed by another. Only places that do not hold it are written, so a
    /// crash cannot take it away from where it is.
    pub(super) fn write_missing_copies(
        &self,
        missing: &[(MemberIndex, [bool; 2])],
    ) -> Result<(), RaidError> {
        let record = self.durable_record();
        let mut failing = MemberSet::EMPTY;
        let mut why = String::new();
        for place in 0..2 {
            let targets: Vec<_> = missing
                .iter()
                .filter(|(member, lacks)| lacks[place] && !failing.contains(*member))
                .map(|(member, _)| *member)
                .collect();
            let mut batch: Vec<_> = targets
                .iter()
                .map(|member| {
                    let mut bytes = AlignedBuf::zeroed(SUPERBLOCK_BYTES as usize);
                    encode(&record, *member, &mut bytes);
                    let size = record.members[member.index()].size_bytes;
                    let offset = places(record.sequence, size)[place];
                    self.io(
                        *member,
                        offset,
                        IoOp::Write {
                            data: vec![bytes.into()],
                            durable: !broken("sync.missing_superblock"),
                        },
                    )
                })
                .collect();
            self.run(&mut batch, targets.iter().copied());
            for (io, member) in batch.iter().zip(&targets) {
                if let Some(Err(error)) = &io.outcome {
                    self.count_error(*member);
                    why = format!("its superblock cannot be written: {error}");
                    failing.insert(*member);
                }
            }
        }
        if failing.is_empty() {
            Ok(())
        } else {
            self.degrade(failing, &why)
        }
    }

    /// R3: makes the witness say what the superblocks say, and where the
    /// members are now.
    pub(super) fn refresh_witness(&self) -> Result<(), RaidError> {
        let wanted = self.witness_record(&self.durable_record());
        if self.witness.load()?.as_ref() != Some(&wanted) {
            self.witness.store(&wanted)?;
        }
        self.superblocks.lock().witnessed = Some(wanted.membership_id);
        Ok(())
    }

    fn witness_record(&self, record: &PoolRecord) -> WitnessRecord {
        let members = self.all.iter().map(|index| WitnessMember {
            index,
            uuid: self.member(index).uuid,
            path: self.member(index).path.clone(),
        });
        WitnessRecord {
            pool: record.pool,
            level: record.layout().level,
            members: members.collect(),
            membership_epoch: record.history.epoch,
            membership_id: record.history.head(),
        }
    }

    /// Members for a message.
    fn names(&self, members: MemberSet) -> String {
        let names: Vec<_> = members
            .iter()
            .map(|index| format!("member {index} ({})", self.member(index).path.display()))
            .collect();
        names.join(", ")
    }

    /// Sorts out the failures of a batch of writes; on `Ok` they are behind
    /// the barrier (R2), and only a lack of space may be left.
    pub(super) fn settle_writes<'a>(
        &self,
        what: &str,
        outcomes: impl Iterator<Item = (&'a Option<io::Result<()>>, MemberIndex)>,
    ) -> Result<Option<RaidError>, RaidError> {
        let mut failing = MemberSet::EMPTY;
        let mut why = String::new();
        let mut full = None;
        for (outcome, member) in outcomes {
            let Some(Err(error)) = outcome else { continue };
            self.count_error(member);
            if Fault::of(error) == Fault::NoSpace && !broken("R4.no_space") {
                full = Some(RaidError::new(
                    Kind::NoSpace,
                    format!("No space left below {}", self.names(MemberSet::of(member))),
                ));
                continue;
            }
            if failing.is_empty() {
                why = format!("{what}: {error}");
            }
            failing.insert(member);
        }
        if !failing.is_empty() {
            self.degrade(failing, &why)?;
        }
        Ok(full)
    }
}

/// The members that a record calls in sync.
fn record_in_sync(record: &PoolRecord) -> MemberSet {
    record
        .indices()
        .collect::<MemberSet>()
        .difference(record.not_in_sync())
}

/// Refuses an engine record that does not fit.
pub(super) fn check_engine_record(engine_record: &[u8]) -> Result<(), RaidError> {
    if engine_record.len() <= ENGINE_RECORD_BYTES {
        return Ok(());
    }
    Err(RaidError::new(
        Kind::InvalidArgument,
        format!(
            "The engine's record has {} bytes and may have {ENGINE_RECORD_BYTES}",
            engine_record.len()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use super::*;
    use crate::{
        CreateSpec, Level, MemoryWitness, Placement, Sizes, SlotIndex, StripeWrite,
        device::sim::SimWorld,
    };

    fn array() -> (SimWorld, MemoryWitness, Array) {
        let world = SimWorld::new(1);
        let members: Vec<PathBuf> = (0..3).map(|n| format!("disk{n}").into()).collect();
        for path in &members {
            world.add_device(path, 4 << 20);
        }
        let witness = MemoryWitness::new();
        let sizes = Sizes {
            segment_data_bytes_target: 1 << 18,
            journal_bytes: Some(1 << 16),
        };
        let spec = CreateSpec {
            level: Level::Raid5,
            stripe_unit_bytes: 4096,
            members,
            force: false,
            sizes,
        };
        let array = Array::create(world.backend(), &spec, b"", Box::new(witness.clone())).unwrap();
        array.commit(b"", false).unwrap();
        (world, witness, array)
    }

    /// Another thread has met a failure and is on its way to the barrier: the
    /// member is out of use in memory, and nobody has written that down yet.
    fn note(array: &Array) {
        let failing = MemberSet::of(MemberIndex(1));
        let mut state = array.superblocks.lock();
        array
            .note_failures(&mut state, failing, FAILED, "test")
            .unwrap();
    }

    #[test]
    fn r2_whoever_skips_a_member_waits_for_the_barrier() {
        let block = Arc::new(AlignedBuf::zeroed(4096));
        let stripe = |array: &Array| StripeWrite {
            placement: Placement::equal(array.current_layout, SlotIndex(0)),
            stripe: 0,
            data: Arc::new(AlignedBuf::zeroed(array.stripe_data_bytes() as usize)),
        };
        for act in 0..4 {
            let (world, witness, array) = array();
            let sequence = array.sequence();
            note(&array);
            assert_eq!(array.sequence(), sequence, "not written down yet");
            match act {
                0 => array.write_stripes(&[stripe(&array)]).unwrap(),
                1 => array.sync().unwrap(),
                2 => array.journal_write(0, &block).unwrap(),
                _ => array
                    .degrade(MemberSet::of(MemberIndex(1)), "again")
                    .unwrap(),
            }
            assert_eq!(array.sequence(), sequence + 1, "case {act}");
            let recorded = array.durable_record();
            assert_eq!(recorded.members[1].standing, Standing::Failed);
            let witnessed = witness.record().unwrap();
            assert_eq!(witnessed.membership_id, recorded.history.head());
            let before = world.counters("disk0").durable_writes;
            array.write_stripes(&[stripe(&array)]).unwrap();
            assert_eq!(
                world.counters("disk0").durable_writes,
                before,
                "once is enough"
            );
        }
    }

    #[test]
    fn r6_waiting_callers_share_one_write() {
        let (world, _witness, array) = array();
        let before = world.counters("disk0").durable_writes;
        // Two commits are desired before anybody writes.
        {
            let mut state = array.superblocks.lock();
            state.desired.engine_record = b"first".to_vec();
            state.desired_version += 1;
        }
        array.commit(b"second", false).unwrap();
        assert_eq!(world.counters("disk0").durable_writes - before, 2);
        assert_eq!(array.engine_record(), b"second");
    }

    /// Does something in the middle of the next durable write.
    struct Interposed {
        inner: Arc<dyn crate::device::Backend>,
        act: parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>,
    }

    impl crate::device::Backend for Interposed {
        fn name(&self) -> &'static str {
            self.inner.name()
        }
        fn open(
            &self,
            path: &std::path::Path,
            mode: crate::device::OpenMode,
        ) -> io::Result<crate::device::DeviceHandle> {
            self.inner.open(path, mode)
        }
        fn create_file(&self, path: &std::path::Path, size_bytes: u64) -> io::Result<()> {
            self.inner.create_file(path, size_bytes)
        }
        fn facts(&self, device: crate::device::DeviceHandle) -> crate::device::DeviceFacts {
            self.inner.facts(device)
        }
        fn close(&self, device: crate::device::DeviceHandle) {
            self.inner.close(device);
        }
        fn run(&self, batch: &mut [crate::device::Io], verdict: &dyn crate::device::Verdict) {
            if let Some(act) = self.act.lock().take() {
                act();
            }
            self.inner.run(batch, verdict);
        }
    }

    #[test]
    fn r6_what_is_desired_during_a_write_is_written_after_it() {
        let (world, witness, array) = array();
        drop(array);
        let backend = Arc::new(Interposed {
            inner: world.backend(),
            act: parking_lot::Mutex::default(),
        });
        let members: Vec<PathBuf> = (0..3).map(|n| format!("disk{n}").into()).collect();
        let array = Array::open(
            Arc::clone(&backend) as Arc<dyn crate::device::Backend>,
            &members,
            Box::new(witness),
            &crate::OpenOptions::default(),
        );
        let array = Arc::new(array.unwrap());
        let other = Arc::downgrade(&array);
        *backend.act.lock() = Some(Box::new(move || {
            let array = other.upgrade().unwrap();
            let state = array.superblocks.try_lock();
            let mut state = state.expect("nothing is held while superblocks are written");
            assert!(state.writing);
            state.desired.engine_record = b"second".to_vec();
            state.desired_version += 1;
        }));
        array.commit(b"first", false).unwrap();
        assert!(backend.act.lock().is_none(), "it has happened");
        assert_eq!(array.engine_record(), b"first");
        array.flush_changes().unwrap();
        assert_eq!(array.engine_record(), b"second");
    }
}
