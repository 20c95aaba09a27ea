//! Reading all superblock copies again and saying what is wrong with them.

use super::Array;
use crate::{
    device::DeviceFacts,
    member::{Copy, read_copies},
    superblock::{Absence, Superblock},
};

/// The four places by name, as `docs/format/superblock.md` has them.
const PLACES: [&str; 4] = ["A", "B", "A'", "B'"];

impl Array {
    /// Reads every superblock copy of the members in use; how many, and what
    /// is wrong with them. Not to be called while commits are under way.
    ///
    /// After a crash a copy may be torn until the next commit; that is as it
    /// should be and no problem. In a pool that was closed clean it is one.
    pub fn check_superblocks(&self) -> (u64, Vec<String>) {
        let record = self.durable_record();
        let strict = record.clean;
        let mut checked = 0;
        let mut problems = Vec::new();
        for index in self.in_use().iter() {
            let member = self.member(index);
            let wanted = Superblock {
                member: index,
                record: record.clone(),
            };
            let facts = DeviceFacts {
                size_bytes: record.members[index.index()].size_bytes,
                ..self.backend.facts(self.device(index))
            };
            let copies = read_copies(self.backend.as_ref(), self.device(index), &facts, false);
            let holds = copies.holds(&wanted);
            let newest = usize::from(record.sequence % 2 == 1);
            for (place, copy) in copies.0.iter().enumerate() {
                checked += 1;
                let is_newest = place % 2 == newest;
                let wrong = match copy {
                    Copy::Unreadable(error) => Some(format!("cannot be read ({error})")),
                    _ if is_newest && holds[place / 2] => None,
                    // A read-only array does not mend what a crash left.
                    _ if is_newest && self.read_only && !strict => None,
                    Copy::Bad(Absence::Damaged(reason)) if is_newest || strict => {
                        Some(format!("is damaged ({reason})"))
                    }
                    Copy::Bad(_) if is_newest => Some("is missing".to_owned()),
                    Copy::Whole(_) if is_newest => {
                        Some(format!("is not superblock {}", record.sequence))
                    }
                    Copy::Whole(other) if other.record.pool != record.pool => {
                        Some(format!("is of pool {}", other.record.pool))
                    }
                    _ => None,
                };
                if let Some(wrong) = wrong {
                    problems.push(format!(
                        "Superblock {} of {} {wrong}",
                        PLACES[place],
                        member.path.display()
                    ));
                }
            }
        }
        (checked, problems)
    }
}
