//! What an operator does meanwhile: members are replaced, added and taken back,
//! scrubs are started, and jobs move on step by step, over crashes.
//!
//! Any of it may be refused (there is nothing to replace, a device is not what
//! it was, a job runs already). What counts is that clients feel nothing.

use tessera_engine::{EngineError, api::VolumeChange};

use super::{driver::Run, hazards::Mode};

/// New devices in one run.
const DEVICES_MAX: u64 = 6;

impl Run {
    pub(super) fn upkeep(&mut self) {
        match self.rng.below(15) {
            0 => {
                self.note("scrub".to_owned());
                let result = self.pool().scrub_start().map(|_| ());
                self.tolerate("scrub", result);
            }
            1 => self.replace(),
            2 => self.take_back(),
            3 => self.spare(),
            4 => self.interfere_with_a_job(),
            5 => {
                self.note("reclaim".to_owned());
                let result = self.pool().reclaim_start().map(|_| ());
                self.tolerate("reclaim", result);
            }
            6 => {
                self.note("dedup".to_owned());
                let result = self.pool().dedup_start().map(|_| ());
                self.tolerate("dedup", result);
            }
            7 => self.change_mode(),
            _ => {
                for _ in 0..1 + self.rng.below(6) {
                    if !self.world.sim.has_power() || self.failed {
                        return;
                    }
                    self.note("job step".to_owned());
                    let result = self.pool().job_step().map(|_| ());
                    self.tolerate("a job step", result);
                }
            }
        }
    }

    /// A refusal is fine, as long as the pool goes on.
    fn tolerate(&mut self, what: &str, result: Result<(), EngineError>) {
        let Err(error) = result else { return };
        self.note(format!("{what}: {error}"));
        if !self.world.sim.has_power() {
            return;
        }
        if let Some(reason) = self.pool().failure()
            && !self.excused(what)
        {
            panic!("{what} stopped the pool: {reason}; {error:?}");
        }
    }

    /// How a volume treats writes from now on: what it holds stays.
    fn change_mode(&mut self) {
        let Some((name, _)) = self.some_volume() else {
            return;
        };
        let dedup = self.some_mode();
        self.note(format!("{name} deduplicates {}", dedup.name()));
        let change = VolumeChange {
            dedup: Some(dedup),
            ..VolumeChange::default()
        };
        let result = self.pool().set_volume(&name, &change).map(|_| ());
        self.tolerate("a change of mode", result);
    }

    fn new_device(&mut self) -> Option<std::path::PathBuf> {
        if self.devices_made == DEVICES_MAX {
            return None;
        }
        self.devices_made += 1;
        let name = format!("new{}", self.devices_made);
        let path = self.world.add_device(&name);
        self.world.paths.push(path.clone());
        Some(path)
    }

    /// The index of the column that a doomed member has, by its path.
    fn index_of(&self, path: &std::path::Path) -> Option<u32> {
        let path = path.display().to_string();
        let members = self.pool().members().into_iter();
        members
            .filter(|member| member.path == path)
            .map(|member| member.index)
            .next()
    }

    /// A doomed member, healthy or not, gives its place to a new device, which
    /// is doomed from then on: both are one column's.
    fn replace(&mut self) {
        if self.doomed.is_empty() {
            return;
        }
        let at = self.rng.below(self.doomed.len() as u64) as usize;
        let Some(index) = self.index_of(&self.doomed[at]) else {
            return;
        };
        let Some(path) = self.new_device() else {
            return;
        };
        self.note(format!(
            "replace {} (member {index}) by {}",
            self.doomed[at].display(),
            path.display()
        ));
        let result = self.pool().replace_member(index, &path, false);
        match result {
            Ok(_) => {
                self.counts.replaced += 1;
                self.doomed[at] = path;
                self.vanished[at] = false;
                self.images[at] = None;
            }
            Err(error) => self.tolerate("replace", Err(error)),
        }
    }

    /// A doomed member that is out of the pool is given back to it.
    fn take_back(&mut self) {
        if self.doomed.is_empty() {
            return;
        }
        let at = self.rng.below(self.doomed.len() as u64) as usize;
        let path = self.doomed[at].clone();
        let Some(index) = self.index_of(&path) else {
            return;
        };
        self.world.sim.release_stalled(&path);
        if self.rng.chance(2) {
            self.world.sim.heal(&path);
            self.vanished[at] = false;
        }
        self.note(format!("take {} back", path.display()));
        let result = self.pool().readd_member(index, &path).map(|_| ());
        self.counts.replaced += u64::from(result.is_ok());
        self.tolerate("take back", result);
    }

    /// A spare comes, or goes. It takes over for whoever fails, which can only
    /// be a doomed member.
    fn spare(&mut self) {
        if self.mode == Mode::Beyond || self.doomed.is_empty() {
            return;
        }
        let Some(path) = self.new_device() else {
            return;
        };
        self.note(format!("spare {}", path.display()));
        let result = self.pool().add_spare(&path, false).map(|_| ());
        self.tolerate("spare", result);
    }

    fn interfere_with_a_job(&mut self) {
        let jobs = self.pool().jobs();
        if jobs.is_empty() {
            return;
        }
        let job = jobs[self.rng.below(jobs.len() as u64) as usize].id;
        let act = self.rng.below(4);
        self.note(format!("job {job}: {act}"));
        let pool = self.pool();
        let result = match act {
            0 => pool.pause_job(job),
            1 => pool.cancel_job(job),
            _ => pool.resume_job(job),
        };
        self.tolerate("a job", result.map(|_| ()));
    }
}
