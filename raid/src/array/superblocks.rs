//! The one writer of superblocks (R6) and commits.
//!
//! There is one *desired* record and one that is *durable*. Whoever changes
//! the desired one waits until it, or a newer one, is durable; one of those
//! who wait does the writing for all, without holding a lock. A member that
//! fails during the write changes the desired record, and so becomes the next
//! write.
//!
//! One write, in this order:
//! 1. the copy at the front of every member in use, target and spare, durably;
//! 2. the copy at the end, durably: only now may the sequence go on (R1);
//! 3. the witness, if the membership has changed (R3);
//! 4. the roster that follows from the change;
//! 5. those who wait are told.

mod copies;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::MutexGuard;
use uuid::Uuid;

use super::{Array, ENGINE_RECORD_BYTES, roster::Roster};
use crate::{
    Kind, MemberIndex, RaidError, WitnessMember, WitnessRecord,
    device::AlignedBuf,
    sabotage::broken,
    superblock::{MemberRecord, PoolRecord, SUPERBLOCK_BYTES, Standing},
};

/// The state of the superblocks.
pub(super) struct Superblocks {
    /// What is to be durable; its sequence is assigned when it is written.
    pub(super) desired: PoolRecord,
    pub(super) desired_version: u64,
    /// What is durable on every member in use.
    durable: PoolRecord,
    /// The desired version that is durable and witnessed.
    durable_version: u64,
    writing: bool,
    /// The writer's own, one a row (R6, R23).
    buffers: Vec<Arc<AlignedBuf>>,
    /// The membership change that the witness holds.
    witnessed: Option<Uuid>,
}

