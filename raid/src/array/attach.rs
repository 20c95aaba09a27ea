//! Members that come and go: spares, targets, promotion.
//!
//! `docs/members.md` has the states, the orders and what a crash leaves. In
//! short: the device is laid out and durable before any superblock names it;
//! superblocks and witness are durable before anybody relies on it; and a
//! target is complete only when everything that began before it was attached
//! has ended.

use std::{path::Path, sync::Arc};

use uuid::Uuid;

use super::{
    Array,
    limits::Counters,
    prepare::{lay_out, zero_journal},
    roster::{OpenDevice, Row},
    types::{Attached, Source},
};
use crate::{
    Kind, MAX_MEMBERS, MemberIndex, MemberSet, RaidError,
    device::OpenMode,
    member::{Devices, OpenMember, identify, open_members, read_copies, refuse_used},
    superblock::{MemberRecord, PoolRecord, Standing},
};

/// How long to wait for a lock: an operation abandoned on the device may
/// still hold it (R5).
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

fn invalid(message: String) -> RaidError {
    RaidError::new(Kind::InvalidArgument, message)
}

impl Array {
    /// Adds a device that waits to replace a member that fails. It is laid
    /// out and named by superblocks and witness on return.
    ///
    /// # Errors
    /// `AlreadyUsed` where it holds something (unless forced),
    /// `InvalidArgument` where it is too small or a member already, `Locked`,
    /// `Stalled`, `NoSpace`, `Io`: nothing has changed then.
    pub fn add_spare(&self, path: &Path, force: bool) -> Result<MemberIndex, RaidError> {
        let _order = self.begin_order()?;
        let (devices, opened) = self.open_new(path, force)?;
        let row = self.lay_out_new(&opened)?;
        devices.keep();
        self.enroll(row, Standing::Spare)
    }

    /// Takes a spare out of the pool; its device is closed.
    ///
    /// # Errors
    /// `InvalidArgument` where the row is not a spare's.
    pub fn remove_spare(&self, spare: MemberIndex) -> Result<(), RaidError> {
        let _order = self.begin_order()?;
        self.change_membership(|record| {
            let row = record.members.get_mut(spare.index());
            let row = row.filter(|row| row.standing == Standing::Spare);
            *row.ok_or_else(|| invalid(format!("Member {spare} is not a spare")))? =
                MemberRecord::VACANT;
            Ok(())
        })
    }

    /// Attaches a target that is to take `of`'s place. On return superblocks
    /// and witness name it, every whole stripe begun later goes to it too, and
    /// everything begun before has ended.
    ///
    /// What it holds from before is not known but for [`Attached::since`]:
    /// [`Array::rebuild_stripes`] fills it, [`Array::commit_promoting`] ends.
    ///
    /// # Errors
    /// `InvalidArgument` where `of` is no member or has a target already, or
    /// the device is too small (the message has the bytes needed), or one
    /// that returns is not `of`, or `of` is in use; `Diverged` where it has
    /// gone on alone; and as for [`Array::add_spare`]. Nothing has changed
    /// then. `TargetLost` where it failed meanwhile.
    pub fn attach(&self, of: MemberIndex, source: &Source) -> Result<Attached, RaidError> {
        let _order = self.begin_order()?;
        self.check_attachable(of)?;
        let (target, uuid, since) = match source {
            Source::Spare(spare) => {
                let uuid = self.take_spare(*spare, of)?;
                (*spare, uuid, None)
            }
            Source::NewDevice { path, force } => {
                self.let_go(of);
                let (devices, opened) = self.open_new(path, *force)?;
                let row = self.lay_out_new(&opened)?;
                let uuid = row.uuid;
                devices.keep();
                (self.enroll(row, Standing::Target(of))?, uuid, None)
            }
            Source::Returning { path } => {
                self.let_go(of);
                let mut devices = Devices::new(Arc::clone(&self.backend));
                let opened = self.open_one(&mut devices, path)?;
                let since = self.check_returning(of, &opened)?;
                let limit = self.limits.get().stall;
                // A journal of before must not be merged with what follows.
                zero_journal(self.backend.as_ref(), &opened, &self.geometry, limit)?;
                let row = self.row_for(&opened);
                let uuid = row.uuid;
                devices.keep();
                let target = self.enroll(row, Standing::Target(of))?;
                (target, uuid, Some(since))
            }
        };
        // Whoever still works without the target ends before we return.
        self.generations.wait_for_older();
        if self.roster().target_of(target) != Some(of) {
            return Err(lost(target));
        }
        Ok(Attached {
            target,
            uuid,
            since,
        })
    }

