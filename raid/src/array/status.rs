//! What an array tells about itself and its members.

use std::sync::atomic::Ordering;

use super::{
    Array,
    types::{ArrayState, ArrayStatus, MemberState, MemberStatus, Target, Unreadable},
};
use crate::{MemberIndex, superblock::Standing};

impl Array {
    /// The array and its members.
    pub fn status(&self) -> ArrayStatus {
        let roster = self.roster();
        let in_use = roster.in_use();
        let record = self.durable_record();
        let stopped = self.stop_reason.lock().clone();
        let state = match (&stopped, in_use == roster.all) {
            (Some(_), _) => ArrayState::Failed,
            (None, true) => ArrayState::Online,
            (None, false) => ArrayState::Degraded,
        };
        let rows = (0u8..).map(MemberIndex).zip(&roster.rows);
        let members = rows
            .filter(|(_, row)| !row.uuid.is_nil())
            .map(|(index, row)| {
                let standing = record
                    .members
                    .get(index.index())
                    .map(|member| member.standing);
                let state = match standing {
                    _ if in_use.contains(index) => MemberState::Online,
                    Some(Standing::Target(of)) if row.device.is_some() => {
                        match in_use.contains(of) {
                            true => MemberState::Replacing { of },
                            false => MemberState::Rebuilding { of },
                        }
                    }
                    _ if !row.present => MemberState::Missing,
                    Some(Standing::Spare) if self.read_only || roster.live(index).is_some() => {
                        MemberState::Spare
                    }
                    _ => MemberState::Failed,
                };
                let counters = &row.counters;
                MemberStatus {
                    index,
                    uuid: row.uuid,
                    path: row.path.clone(),
                    state,
                    size_bytes: row.size_bytes,
                    read_errors: counters.read_errors.load(Ordering::Relaxed),
                    write_errors: counters.write_errors.load(Ordering::Relaxed),
                    repaired: counters.repaired.load(Ordering::Relaxed),
                    reason: counters.reason.lock().clone(),
                }
            });
        ArrayStatus {
            state,
            members: members.collect(),
            stopped,
            last_failure: self.last_failure.lock().clone(),
        }
    }

    /// The targets that are written to: after opening, those whose filling
    /// was under way.
    pub fn targets(&self) -> Vec<Target> {
        let roster = self.roster();
        let targets = roster.live_targets().map(|(target, of)| Target {
            target,
            of,
            uuid: roster.rows[target.index()].uuid,
        });
        targets.collect()
    }

    /// The spares that can take over.
    pub fn spares(&self) -> Vec<MemberIndex> {
        let roster = self.roster();
        let record = self.durable_record();
        let spares = record
            .standing(|standing| standing == Standing::Spare)
            .iter();
        spares
            .filter(|spare| roster.live(*spare).is_some())
            .collect()
    }

    /// Takes the ranges whose plain read has failed since the last call, the
    /// oldest first. Only so many are kept: a scrub finds the rest.
    pub fn take_unreadable(&self) -> Vec<Unreadable> {
        self.unreadable.lock().drain(..).collect()
    }
}
