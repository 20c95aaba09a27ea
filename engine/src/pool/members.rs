//! Members that fail, leave, come, and come back.

use std::{collections::BTreeSet, path::Path};

use tessera_raid::{MemberIndex, MemberState as RaidMemberState, Source, Target};

use super::engine::Engine;
use crate::{
    api::{JobInfo, JobKind, JobState, MemberState, MemberStatus},
    error::{EngineError, ErrorKind},
    jobs::JobRecord,
    settings::Settings,
};

fn invalid(message: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::InvalidArgument, message)
}

impl Engine {
    /// Every member, spare and target.
    pub(crate) fn members(&self) -> Vec<MemberStatus> {
        let members = self.array.status().members.into_iter();
        members
            .map(|member| {
                let of = match member.state {
                    RaidMemberState::Rebuilding { of } | RaidMemberState::Replacing { of } => {
                        Some(u32::from(of.0))
                    }
                    _ => None,
                };
                MemberStatus {
                    index: u32::from(member.index.0),
                    path: member.path.display().to_string(),
                    state: match member.state {
                        RaidMemberState::Online => MemberState::Online,
                        RaidMemberState::Failed => MemberState::Failed,
                        RaidMemberState::Missing => MemberState::Missing,
                        RaidMemberState::Spare => MemberState::Spare,
                        RaidMemberState::Rebuilding { .. } => MemberState::Rebuilding,
                        RaidMemberState::Replacing { .. } => MemberState::Replacing,
                    },
                    of,
                    uuid: member.uuid.to_string(),
                    size_bytes: member.size_bytes,
                    errors: member.read_errors + member.write_errors,
                    read_errors: member.read_errors,
                    write_errors: member.write_errors,
                    repaired: member.repaired,
                    reason: member.reason,
                }
            })
            .collect()
    }

    fn member(&self, index: u32) -> Result<(MemberIndex, MemberStatus), EngineError> {
        let found = self.members().into_iter().find(|row| row.index == index);
        let raid = u8::try_from(index).ok().map(MemberIndex);
        raid.zip(found).ok_or_else(|| {
            EngineError::new(ErrorKind::NotFound, format!("There is no member {index}"))
        })
    }

    /// Fails a member of the layout.
    pub(crate) fn fail_member(&self, index: u32, reason: &str) -> Result<(), EngineError> {
        self.check_writable()?;
        let (raid, row) = self.member(index)?;
        match row.state {
            MemberState::Online => Ok(self.array.fail_member(raid, reason)?),
            MemberState::Failed | MemberState::Missing => {
                Err(invalid(format!("Member {index} is not in use as it is")))
            }
            MemberState::Spare | MemberState::Rebuilding | MemberState::Replacing => Err(invalid(
                format!("Member {index} is none of the layout's: remove it instead"),
            )),
        }?;
        self.signals.maintenance.ring();
        Ok(())
    }

    /// Takes a member out: a spare leaves, a target's rebuild is cancelled, a
    /// member of the layout is failed.
    pub(crate) fn remove_member(&self, index: u32) -> Result<(), EngineError> {
        self.check_writable()?;
        let (raid, row) = self.member(index)?;
        match row.state {
            MemberState::Spare => Ok(self.array.remove_spare(raid)?),
            MemberState::Rebuilding | MemberState::Replacing => {
                let job = self.job_of(&row.uuid);
                match job {
                    Some(job) => self.cancel_job(job).map(|_| ()),
                    None => Ok(self.array.detach(raid, "removed")?),
                }
            }
            // It is out already, and its device is closed: nothing is left to do.
            MemberState::Failed | MemberState::Missing => Ok(()),
            MemberState::Online => self.fail_member(index, "removed by the administrator"),
        }
    }

    fn job_of(&self, uuid: &str) -> Option<u64> {
        let jobs = self.jobs.lock();
        let of = |record: &&JobRecord| record.is_active() && record.target.to_string() == uuid;
        jobs.all().into_iter().find(of).map(|record| record.id)
    }

    /// Adds a spare; a member that has failed gets it at once.
    pub(crate) fn add_spare(&self, path: &Path, force: bool) -> Result<u32, EngineError> {
        self.check_writable()?;
        let index = self.array.add_spare(path, force)?;
        self.signals.maintenance.ring();
        Ok(u32::from(index.0))
    }

    pub(crate) fn remove_spare(&self, index: u32) -> Result<(), EngineError> {
        self.check_writable()?;
        let (raid, _) = self.member(index)?;
        Ok(self.array.remove_spare(raid)?)
    }

