//! Which members to trust: rules R1 and R3, without any I/O.
//!
//! Superblocks carry one sequence (R1). It is not advanced before its last
//! value is durable on every in-sync member, so what is found says this:
//!
//! | a member's sequence, the newest being N | it is |
//! | --- | --- |
//! | N | current |
//! | N - 1, and N does not name it failed | current, the last superblock is missing |
//! | less | stale: it has lost writes |
//!
//! Every membership change has a random id, and superblocks keep the last
//! ones (R3). Who a device is says its identity, not the row in its own
//! superblock: a target changes its row when it is promoted. Whoever has X's last id in its history descends from X. The
//! witness holds the last id as well: members that do not descend from it are
//! a half that was left behind.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::{
    Kind, MemberIndex, MemberSet, RaidError, WitnessRecord,
    sabotage::broken,
    superblock::{PoolRecord, Standing, Superblock},
};

/// A member that was found, with its newest superblock.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) superblock: Superblock,
    /// How large it is now.
    pub(crate) size_bytes: u64,
}

impl Found {
    fn sequence(&self) -> u64 {
        self.superblock.record.sequence
    }

    fn uuid(&self) -> Uuid {
        self.superblock.own().uuid
    }

    fn age(&self) -> (u64, u64) {
        (self.superblock.record.history.epoch, self.sequence())
    }
}

/// What to open.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    /// The newest superblock, unchanged.
    pub(crate) record: PoolRecord,
    /// The members to use.
    pub(crate) in_sync: MemberSet,
    /// The targets that have lost no write.
    pub(crate) targets: MemberSet,
    /// The spares that are there.
    pub(crate) spares: MemberSet,
    /// The row of each member found; `None` for one that has none any more.
    pub(crate) rows: Vec<Option<MemberIndex>>,
    /// Standings that the newest superblock does not know yet; to be recorded
    /// before the first write (R1).
    pub(crate) changes: Vec<(MemberIndex, Standing)>,
}

/// Decides which of the members found make up the pool, or why none do.
pub(crate) fn choose(
    found: &[Found],
    witness: Option<&WitnessRecord>,
    force: bool,
) -> Result<Choice, RaidError> {
    refuse_different_pools(found, witness)?;
    refuse_duplicates(found)?;
    // A spare knows nothing that counts, and may have been away for long.
    let newest = found
        .iter()
        .filter(|member| member.superblock.own().standing != Standing::Spare)
        .max_by_key(|member| member.age())
        .ok_or_else(|| RaidError::new(Kind::TooFewMembers, "No member of the pool was found"))?;
    let record = &newest.superblock.record;
    refuse_diverged(found, newest)?;
    if let Some(witness) = witness {
        refuse_behind(found, record, witness)?;
    }
    let rows: Vec<Option<MemberIndex>> = found
        .iter()
        .map(|member| record.row_of(member.uuid()))
        .collect();
    let mut choice = Choice {
        record: record.clone(),
        in_sync: MemberSet::EMPTY,
        targets: MemberSet::EMPTY,
        spares: MemberSet::EMPTY,
        rows,
        changes: Vec::new(),
    };
    for index in record.indices() {
        let row = &record.members[index.index()];
        let member = found.iter().find(|member| member.uuid() == row.uuid);
        let shrunken = member.is_some_and(|member| member.size_bytes < row.size_bytes);
        // R1: at most one behind, it lacks a superblock but no write.
        let current = member.is_some_and(|member| member.sequence() + 1 >= record.sequence);
        match row.standing {
            // Named failed: only a rebuild brings it back (R2).
            Standing::Failed | Standing::Absent | Standing::Stale
                if member.is_some() && broken("R2.named_failed") =>
            {
                choice.in_sync.insert(index);
            }
            Standing::Failed | Standing::Absent | Standing::Stale | Standing::Vacant => {}
            Standing::Spare if member.is_some() && !shrunken => choice.spares.insert(index),
            Standing::Spare => {}
            Standing::Target(_) if (current || broken("R1.target")) && !shrunken => {
                choice.targets.insert(index)
            }
            Standing::Target(_) => choice.changes.push((index, Standing::Vacant)),
            Standing::InSync if member.is_none() => {
                choice.changes.push((index, Standing::Absent));
            }
            Standing::InSync if shrunken => choice.changes.push((index, Standing::Failed)),
            Standing::InSync if current || broken("R1.stale") => choice.in_sync.insert(index),
            Standing::InSync => choice.changes.push((index, Standing::Stale)),
        }
    }
    refuse_too_few(found, &choice, witness)?;
    if witness.is_none() && !force {
        refuse_unwitnessed_half(found, record)?;
    }
    Ok(choice)
}