impl Superblocks {
    pub(super) fn new(record: PoolRecord) -> Self {
        Self {
            buffers: Vec::new(),
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

    /// How many engine commits there were. The next [`Array::commit`] is one
    /// more, whatever membership changes come between.
    pub fn commits(&self) -> u64 {
        self.superblocks.lock().durable.commits
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
        self.commit_with(engine_record, clean, |_| Ok(()))
    }

    /// A commit that also changes the desired record otherwise, in the same
    /// superblock; nothing happens where `change` refuses.
    pub(super) fn commit_with(
        &self,
        engine_record: &[u8],
        clean: bool,
        change: impl FnOnce(&mut PoolRecord) -> Result<(), RaidError>,
    ) -> Result<(), RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        self.check_stopped()?;
        check_engine_record(engine_record)?;
        let mut state = self.superblocks.lock();
        change(&mut state.desired)?;
        if clean {
            self.clean.store(true, Ordering::Release);
        }
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

    /// A membership change (R3), durable and witnessed on return.
    pub(super) fn change_membership(
        &self,
        change: impl FnOnce(&mut PoolRecord) -> Result<(), RaidError>,
    ) -> Result<(), RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        self.check_stopped()?;
        let mut state = self.superblocks.lock();
        change(&mut state.desired)?;
        state.desired.history.push(self.witness.issue_id());
        state.desired_version += 1;
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    /// Makes everything noted durable.
    pub(super) fn flush_changes(&self) -> Result<(), RaidError> {
        let state = self.superblocks.lock();
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    /// Waits until `version` of the desired record is durable, writing it
    /// unless somebody else does.
    pub(super) fn wait_for(
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

    /// Runs `act` as the one writer, with the durable record.
    pub(super) fn as_writer<T>(&self, act: impl FnOnce(&PoolRecord) -> T) -> T {
        let mut state = self.superblocks.lock();
        while state.writing {
            self.superblocks_written.wait(&mut state);
        }
        state.writing = true;
        let record = state.durable.clone();
        let result = MutexGuard::unlocked(&mut state, || act(&record));
        state.writing = false;
        self.superblocks_written.notify_all();
        result
    }

    /// Writes a superblock that says nothing new: the places of the one
    /// before the last are whole afterwards.
    pub(super) fn write_again(&self) -> Result<(), RaidError> {
        let mut state = self.superblocks.lock();
        state.desired_version += 1;
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    /// Writes the newest desired record once. The lock is released meanwhile.
    fn write_desired(&self, state: &mut MutexGuard<'_, Superblocks>) -> Result<(), RaidError> {
        let version = state.desired_version;
        let mut record = state.desired.clone();
        record.sequence = state.durable.sequence + 1;
        for (n, row) in record.members.iter_mut().enumerate() {
            let same =
                |before: &MemberRecord| before.standing == row.standing && before.uuid == row.uuid;
            if row.standing != Standing::Vacant && !state.durable.members.get(n).is_some_and(same) {
                row.changed_at = record.sequence;
            }
        }
        let mut buffers = std::mem::take(&mut state.buffers);
        let witnessed = state.witnessed == Some(record.history.head());
        let roster = self.roster();
        let mut write = || {
            if broken("R3.order") {
                let _too_early = self.witness.store(&self.witness_record(&roster, &record));
            }
            let (failing, why) = self.write_copies(&roster, &record, &mut buffers);
            // After a failure that counts this record is followed by another,
            // and only that one is acknowledged and witnessed.
            let due = !witnessed && !broken("R3.witness");
            let stored = match self.none_counts(&record, &failing) && due {
                true => self.witness.store(&self.witness_record(&roster, &record)),
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
        let complete = self.none_counts(&record, &failing);
        // Becomes the next write; nobody is told before it is done. Checked
        // first: if the array stops here, the sequence stays.
        self.note_failures(state, &failing, &why)?;
        // Every member still in use holds the record now, so the sequence may
        // go on (R1).
        for (desired, written) in state.desired.members.iter_mut().zip(&record.members) {
            if desired.standing != Standing::Vacant {
                desired.changed_at = written.changed_at;
            }
        }
        state.desired.sequence = record.sequence;
        if complete {
            state.witnessed = Some(record.history.head());
            state.durable_version = match broken("R6.newest") {
                true => state.desired_version,
                false => version,
            };
            let skipped = record
                .standing(|standing| !matches!(standing, Standing::InSync | Standing::Target(_)));
            self.recorded.store(skipped.0, Ordering::Release);
            if roster.change != record.history.head() {
                self.generations.publish(self.roster().following(&record));
            }
        }
        state.durable = record;
        Ok(())
    }

    /// R3: makes the witness say what the superblocks say, and where the
    /// members are now.
    pub(super) fn refresh_witness(&self) -> Result<(), RaidError> {
        let wanted = self.witness_record(&self.roster(), &self.durable_record());
        if self.witness.load()?.as_ref() != Some(&wanted) {
            self.witness.store(&wanted)?;
        }
        self.superblocks.lock().witnessed = Some(wanted.membership_id);
        Ok(())
    }

    fn witness_record(&self, roster: &Roster, record: &PoolRecord) -> WitnessRecord {
        let named =
            |index: &MemberIndex| record.members[index.index()].standing != Standing::Vacant;
        let uuid_of = |index: MemberIndex| record.members[index.index()].uuid;
        let here = |index: &MemberIndex| roster.live_by_uuid(uuid_of(*index)).is_some();
        let taken: Vec<PathBuf> = record
            .indices()
            .filter(here)
            .map(|index| roster.path_of(uuid_of(index)))
            .collect();
        let members = record.indices().filter(named).map(|index| {
            let uuid = uuid_of(index);
            let path = roster.path_of(uuid);
            // One that went, and whose place in the file system another has
            // taken, or it itself as a target, must not be looked for there.
            let path = match here(&index) || !taken.contains(&path) {
                true => path,
                false => PathBuf::new(),
            };
            WitnessMember { index, uuid, path }
        });
        WitnessRecord {
            pool: record.pool,
            level: record.layout().level,
            members: members.collect(),
            membership_epoch: record.history.epoch,
            membership_id: record.history.head(),
        }
    }
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

/// A buffer for one superblock.
fn superblock_buffer() -> Arc<AlignedBuf> {
    Arc::new(AlignedBuf::zeroed(SUPERBLOCK_BYTES as usize))
}
