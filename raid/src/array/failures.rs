//! Who has failed, and what must be durable before anybody is told (R2, R4).

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Array,
    roster::{OpenDevice, Roster},
    superblocks::Superblocks,
};
use crate::{
    Kind, MemberIndex, MemberSet, RaidError,
    device::{Io, IoOp},
    sabotage::broken,
    superblock::{MemberRecord, Standing},
};

/// What a failed operation says about its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file system under a sparse member is full: nobody's failure (R4).
    NoSpace,
    /// The member does not answer any more.
    Gone,
    /// This operation failed.
    Bad,
}

impl Fault {
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            // A file that has become too short has lost what it held.
            io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof => Self::Gone,
            _ => match error.raw_os_error() {
                Some(libc::ENODEV | libc::ENXIO | libc::EBADF) => Self::Gone,
                _ => Self::Bad,
            },
        }
    }
}

/// Whether an operation shows that its device does not work: it was left
/// without an answer, its device is gone, or a write or sync failed. A failed
/// read leaves its member in use, and a lack of space is nobody's failure (R4).
pub(super) fn shows_failure(io: &Io) -> bool {
    let Some(Err(error)) = &io.outcome else {
        return false;
    };
    match Fault::of(error) {
        Fault::NoSpace => false,
        Fault::Gone => true,
        Fault::Bad => !matches!(io.op, IoOp::Read(_)),
    }
}

