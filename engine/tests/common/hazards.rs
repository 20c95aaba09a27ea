//! What goes wrong with the devices of a run.
//!
//! Within the redundancy only as many members as the level may lose (the
//! doomed ones, the same for the whole run) get faults, all kinds of them at
//! once; any member may run out of space or stall together with the others.
//! Then nothing but a lack of space may ever fail. Beyond the redundancy every
//! member gets faults, and every answer is right or an error.

use tessera_raid::device::sim::Fault;

use super::driver::Run;

/// Which faults there are, and what is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Power cuts, lost and stale members, rot: everything can be read.
    Plain,
    /// All faults, within the redundancy: everything can be read.
    Within,
    /// All faults, beyond the redundancy: nothing is ever wrong.
    Beyond,
}

impl Mode {
    /// The test that runs it, for a command line.
    pub fn test(self) -> &'static str {
        match self {
            Self::Plain => "model -- --nocapture random",
            Self::Within => "faults -- --nocapture within",
            Self::Beyond => "faults -- --nocapture beyond",
        }
    }
}

/// Length of the superblock area at each end.
const ENDS: u64 = 16 << 10;

impl Run {
    /// A doomed member goes away, or comes back as it was.
    pub(super) fn lose_or_find(&mut self) {
        if self.doomed.is_empty() {
            return;
        }
        let at = self.rng.below(self.doomed.len() as u64) as usize;
        let path = self.doomed[at].clone();
        self.note(format!(
            "{} vanished before: {}",
            path.display(),
            self.vanished[at]
        ));
        if self.vanished[at] {
            self.world.sim.heal(&path);
        } else {
            self.world.sim.inject(&path, Fault::Vanish);
        }
        self.vanished[at] = !self.vanished[at];
    }

    /// Something on a doomed member rots, superblocks excepted.
    pub(super) fn rot(&mut self) {
        if self.doomed.is_empty() {
            return;
        }
        let at = self.rng.below(self.doomed.len() as u64) as usize;
        let path = self.doomed[at].clone();
        let size = self.world.device_bytes - (32 << 10);
        let offset = (16 << 10) + self.rng.below(size);
        self.note(format!("{} rots at {offset}", path.display()));
        self.world
            .sim
            .inject(&path, Fault::BitRot { offset, mask: 0x10 });
    }

    /// A fault of a kind that the mode allows.
    pub(super) fn hazard(&mut self) {
        self.counts.faults += 1;
        if self.rng.chance(6) {
            return self.space();
        }
        let beyond = self.mode == Mode::Beyond && self.rng.chance(2);
        let at = if beyond {
            self.rng.below(self.world.paths.len() as u64) as usize
        } else if self.doomed.is_empty() {
            return;
        } else {
            self.rng.below(self.doomed.len() as u64) as usize
        };
        let path = match beyond {
            true => self.world.paths[at].clone(),
            false => self.doomed[at].clone(),
        };
        let size = self.world.device_bytes;
        // Rot and the like reach superblocks and journal of doomed members
        // only: of more members than may be lost, no level can do without.
        let (first, end) = match beyond {
            true => (self.world.slots_offset, size - ENDS),
            false => (0, size),
        };
        let block = first / 4096 + self.rng.below((end - first) / 4096);
        let offset = block * 4096;
        let length = 4096 * (1 + self.rng.below(16)).min((end - offset) / 4096);
        let fault = match self.rng.below(10) {
            0..2 => Fault::BitRot {
                offset: offset + self.rng.below(4096),
                mask: 1 << self.rng.below(8),
            },
            2 => Fault::ReadErrors { offset, length },
            3 => Fault::WriteErrors { offset, length },
            4 | 5 if beyond && self.silent_faults > 0 => return,
            4 => Fault::LoseNextWrite,
            5 => Fault::MisdirectNextWrite { target: offset },
            6 => Fault::FailNextSync,
            7 => return self.stall(&path),
            8 if !beyond => return self.age(at),
            _ if beyond => Fault::Vanish,
            _ => return self.lose_or_find(),
        };
        if beyond
            && matches!(
                fault,
                Fault::LoseNextWrite | Fault::MisdirectNextWrite { .. }
            )
        {
            self.silent_faults += 1;
        }
        self.note(format!("{}: {fault:?}", path.display()));
        self.world.sim.inject(&path, fault);
    }

    /// The file systems below fill up, or are given room again.
    fn space(&mut self) {
        let blocks_left = if self.short_of_space {
            u64::MAX / 2
        } else {
            self.rng.below(150)
        };
        self.short_of_space = !self.short_of_space;
        let at = self.rng.below(self.world.paths.len() as u64) as usize;
        for (number, path) in self.world.paths.clone().iter().enumerate() {
            if number == at || !self.short_of_space {
                self.note(format!("{}: {blocks_left} blocks left", path.display()));
                self.world.sim.inject(path, Fault::NoSpace { blocks_left });
            }
        }
    }

    /// A member does not answer for a while; or all of them, and then nobody
    /// may be failed for it (R4).
    fn stall(&mut self, path: &std::path::Path) {
        let all = self.rng.chance(3);
        let paths = match all {
            true => self.world.paths.clone(),
            false => vec![path.to_owned()],
        };
        for path in paths {
            self.note(format!("{} stalls", path.display()));
            self.world.sim.inject(
                &path,
                Fault::Stall {
                    asks: if all { 1 } else { 4 },
                },
            );
        }
    }

    /// Remembers what a doomed member holds, or gives it back what it held.
    ///
    /// Not beyond the redundancy: of the last member left, an older copy of
    /// itself cannot be told from it.
    fn age(&mut self, at: usize) {
        if self.mode == Mode::Beyond {
            return;
        }
        let path = self.doomed[at].clone();
        match self.images[at].take() {
            None => self.images[at] = Some(self.world.sim.image(&path)),
            Some(image) => {
                self.note(format!("{} is as it was", path.display()));
                self.world.sim.restore_image(&path, &image);
            }
        }
    }

    /// Operations that a member was failed for complete late: before that its
    /// lock is not free (R5).
    pub(super) fn complete_stalled(&self) {
        for path in &self.world.paths {
            self.world.sim.release_stalled(path);
        }
    }

    /// Lasting faults end, with some luck.
    pub(super) fn mend_devices(&mut self) {
        if self.mode == Mode::Plain {
            return;
        }
        self.complete_stalled();
        for path in self.world.paths.clone() {
            let doomed = self.doomed.iter().position(|doomed| *doomed == path);
            if self.rng.chance(2) {
                self.world.sim.heal(&path);
                if let Some(at) = doomed {
                    self.vanished[at] = false;
                }
            }
        }
        // A pool is opened where there is space.
        for path in &self.world.paths {
            let blocks_left = u64::MAX / 2;
            self.world.sim.inject(path, Fault::NoSpace { blocks_left });
        }
        self.short_of_space = false;
        self.silent_faults = 0;
    }
}
