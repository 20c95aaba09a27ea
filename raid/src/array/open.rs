//! Opening: choose the superblocks, refuse what is not safe, bring members up
//! to date. Rules R1, R3 and R4.
//!
//! Nothing is written before everything that can refuse has been asked. Then:
//! 1. members in sync get the newest superblock where they lack it;
//! 2. members that are absent, stale or too small are recorded as failed;
//! 3. the witness gets the last membership change and the members' paths.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    Array, OpenOptions, Parts,
    limits::Counters,
    roster::{OpenDevice, Row},
};
use crate::{
    Kind, MemberIndex, RaidError,
    device::{Backend, OpenMode},
    member::{Copies, Devices, OpenMember, identify, open_members, read_copies},
    membership::{Choice, Found, choose},
    sabotage::broken,
    superblock::{Standing, Superblock},
    witness::{Witness, WitnessRecord},
};

/// A member that answers, with all that its superblocks say.
struct Candidate {
    member: OpenMember,
    copies: Copies,
}

impl Array {
    /// Opens an array from its members, given in any order (R1 to R4).
    ///
    /// Members that are not there are left out as long as the layouts survive
    /// it. A writable array on return has recorded them as failed; a
    /// read-only one has written nothing.
    ///
    /// # Errors
    /// By kind: `TooFewMembers`, `DifferentPools`, `DuplicateMember`,
    /// `NotAMember`, `NewerFormat`, `Locked`, `Diverged`, `Behind`,
    /// `NeedsForce`; nothing has been written then. `Io`, `Stopped` and
    /// `Witness` where bringing the members up to date failed.
    pub fn open(
        backend: Arc<dyn Backend>,
        members: &[PathBuf],
        witness: Box<dyn Witness>,
        options: &OpenOptions,
    ) -> Result<Array, RaidError> {
        let witnessed = witness.load()?;
        let mode = OpenMode {
            writable: !options.read_only,
            lock_patience: options.lock_patience,
        };
        let mut devices = Devices::new(Arc::clone(&backend));
        let mut candidates = Vec::new();
        let mut found = Vec::new();
        for member in open_members(&mut devices, members, mode, false)? {
            let copies = read_copies(
                backend.as_ref(),
                member.device,
                &member.facts,
                mode.writable,
                options.answer_patience,
            );
            let Some(superblock) = identify(&member.path, &copies)? else {
                devices.close(member.device);
                continue;
            };
            let (path, size_bytes) = (member.path.clone(), member.facts.size_bytes);
            let superblock = superblock.clone();
            found.push(Found {
                path,
                superblock,
                size_bytes,
            });
            candidates.push(Candidate { member, copies });
        }
        let choice = choose(&found, witnessed.as_ref(), options.force)?;
        let lacking = lacking_copies(&choice, &candidates);
        let rows = rows_of(
            &backend,
            &choice,
            &candidates,
            witnessed.as_ref(),
            &mut devices,
        );
        let record = choice.record.clone();
        let array = Array::assemble(Parts {
            backend,
            witness,
            read_only: options.read_only,
            limits: options.limits(),
            clock: Arc::clone(&options.clock),
            record: choice.record,
            rows,
        });
        devices.keep();
        // R1: who is not here is recorded before the first write.
        if !broken("R1.absent") {
            array.note_changes(&choice.changes)?;
        }
        if array.read_only && !broken("R1.read_only") {
            return Ok(array);
        }
        array.write_missing_copies(&record, &lacking)?;
        array.flush_changes()?;
        array.refresh_witness()?;
        Ok(array)
    }
}

/// R1: who lacks the newest superblock in which of its two places.
fn lacking_copies(choice: &Choice, candidates: &[Candidate]) -> BTreeMap<MemberIndex, [bool; 2]> {
    let used = choice.in_sync.union(choice.targets).union(choice.spares);
    let lacking = candidates
        .iter()
        .zip(&choice.rows)
        .filter_map(|(candidate, row)| {
            let row = row.filter(|row| used.contains(*row))?;
            let wanted = Superblock {
                member: row,
                record: choice.record.clone(),
            };
            let lacks = candidate.copies.holds(&wanted).map(|holds| !holds);
            lacks.contains(&true).then_some((row, lacks))
        });
    lacking.collect()
}

/// Who is behind which row. Devices of no use are closed.
fn rows_of(
    backend: &Arc<dyn Backend>,
    choice: &Choice,
    candidates: &[Candidate],
    witnessed: Option<&WitnessRecord>,
    devices: &mut Devices,
) -> Vec<Row> {
    let used = choice.in_sync.union(choice.targets).union(choice.spares);
    for (candidate, row) in candidates.iter().zip(&choice.rows) {
        if row.is_none() {
            let path = candidate.member.path.display();
            tracing::warn!(%path, "left out: another member has taken its place");
        }
        if row.is_none_or(|row| !used.contains(row)) {
            devices.close(candidate.member.device);
        }
    }
    let named =
        |index: &MemberIndex| choice.record.members[index.index()].standing != Standing::Vacant;
    let rows = choice.record.indices().filter(named).map(|index| {
        let uuid = choice.record.members[index.index()].uuid;
        let place = choice.rows.iter().position(|row| *row == Some(index));
        let candidate = place.map(|place| &candidates[place]);
        let known =
            witnessed.and_then(|record| record.members.iter().find(|member| member.uuid == uuid));
        let path = candidate
            .map(|candidate| candidate.member.path.clone())
            .or_else(|| known.map(|known| known.path.clone()));
        let counters = Arc::new(Counters::default());
        let device = candidate
            .filter(|_| used.contains(index))
            .map(|candidate| candidate.member.device);
        Row {
            uuid,
            path: path.unwrap_or_default(),
            size_bytes: 0,
            device: device.map(|device| {
                OpenDevice::new(Arc::clone(backend), device, uuid, Arc::clone(&counters))
            }),
            present: candidate.is_some(),
            counters,
        }
    });
    rows.collect()
}

impl Array {
    /// For `create`, which has just written the superblocks itself.
    pub(super) fn finish_creation(self) -> Result<Array, RaidError> {
        self.refresh_witness().map_err(|error| {
            if error.kind() == Kind::Witness {
                return error;
            }
            RaidError::new(Kind::Witness, format!("The pool's witness failed: {error}"))
        })?;
        Ok(self)
    }
}