    /// Puts a new device in a member's place.
    pub(crate) fn replace_member(
        &self,
        index: u32,
        path: &Path,
        force: bool,
    ) -> Result<JobInfo, EngineError> {
        let source = Source::NewDevice {
            path: path.to_owned(),
            force,
        };
        self.rebuild_onto(index, &source)
    }

    /// Takes a member back that was away.
    pub(crate) fn readd_member(&self, index: u32, path: &Path) -> Result<JobInfo, EngineError> {
        let source = Source::Returning {
            path: path.to_owned(),
        };
        self.rebuild_onto(index, &source)
    }

    fn rebuild_onto(&self, index: u32, source: &Source) -> Result<JobInfo, EngineError> {
        self.check_writable()?;
        let (of, _) = self.member(index)?;
        let id = self.attach(of, source)?;
        self.job_info(id)
    }

    /// Attaches a target and starts its rebuild.
    fn attach(&self, of: MemberIndex, source: &Source) -> Result<u64, EngineError> {
        // No step looks for its target meanwhile.
        let _work = self.work.lock();
        let attached = self.array.attach(of, source)?;
        let id = self.add_job(JobKind::Rebuild, |record| {
            record.member = Some(of);
            record.target = attached.uuid;
            record.since = attached.since;
        });
        tracing::info!(job = id, member = of.0, since = ?attached.since, "A rebuild begins");
        Ok(id)
    }

    /// The row of a rebuild's target, while it is one.
    pub(crate) fn target_of(&self, job: &JobRecord) -> Option<MemberIndex> {
        let targets = self.array.targets();
        let found = targets.iter().find(|target| target.uuid == job.target);
        found.map(|target| target.target)
    }

    /// After opening: rebuilds go on whose targets are still there, those that
    /// were promoted just before are done, others have failed. A target whose
    /// rebuild no checkpoint knows gets one from the start.
    pub(crate) fn reconcile_rebuilds(&self) {
        let targets: Vec<Target> = self.array.targets();
        let members = self.array.status().members;
        let active: Vec<JobRecord> = {
            let jobs = self.jobs.lock();
            let rebuilds = jobs
                .all()
                .into_iter()
                .filter(|record| record.is_active() && record.kind == JobKind::Rebuild);
            rebuilds.cloned().collect()
        };
        let mut known = BTreeSet::new();
        for job in active {
            if targets.iter().any(|target| target.uuid == job.target) {
                known.insert(job.target);
                continue;
            }
            let promoted = members
                .iter()
                .any(|member| member.uuid == job.target && member.state == RaidMemberState::Online);
            if promoted {
                self.end_job(job.id, JobState::Done, "");
            } else {
                let message = "The device it was rebuilt on is gone or has lost writes";
                self.end_job(job.id, JobState::Failed, message);
            }
        }
        for target in targets
            .iter()
            .filter(|target| !known.contains(&target.uuid))
        {
            self.add_job(JobKind::Rebuild, |record| {
                record.member = Some(target.of);
                record.target = target.uuid;
            });
        }
    }

    /// Gives failed and missing members a spare, the smallest that is large
    /// enough.
    pub(crate) fn take_spares_over(&self) {
        let status = self.array.status();
        if status.stopped.is_some() {
            return;
        }
        let targets = self.array.targets();
        let mut spares: Vec<(u64, MemberIndex)> = self
            .array
            .spares()
            .into_iter()
            .map(|spare| {
                let row = status.members.iter().find(|row| row.index == spare);
                (row.map_or(0, |row| row.size_bytes), spare)
            })
            .collect();
        spares.sort_unstable();
        let lacking = status.members.iter().filter(|row| {
            matches!(
                row.state,
                RaidMemberState::Failed | RaidMemberState::Missing
            ) && self.array.current_layout().member_set().contains(row.index)
                && !targets.iter().any(|target| target.of == row.index)
        });
        for row in lacking {
            let taken = spares.iter().position(|(_, spare)| {
                match self.attach(row.index, &Source::Spare(*spare)) {
                    Ok(_) => true,
                    Err(error) => {
                        tracing::warn!(%error, spare = spare.0, "A spare cannot take over");
                        false
                    }
                }
            });
            if let Some(at) = taken {
                spares.remove(at);
            }
        }
    }

    /// Hands the limits that were set to the array.
    pub(crate) fn apply_limits(&self, settings: &Settings) {
        let (kept, mut limits) = (&settings.kept, self.array.limits());
        if kept.stall_limit_ms > 0 {
            limits.stall = std::time::Duration::from_millis(u64::from(kept.stall_limit_ms));
        }
        if kept.read_errors_per_hour > 0 {
            limits.read_errors_per_hour = kept.read_errors_per_hour;
        }
        self.array.set_limits(limits);
    }
}
