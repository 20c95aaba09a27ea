//! Opening: choose the superblocks, refuse what is not safe, bring members up
//! to date. Rules R1, R3 and R4.
//!
//! Nothing is written before everything that can refuse has been asked. Then:
//! 1. members in sync get the newest superblock where they lack it;
//! 2. members that are absent, stale or too small are recorded as failed;
//! 3. the witness gets the last membership change and the members' paths.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use super::{Array, Member, OpenOptions, Parts};
use crate::{
    Kind, MemberIndex, RaidError,
    device::{Backend, OpenMode},
    member::{Copies, Devices, OpenMember, identify, open_members, read_copies},
    membership::{Choice, Found, choose},
    sabotage::broken,
    superblock::Superblock,
    witness::{Witness, WitnessRecord},
};

/// A member that answers, with all that its superblocks say.
struct Candidate {
    member: OpenMember,
    copies: Copies,
    index: MemberIndex,
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
            );
            let Some(superblock) = identify(&member.path, &copies)? else {
                devices.close(member.device);
                continue;
            };
            let (path, size_bytes) = (member.path.clone(), member.facts.size_bytes);
            let superblock = superblock.clone();
            let index = superblock.member;
            found.push(Found {
                path,
                superblock,
                size_bytes,
            });
            candidates.push(Candidate {
                member,
                copies,
                index,
            });
        }
        let choice = choose(&found, witnessed.as_ref(), options.force)?;
        let lacking = lacking_copies(&choice, &candidates);
        let members = members_of(&choice, &candidates, witnessed.as_ref(), &mut devices);
        let array = Array::assemble(Parts {
            backend,
            witness,
            read_only: options.read_only,
            stall_limit: options.stall_limit,
            record: choice.record,
            in_use: choice.in_sync,
            members,
        });
        devices.keep();
        array.note_changes(&choice.changes)?;
        if array.read_only && !broken("R1.read_only") {
            return Ok(array);
        }
        array.write_missing_copies(&lacking)?;
        array.flush_changes()?;
        array.refresh_witness()?;
        Ok(array)
    }
}

/// R1: who lacks the newest superblock in which of its two places.
fn lacking_copies(choice: &Choice, candidates: &[Candidate]) -> Vec<(MemberIndex, [bool; 2])> {
    let lacking = candidates
        .iter()
        .filter(|candidate| choice.in_sync.contains(candidate.index))
        .map(|candidate| {
            let wanted = Superblock {
                member: candidate.index,
                record: choice.record.clone(),
            };
            (
                candidate.index,
                candidate.copies.holds(&wanted).map(|holds| !holds),
            )
        })
        .filter(|(_, lacks)| lacks.contains(&true));
    lacking.collect()
}

fn members_of(
    choice: &Choice,
    candidates: &[Candidate],
    witnessed: Option<&WitnessRecord>,
    devices: &mut Devices,
) -> Vec<Member> {
    let members = choice.record.indices().map(|index| {
        let candidate = candidates.iter().find(|candidate| candidate.index == index);
        let known =
            witnessed.and_then(|record| record.members.iter().find(|member| member.index == index));
        let path = candidate
            .map(|candidate| candidate.member.path.clone())
            .or_else(|| known.map(|known| known.path.clone()));
        let mut device = candidate.map(|candidate| candidate.member.device);
        if !choice.in_sync.contains(index)
            && let Some(unused) = device.take()
        {
            devices.close(unused);
        }
        Member {
            uuid: choice.record.members[index.index()].uuid,
            path: path.unwrap_or_default(),
            device,
            present: candidate.is_some(),
            errors: AtomicU64::new(0),
            repaired: AtomicU64::new(0),
        }
    });
    members.collect()
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