fn refuse_different_pools(
    found: &[Found],
    witness: Option<&WitnessRecord>,
) -> Result<(), RaidError> {
    let mut pools: BTreeMap<_, Vec<&Path>> = BTreeMap::new();
    for member in found {
        pools
            .entry(member.superblock.record.pool)
            .or_default()
            .push(&member.path);
    }
    if pools.len() > 1 {
        let sides: Vec<_> = pools
            .iter()
            .map(|(pool, paths)| format!("{} of {pool}", list(paths)))
            .collect();
        return Err(RaidError::new(
            Kind::DifferentPools,
            format!(
                "The members belong to different pools: {}",
                sides.join("; ")
            ),
        ));
    }
    if let (Some((pool, paths)), Some(witness)) = (pools.first_key_value(), witness)
        && *pool != witness.pool
    {
        return Err(RaidError::new(
            Kind::DifferentPools,
            format!(
                "{} of pool {pool}, but this is pool {}",
                list(paths),
                witness.pool
            ),
        ));
    }
    Ok(())
}

fn refuse_duplicates(found: &[Found]) -> Result<(), RaidError> {
    for (n, one) in found.iter().enumerate() {
        for other in &found[n + 1..] {
            if one.uuid() == other.uuid() {
                return Err(RaidError::new(
                    Kind::DuplicateMember,
                    format!(
                        "{} and {} both say they are member {} of the pool; leave the copy out",
                        one.path.display(),
                        other.path.display(),
                        one.superblock.member
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// R3: every member must be an ancestor of the newest, or its equal.
fn refuse_diverged(found: &[Found], newest: &Found) -> Result<(), RaidError> {
    let record = &newest.superblock.record;
    let connects = |member: &Found| {
        let theirs = &member.superblock.record;
        // By its identity: a target that was promoted still has another row.
        let standing = record
            .row_of(member.uuid())
            .map(|row| record.members[row.index()].standing);
        // Nothing of what a spare knows counts.
        if member.superblock.own().standing == Standing::Spare
            && !standing.is_some_and(Standing::is_of_layouts)
        {
            return true;
        }
        let newer = member.sequence() > record.sequence;
        // The same sequence with another history is another superblock, which
        // only a member already given up can have.
        let rival = member.sequence() == record.sequence
            && theirs.history.head() != record.history.head()
            && standing == Some(Standing::InSync);
        // One that is of no use any more, and last had a superblock in common
        // with somebody who never left, is old but has not gone on alone: that
        // would have taken a superblock that names everybody else.
        let in_common = || {
            let others = theirs.standing(|standing| standing == Standing::InSync);
            others
                .without(member.superblock.member)
                .iter()
                .any(|other| {
                    let row = record.row_of(theirs.members[other.index()].uuid);
                    row.is_some_and(|row| record.members[row.index()].standing == Standing::InSync)
                })
        };
        let old = standing != Some(Standing::InSync)
            && (in_common() || went_before_it_was_named(member, record));
        (record.history.descends_from(theirs.history.head()) || old) && !newer && !rival
    };
    let (one, other): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|m| connects(m));
    if other.is_empty() || broken("R3.diverged") {
        return Ok(());
    }
    let paths = |side: &[&Found]| {
        list(
            &side
                .iter()
                .map(|member| member.path.as_path())
                .collect::<Vec<_>>(),
        )
    };
    Err(RaidError::new(
        Kind::Diverged,
        format!(
            "The pool has diverged: {} and {} have each gone on without the other; \
             leave one side out",
            paths(&one),
            paths(&other)
        ),
    ))
}

/// Whether a member that `record` names failed had its last superblock before
/// that, and none by which it would have gone on alone.
///
/// With the record that names it failed at C, it has C - 1 or less in common
/// with the others. Alone it would first have named those who are absent: at C
/// or later, or at C - 1 if it lacked that one when all went down.
fn went_before_it_was_named(member: &Found, record: &PoolRecord) -> bool {
    let theirs = &member.superblock.record;
    let Some(row) = record.row_of(member.uuid()) else {
        return false;
    };
    let named_at = record.members[row.index()].changed_at;
    let names_somebody = theirs
        .not_in_sync()
        .iter()
        .any(|other| theirs.members[other.index()].changed_at == theirs.sequence);
    match theirs.sequence + 1 {
        next if next < named_at => true,
        next => next == named_at && !names_somebody,
    }
}

/// R3: the newest must descend from what the witness remembers.
fn refuse_behind(
    found: &[Found],
    record: &PoolRecord,
    witness: &WitnessRecord,
) -> Result<(), RaidError> {
    if record.history.descends_from(witness.membership_id) || broken("R3.behind") {
        return Ok(());
    }
    let paths = list(
        &found
            .iter()
            .map(|member| member.path.as_path())
            .collect::<Vec<_>>(),
    );
    if record.history.epoch < witness.membership_epoch {
        return Err(RaidError::new(
            Kind::Behind,
            format!(
                "The pool went on without {paths} (membership change {}, these know {}); \
                 give the members it went on with",
                witness.membership_epoch, record.history.epoch
            ),
        ));
    }
    Err(RaidError::new(
        Kind::Diverged,
        format!(
            "{paths} have gone on without the members that pool.toml last saw \
             (its membership change {} is not in their history)",
            witness.membership_epoch
        ),
    ))
}

fn refuse_too_few(
    found: &[Found],
    choice: &Choice,
    witness: Option<&WitnessRecord>,
) -> Result<(), RaidError> {
    let record = &choice.record;
    let all = record.layout_members();
    let lost = all.difference(choice.in_sync);
    if record.survives(lost) {
        return Ok(());
    }
    let reasons: Vec<_> = lost
        .iter()
        .map(|index| {
            let place = place_of(index, record, found, witness);
            let reason = match reason_of(index, record, &choice.changes) {
                _ if here(index, record, found).is_none() => "not found",
                Standing::Stale => "behind the others",
                Standing::Absent => "was missing before and must be rebuilt",
                _ => "failed",
            };
            format!("{place} ({reason})")
        })
        .collect();
    Err(RaidError::new(
        Kind::TooFewMembers,
        format!(
            "Too few members: {} of {} {} usable at level {}; without {}{}",
            choice.in_sync.len(),
            all.len(),
            if choice.in_sync.len() == 1 {
                "is"
            } else {
                "are"
            },
            record.layout().level,
            reasons.join(", "),
            replaced(found, choice)
        ),
    ))
}

fn reason_of(
    index: MemberIndex,
    record: &PoolRecord,
    changes: &[(MemberIndex, Standing)],
) -> Standing {
    changes
        .iter()
        .find(|(member, _)| *member == index)
        .map_or(record.members[index.index()].standing, |(_, standing)| {
            *standing
        })
}

/// Names what was given and has no row any more, because it would otherwise
/// be left out silently.
fn replaced(found: &[Found], choice: &Choice) -> String {
    let replaced: Vec<&Path> = found
        .iter()
        .zip(&choice.rows)
        .filter(|(_, row)| row.is_none())
        .map(|(member, _)| member.path.as_path())
        .collect();
    match replaced.is_empty() {
        true => String::new(),
        false => format!("; replaced before, and of no use: {}", list(&replaced)),
    }
}

fn here<'a>(index: MemberIndex, record: &PoolRecord, found: &'a [Found]) -> Option<&'a Found> {
    let uuid = record.members[index.index()].uuid;
    found.iter().find(|member| member.uuid() == uuid)
}

fn place_of(
    index: MemberIndex,
    record: &PoolRecord,
    found: &[Found],
    witness: Option<&WitnessRecord>,
) -> String {
    let uuid = record.members[index.index()].uuid;
    let path = here(index, record, found)
        .map(|member| member.path.as_path())
        .or_else(|| {
            let known = witness?.members.iter().find(|member| member.uuid == uuid)?;
            Some(known.path.as_path())
        });
    match path {
        Some(path) => format!("member {index}, {}", path.display()),
        None => format!("member {index}"),
    }
}

/// R3: without a witness nobody knows whether the members that are not here
/// went on by themselves.
fn refuse_unwitnessed_half(found: &[Found], record: &PoolRecord) -> Result<(), RaidError> {
    let here: MemberSet = found
        .iter()
        .filter_map(|member| record.row_of(member.uuid()))
        .collect();
    if !record.survives(here) || broken("R3.force") {
        return Ok(());
    }
    let all = record.layout_members();
    let missing: Vec<_> = all.difference(here).iter().map(|m| m.to_string()).collect();
    Err(RaidError::new(
        Kind::NeedsForce,
        format!(
            "Members {} are missing and could have gone on alone, and there is no pool.toml \
             to tell; give them too, or use --force if they did not",
            missing.join(", ")
        ),
    ))
}

fn list(paths: &[&Path]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests;