impl Array {
    /// Fails a member; on `Ok` the degrade barrier is durable (R2).
    ///
    /// A target is detached instead.
    ///
    /// # Errors
    /// `TooFewMembers` where the array cannot do without it; nothing changes
    /// then (R4). `InvalidArgument` for a row that is no member's.
    pub fn fail_member(&self, member: MemberIndex, reason: &str) -> Result<(), RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        let roster = self.roster();
        if roster.target_of(member).is_none() && !roster.all.contains(member) {
            return Err(RaidError::new(
                Kind::InvalidArgument,
                format!("The pool has no member {member} that could fail"),
            ));
        }
        if !self.degrade_if_dispensable(&roster, member, reason)? {
            let names = roster.names(MemberSet::of(member));
            return Err(RaidError::new(
                Kind::TooFewMembers,
                format!("{names} cannot be done without"),
            ));
        }
        Ok(())
    }

    /// R2: fails members; on `Ok` that is durable on the survivors and
    /// witnessed. A read-only array only stops using them.
    pub(super) fn degrade(
        &self,
        roster: &Roster,
        failing: MemberSet,
        why: &str,
    ) -> Result<(), RaidError> {
        let device = |member| roster.rows[MemberIndex::index(member)].device.clone();
        let devices: Vec<_> = failing.iter().filter_map(device).collect();
        self.fail_devices(&devices, why)
    }

    /// The same by device.
    pub(super) fn fail_devices(
        &self,
        devices: &[Arc<OpenDevice>],
        why: &str,
    ) -> Result<(), RaidError> {
        let mut state = self.superblocks.lock();
        self.note_failures(&mut state, devices, why)?;
        if broken("R2.degrade") {
            return Ok(());
        }
        let version = state.desired_version;
        self.wait_for(state, version)
    }

    /// R4: fails a member unless that would stop the array; whether it has.
    pub(super) fn degrade_if_dispensable(
        &self,
        roster: &Roster,
        member: MemberIndex,
        why: &str,
    ) -> Result<bool, RaidError> {
        let Some(device) = roster.rows[member.index()].device.clone() else {
            return self.flush_changes().map(|()| true);
        };
        let mut state = self.superblocks.lock();
        let row = state.desired.row_of(device.uuid);
        let in_sync =
            row.filter(|row| state.desired.members[row.index()].standing == Standing::InSync);
        if let Some(row) = in_sync
            && !state
                .desired
                .survives(state.desired.not_in_sync().with(row))
        {
            return Ok(false);
        }
        self.note_failures(&mut state, &[device], why)?;
        let version = state.desired_version;
        self.wait_for(state, version)?;
        Ok(true)
    }

    /// Notes standings found while opening. Done before anything is written,
    /// because members that are not there cannot be written to; made durable
    /// by [`Array::flush_changes`], before the first write (R1).
    pub(super) fn note_changes(
        &self,
        changes: &[(MemberIndex, Standing)],
    ) -> Result<(), RaidError> {
        let mut state = self.superblocks.lock();
        for (member, standing) in changes {
            let why = match standing {
                Standing::Absent => "it was not found",
                Standing::Stale => "it is behind the others",
                Standing::Vacant => "the target is missing or has lost writes",
                _ => "it has become too small",
            };
            self.note(&mut state, &[(*member, *standing)], why)?;
            if let Some(row) = self.roster().rows.get(member.index()) {
                *row.counters.reason.lock() = Some(why.to_owned());
            }
        }
        Ok(())
    }

    /// Notes that devices have failed, by whatever row they have by now.
    pub(super) fn note_failures(
        &self,
        state: &mut Superblocks,
        devices: &[Arc<OpenDevice>],
        why: &str,
    ) -> Result<(), RaidError> {
        let standing_of = |device: &Arc<OpenDevice>| {
            let row = state.desired.row_of(device.uuid)?;
            match state.desired.members[row.index()].standing {
                Standing::InSync => Some((row, Standing::Failed)),
                // R4 looks at members in sync only: a target never counts.
                Standing::Target(_) => Some((row, Standing::Vacant)),
                _ => None,
            }
        };
        let changes: Vec<_> = devices.iter().filter_map(standing_of).collect();
        self.note(state, &changes, why)?;
        for device in devices {
            device.fail(why);
        }
        Ok(())
    }

    fn note(
        &self,
        state: &mut Superblocks,
        changes: &[(MemberIndex, Standing)],
        why: &str,
    ) -> Result<(), RaidError> {
        if changes.is_empty() {
            return Ok(());
        }
        let failed = state.desired.not_in_sync();
        let fresh: MemberSet = changes.iter().map(|(member, _)| *member).collect();
        let names = self.roster().names(fresh);
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
        *self.last_failure.lock() = Some(format!("{names}: {why}"));
        for (member, standing) in changes {
            let row = &mut state.desired.members[member.index()];
            match standing {
                Standing::Vacant => *row = MemberRecord::VACANT,
                standing => row.standing = *standing,
            }
        }
        if self.read_only {
            // Nothing is written, so there is nothing that skipped them.
            return Ok(());
        }
        state.desired.history.push(self.witness.issue_id());
        state.desired_version += 1;
        Ok(())
    }

    /// R2: returns once every member that a write skipped is known as failed
    /// on disk. `used` are the members and targets that took part.
    pub(super) fn barrier(&self, roster: &Roster, used: MemberSet) -> Result<(), RaidError> {
        if broken("R2.barrier") {
            return Ok(());
        }
        let skipped = roster.expected().difference(used);
        if skipped
            .difference(MemberSet(self.recorded.load(Ordering::Acquire)))
            .is_empty()
        {
            return Ok(());
        }
        self.flush_changes()
    }

    /// Sorts out the failures of a batch of writes; on `Ok` they are behind
    /// the barrier (R2), and only a lack of space may be left.
    pub(super) fn settle_writes<'a>(
        &self,
        roster: &Roster,
        what: &str,
        outcomes: impl Iterator<Item = (&'a Option<io::Result<()>>, MemberIndex)>,
    ) -> Result<Option<RaidError>, RaidError> {
        let mut failing = MemberSet::EMPTY;
        let mut why = String::new();
        let mut full = None;
        for (outcome, member) in outcomes {
            let Some(Err(error)) = outcome else { continue };
            roster.rows[member.index()].counters.write_failed();
            // Whoever fills a target has no room for it; the pool has.
            let full_pool = roster.all.contains(member) && !broken("R4.no_space");
            if Fault::of(error) == Fault::NoSpace && full_pool {
                full = Some(RaidError::new(
                    Kind::NoSpace,
                    format!(
                        "No space left below {}",
                        roster.names(MemberSet::of(member))
                    ),
                ));
                continue;
            }
            if failing.is_empty() {
                why = format!("{what}: {error}");
            }
            failing.insert(member);
        }
        if !failing.is_empty() {
            self.degrade(roster, failing, &why)?;
        }
        Ok(full)
    }

    /// Counts failed reads, and fails members that are gone, or have failed
    /// too many reads lately and can be done without. Any other read error
    /// leaves its member in use: it may still hold what others lack.
    pub(super) fn note_failures_of_reads<'a>(
        &self,
        roster: &Roster,
        outcomes: impl Iterator<Item = (&'a Option<io::Result<()>>, MemberIndex)>,
    ) {
        let mut gone = MemberSet::EMPTY;
        let mut worn = MemberSet::EMPTY;
        let mut why = String::new();
        for (outcome, member) in outcomes {
            let Some(Err(error)) = outcome else { continue };
            let limit = self.limits.get().read_errors_per_hour;
            let counters = &roster.rows[member.index()].counters;
            if counters.read_failed(self.clock.now(), limit) {
                worn.insert(member);
            }
            tracing::debug!(%member, %error, "a read failed");
            if Fault::of(error) == Fault::Gone {
                gone.insert(member);
                why = format!("it does not answer: {error}");
            }
        }
        // Reads still try if this fails; it is the writes that have stopped.
        let warn = |error: RaidError| tracing::warn!(%error, "a member is gone");
        if !gone.is_empty() {
            self.degrade(roster, gone, &why).unwrap_or_else(warn);
        }
        for member in worn.difference(gone).iter() {
            let why = "too many reads failed within an hour";
            if let Err(error) = self.degrade_if_dispensable(roster, member, why) {
                warn(error);
            }
        }
    }
}