    /// Gives a target up: nothing is written to it any more, and it is none
    /// of the pool's. Durable on return.
    ///
    /// # Errors
    /// `TargetLost` where it is none any more.
    pub fn detach(&self, target: MemberIndex, reason: &str) -> Result<(), RaidError> {
        let _order = self.begin_order()?;
        let roster = self.roster();
        let names = roster.names(MemberSet::of(target));
        drop(roster);
        self.change_membership(|record| {
            let row = record.members.get_mut(target.index());
            let row = row.filter(|row| matches!(row.standing, Standing::Target(_)));
            *row.ok_or_else(|| lost(target))? = MemberRecord::VACANT;
            Ok(())
        })?;
        tracing::info!(pool = %self.pool, target = %names, reason, "target detached");
        Ok(())
    }

    /// A commit (see [`Array::commit`]) whose superblock also puts the target
    /// into its member's place, in sync. Whoever was there is out.
    ///
    /// The caller promises that the target holds everything its member
    /// should, synced, and that the commit's journal starts behind the attach
    /// (R16: journal writes have gone to the target since then).
    ///
    /// # Errors
    /// `TargetLost` where it is no target any more: nothing was committed.
    /// Else as for [`Array::commit`].
    pub fn commit_promoting(
        &self,
        engine_record: &[u8],
        clean: bool,
        target: MemberIndex,
    ) -> Result<(), RaidError> {
        let _order = self.begin_order()?;
        self.commit_with(engine_record, clean, |record| {
            let row = record.members.get(target.index());
            let (of, row) = match row {
                Some(row) => match row.standing {
                    Standing::Target(of) => (of, row.clone()),
                    _ => return Err(lost(target)),
                },
                None => return Err(lost(target)),
            };
            // R16: one superblock says both, so no crash sees half.
            record.members[of.index()] = MemberRecord {
                standing: Standing::InSync,
                ..row
            };
            record.members[target.index()] = MemberRecord::VACANT;
            record.history.push(self.witness.issue_id());
            Ok(())
        })
    }

