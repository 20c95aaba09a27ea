//! Reading all superblock copies again, saying what is wrong with them, and
//! making them whole.

use std::{collections::BTreeMap, io, sync::Arc};

use super::{Array, roster::Roster, types::SuperblockScrub};
use crate::{
    MemberIndex, MemberSet, RaidError,
    device::{AlignedBuf, DeviceFacts, IoOp},
    member::{Copies, Copy, read_copies_by},
    superblock::{Absence, PoolRecord, SUPERBLOCK_BYTES, Standing, Superblock},
};

/// The four places by name, as `docs/format/superblock.md` has them.
const PLACES: [&str; 4] = ["A", "B", "A'", "B'"];

impl Array {
    /// Reads every superblock copy of members in use, targets and spares; how
    /// many, and what is wrong with them. Commits wait meanwhile.
    ///
    /// After a crash a copy may be torn until the next commit; that is as it
    /// should be and no problem. In a pool that was closed clean it is one.
    pub fn check_superblocks(&self) -> (u64, Vec<String>) {
        match self.read_only {
            true => self.compare_superblocks(&self.durable_record()),
            false => self.as_writer(|record| self.compare_superblocks(record)),
        }
    }

    fn compare_superblocks(&self, record: &PoolRecord) -> (u64, Vec<String>) {
        let roster = self.roster();
        let strict = record.clean;
        let mut checked = 0;
        let mut problems = Vec::new();
        for index in with_superblocks(&roster, record).iter() {
            let Some(copies) = self.copies_of(&roster, record, index) else {
                continue;
            };
            let wanted = Superblock {
                member: index,
                record: record.clone(),
            };
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
                    problems.push(sentence(&roster, index, place, &wrong));
                }
            }
        }
        (checked, problems)
    }

    /// Reads every superblock copy of members in use, targets and spares, and
    /// makes the wrong ones whole, while the array is in use.
    ///
    /// The newest superblock's places are written as they should be; if a
    /// place of the one before is wrong, a superblock that says nothing new
    /// follows, which goes there.
    ///
    /// # Errors
    /// As for [`Array::commit`]; `ReadOnly`.
    pub fn scrub_superblocks(&self) -> Result<Vec<SuperblockScrub>, RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        self.check_stopped()?;
        let mut scrubs = Vec::new();
        let mut older_wrong = BTreeMap::new();
        let mut gone = Vec::new();
        let (failing, why) = self.as_writer(|record| {
            let roster = self.roster();
            let mut missing = BTreeMap::new();
            for index in with_superblocks(&roster, record).iter() {
                let Some(copies) = self.copies_of(&roster, record, index) else {
                    continue;
                };
                if stalled(&copies) {
                    gone.push(Arc::clone(roster.device(index)));
                    continue;
                }
                let (newest, older) = wrong_copies(record, index, &copies);
                let wrong = newest.iter().chain(&older);
                let wrong = wrong.map(|(place, wrong)| sentence(&roster, index, *place, wrong));
                let wrong: Vec<String> = wrong.collect();
                for problem in &wrong {
                    tracing::warn!(pool = %self.pool, problem, "superblock copy");
                }
                if !newest.is_empty() {
                    let lacks = |end| newest.iter().any(|(place, _)| place / 2 == end);
                    missing.insert(index, [lacks(0), lacks(1)]);
                }
                older_wrong.insert(index, older.len() as u64);
                scrubs.push(SuperblockScrub {
                    member: index,
                    checked: copies.0.len() as u64,
                    rewritten: newest.len() as u64,
                    wrong,
                });
            }
            self.restore_copies(record, &missing)
        });
        self.fail_devices(&failing, &why)?;
        self.fail_devices(&gone, "it does not answer")?;
        if older_wrong.values().any(|wrong| *wrong > 0) {
            self.write_again()?;
        }
        let roster = self.roster();
        for scrub in &mut scrubs {
            // Who failed meanwhile was not mended.
            scrub.rewritten = match roster.live(scrub.member) {
                Some(_) => scrub.rewritten + older_wrong[&scrub.member],
                None => 0,
            };
        }
        Ok(scrubs)
    }

    fn copies_of(
        &self,
        roster: &Roster,
        record: &PoolRecord,
        index: MemberIndex,
    ) -> Option<Copies> {
        let device = roster.live(index)?;
        let facts = DeviceFacts {
            size_bytes: record.members[index.index()].size_bytes,
            ..self.backend.facts(device.handle)
        };
        let read = |offset| {
            let buffer = AlignedBuf::zeroed(SUPERBLOCK_BYTES as usize);
            let mut batch = [roster.io(index, offset, IoOp::Read(buffer))];
            self.run(roster, &mut batch);
            let [io] = batch;
            io.outcome.unwrap_or(Ok(()))?;
            match io.op {
                IoOp::Read(buffer) => Ok(buffer),
                _ => unreachable!("a read stays a read"),
            }
        };
        Some(read_copies_by(&read, &facts, false))
    }
}

/// Whether a copy was not read because its member was given up (R4).
fn stalled(copies: &Copies) -> bool {
    let timed_out = |copy: &Copy| matches!(copy, Copy::Unreadable(error) if error.kind() == io::ErrorKind::TimedOut);
    copies.0.iter().any(timed_out)
}

/// Who has superblocks that count.
fn with_superblocks(roster: &Roster, record: &PoolRecord) -> MemberSet {
    let rows = record.standing(Standing::is_written).iter();
    rows.filter(|row| roster.live(*row).is_some()).collect()
}

fn sentence(roster: &Roster, index: MemberIndex, place: usize, wrong: &str) -> String {
    let path = roster.rows[index.index()].path.display();
    format!("Superblock {} of {path} {wrong}", PLACES[place])
}

type Wrong = Vec<(usize, String)>;

/// The copies that are not as they should be while the array is in use, by
/// their place: those of the newest superblock, and of the one before.
fn wrong_copies(record: &PoolRecord, index: MemberIndex, copies: &Copies) -> (Wrong, Wrong) {
    let wanted = Superblock {
        member: index,
        record: record.clone(),
    };
    let holds = copies.holds(&wanted);
    let newest_slot = usize::from(record.sequence % 2 == 1);
    let row = &record.members[index.index()];
    // Whoever has just come has only one; a spare may have been away.
    let has_come = row.changed_at == record.sequence;
    let may_be_old = has_come || row.standing == Standing::Spare;
    let before = record.sequence - 1;
    let (mut newest, mut older) = (Vec::new(), Vec::new());
    for (place, copy) in copies.0.iter().enumerate() {
        let is_newest = place % 2 == newest_slot;
        if is_newest && holds[place / 2] {
            continue;
        }
        let wrong = match copy {
            Copy::Unreadable(error) => format!("cannot be read ({error})"),
            Copy::Bad(Absence::Damaged(reason)) => format!("is damaged ({reason})"),
            Copy::Bad(_) if !is_newest && has_come => continue,
            Copy::Bad(_) => "is missing".to_owned(),
            Copy::Whole(_) if is_newest => format!("is not superblock {}", record.sequence),
            Copy::Whole(other) if other.record.pool != record.pool => {
                format!("is of pool {}", other.record.pool)
            }
            Copy::Whole(other) if other.record.sequence != before && !may_be_old => {
                format!("is not superblock {before}")
            }
            Copy::Whole(_) => continue,
        };
        match is_newest {
            true => newest.push((place, wrong)),
            false => older.push((place, wrong)),
        }
    }
    (newest, older)
}