    fn begin_order(&self) -> Result<parking_lot::MutexGuard<'_, ()>, RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        self.check_stopped()?;
        Ok(self.memberships.lock())
    }

    fn check_attachable(&self, of: MemberIndex) -> Result<(), RaidError> {
        let state = self.superblocks.lock();
        let record = &state.desired;
        if !record.layout_members().contains(of) {
            return Err(invalid(format!("The pool has no member {of}")));
        }
        let targets = record.standing(|standing| standing == Standing::Target(of));
        if let Some(target) = targets.lowest() {
            return Err(invalid(format!(
                "Member {of} is being replaced already, by member {target}"
            )));
        }
        Ok(())
    }

    /// Closes the device of a member that is not in use, so that it can be
    /// opened again. Its unfinished operations keep it open (R5).
    fn let_go(&self, of: MemberIndex) {
        let roster = self.roster();
        if roster.in_use().contains(of) {
            return;
        }
        let uuid = roster.rows[of.index()].uuid;
        drop(roster);
        {
            let _state = self.superblocks.lock();
            self.generations.publish(self.roster().without_device(uuid));
        }
        self.generations.wait_for_older();
    }

    fn open_one(&self, devices: &mut Devices, path: &Path) -> Result<OpenMember, RaidError> {
        let mode = OpenMode {
            writable: true,
            lock_patience: LOCK_PATIENCE,
        };
        let opened = open_members(devices, &[path.to_owned()], mode, true)?;
        let opened = opened.into_iter().next().expect("it must exist");
        let needed = self.geometry.size_for(u64::from(self.slot_count));
        if opened.facts.size_bytes < needed {
            return Err(invalid(format!(
                "{} is too small: it has {} bytes, {needed} are needed",
                path.display(),
                opened.facts.size_bytes
            )));
        }
        Ok(opened)
    }

    /// Opens a device that is not the pool's.
    fn open_new(&self, path: &Path, force: bool) -> Result<(Devices, OpenMember), RaidError> {
        let mut devices = Devices::new(Arc::clone(&self.backend));
        let identities: Vec<_> = {
            let roster = self.roster();
            let live = roster.devices().filter(|device| !device.has_failed());
            live.map(|device| self.backend.facts(device.handle).identity)
                .collect()
        };
        let opened = self.open_one(&mut devices, path)?;
        if identities.contains(&opened.facts.identity) {
            let message = format!("{} is a member of the pool already", path.display());
            return Err(RaidError::new(Kind::DuplicateMember, message));
        }
        if !force {
            refuse_used(self.backend.as_ref(), &opened, self.limits.get().stall)?;
        }
        Ok((devices, opened))
    }

    fn lay_out_new(&self, opened: &OpenMember) -> Result<Row, RaidError> {
        let limit = self.limits.get().stall;
        let members = std::slice::from_ref(opened);
        lay_out(self.backend.as_ref(), members, &self.geometry, true, limit)?;
        Ok(self.row_for(opened))
    }

    /// A row for a device, under a new identity: one that returns must not be
    /// taken for the member it was before it is whole again.
    fn row_for(&self, opened: &OpenMember) -> Row {
        let uuid = self.witness.issue_id();
        let counters = Arc::new(Counters::default());
        let backend = Arc::clone(&self.backend);
        let device = OpenDevice::new(backend, opened.device, uuid, Arc::clone(&counters));
        Row {
            uuid,
            path: opened.path.clone(),
            size_bytes: opened.facts.size_bytes,
            device: Some(device),
            present: true,
            counters,
        }
    }

    /// Gives a device a row: superblocks, then witness (R3).
    fn enroll(&self, row: Row, standing: Standing) -> Result<MemberIndex, RaidError> {
        let (uuid, size_bytes) = (row.uuid, row.size_bytes);
        let forget = || {
            let _state = self.superblocks.lock();
            self.generations.publish(self.roster().without_device(uuid));
        };
        {
            // The superblock writer must find its device.
            let _state = self.superblocks.lock();
            self.generations.publish(self.roster().with_incoming(row));
        }
        let mut index = MemberIndex(0);
        let enrolled = self.change_membership(|record| {
            index = free_row(record)?;
            record.members[index.index()] = MemberRecord {
                uuid,
                size_bytes,
                // A larger member brings no room before all others have it.
                slot_count: self.slot_count,
                standing,
                changed_at: 0,
            };
            Ok(())
        });
        if let Err(error) = enrolled {
            forget();
            return Err(error);
        }
        // A device that could not even take its first superblock.
        let roster = self.roster();
        if roster.live(index).is_none_or(|device| device.uuid != uuid) {
            drop(roster);
            let held = |record: &PoolRecord| record.row_of(uuid).is_some();
            if held(&self.durable_record()) {
                self.change_membership(|record| {
                    if let Some(row) = record.row_of(uuid) {
                        record.members[row.index()] = MemberRecord::VACANT;
                    }
                    Ok(())
                })?;
            }
            forget();
            return Err(lost(index));
        }
        Ok(index)
    }

    /// Makes a spare a target; its identity.
    fn take_spare(&self, spare: MemberIndex, of: MemberIndex) -> Result<Uuid, RaidError> {
        let usable = self.roster().live(spare).is_some();
        let mut uuid = Uuid::nil();
        self.change_membership(|record| {
            let row = record.members.get_mut(spare.index());
            let row = row.filter(|row| row.standing == Standing::Spare && usable);
            let row = row.ok_or_else(|| {
                invalid(format!("Member {spare} is not a spare that can be used"))
            })?;
            row.standing = Standing::Target(of);
            uuid = row.uuid;
            Ok(())
        })?;
        Ok(uuid)
    }

    /// R3: whether a device is the member `of`, come back, and nothing else
    /// has happened to it; how many engine commits it knows.
    fn check_returning(&self, of: MemberIndex, opened: &OpenMember) -> Result<u64, RaidError> {
        let path = opened.path.display();
        let limit = self.limits.get().stall;
        let backend = self.backend.as_ref();
        let copies = read_copies(backend, opened.device, &opened.facts, true, limit);
        let Some(superblock) = identify(&opened.path, &copies)? else {
            return Err(RaidError::new(
                Kind::Io,
                format!("No superblock of {path} can be read"),
            ));
        };
        let state = self.superblocks.lock();
        let (record, theirs) = (&state.desired, &superblock.record);
        let row = &record.members[of.index()];
        if theirs.pool != record.pool || superblock.own().uuid != row.uuid {
            return Err(invalid(format!(
                "{path} is not member {of} of this pool; replace the member with it instead"
            )));
        }
        if row.standing == Standing::InSync {
            return Err(invalid(format!(
                "Member {of} is in use and needs no return"
            )));
        }
        // At the sequence that named it failed it had a superblock that the
        // others never got: their commits have been other ones since.
        if theirs.sequence >= row.changed_at || !record.history.descends_from(theirs.history.head())
        {
            return Err(RaidError::new(
                Kind::Diverged,
                format!(
                    "{path} has gone on without the pool, or has been away too long; \
                     replace the member with it instead"
                ),
            ));
        }
        if superblock.own().standing != Standing::InSync || opened.facts.size_bytes < row.size_bytes
        {
            return Err(invalid(format!(
                "{path} was not whole when it went; replace the member with it instead"
            )));
        }
        Ok(theirs.commits)
    }
}

/// A row that nobody has.
fn free_row(record: &mut PoolRecord) -> Result<MemberIndex, RaidError> {
    let vacant = record.standing(|standing| standing == Standing::Vacant);
    if let Some(vacant) = vacant.lowest() {
        return Ok(vacant);
    }
    let next = record.members.len();
    if next == MAX_MEMBERS {
        return Err(invalid(format!(
            "The pool has {MAX_MEMBERS} members and spares, which is all it can have"
        )));
    }
    record.members.push(MemberRecord::VACANT);
    Ok(MemberIndex(u8::try_from(next).expect("below 64")))
}

pub(super) fn lost(target: MemberIndex) -> RaidError {
    RaidError::new(
        Kind::TargetLost,
        format!("Member {target} is no target any more: it failed or was detached"),
    )
}
