//! Long random lives of a pool whose members come and go, against a naive
//! model: what was synced is there, whatever happened since.
//!
//! A failure names its seed. `TESSERA_MEMBER_SEED=N` runs that one alone.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, path::PathBuf};

use common::*;
use tessera_raid::{
    Array, Kind, Level, MemberIndex, MemberState, RaidError, Source, device::sim::Fault,
};

const SHAPES_HERE: [(Level, usize); 6] = [
    (Level::Raid0, 2),
    (Level::Raid1, 2),
    (Level::Raid1, 3),
    (Level::Raid5, 4),
    (Level::Raid6, 5),
    (Level::Raid10, 4),
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        usize::try_from((self.0 >> 33) % end as u64).unwrap()
    }
}

/// A pool, its array, and what is known of it.
struct Life {
    pool: Pool,
    array: Option<Array>,
    rng: Rng,
    /// What is written, and of it what is synced.
    written: Model,
    synced: Model,
    /// The commit before which a slot was last synced whole, as the engine's
    /// segment table keeps it.
    sealed_at: BTreeMap<u32, u64>,
    /// Slots that each target still lacks.
    lacking: BTreeMap<MemberIndex, Vec<u32>>,
    devices: usize,
    seed: u64,
    log: Vec<String>,
}

impl Life {
    fn array(&self) -> &Array {
        self.array.as_ref().unwrap()
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    fn context(&self) -> String {
        let last = self.log.len().saturating_sub(30);
        format!(
            "TESSERA_MEMBER_SEED={} cargo nextest run --release -p tessera-raid \
             -E 'binary(member_model)'\n{}",
            self.seed,
            self.log[last..].join("\n")
        )
    }

    /// Whether any member that is in use could go.
    fn dispensable(&mut self) -> Option<MemberIndex> {
        let array = self.array();
        let lost: tessera_raid::MemberSet = not_online(array)
            .into_iter()
            .map(index)
            .filter(|member| member.index() < self.pool.paths.len())
            .collect();
        let layout = array.current_layout().clone();
        let width = self.pool.paths.len();
        let candidates: Vec<MemberIndex> = (0..width)
            .map(index)
            .filter(|member| !lost.contains(*member) && layout.survives(lost.with(*member)))
            .collect();
        match candidates.len() {
            0 => None,
            count => Some(candidates[self.rng.below(count)]),
        }
    }

    fn new_path(&mut self) -> PathBuf {
        self.devices += 1;
        let name = format!("new{}", self.devices);
        self.pool
            .add_device(&name, DEVICE_BYTES + 4096 * (self.devices as u64 % 3))
    }

    fn path_of(&self, member: MemberIndex) -> PathBuf {
        let status = self.array().status();
        let row = status.members.iter().find(|row| row.index == member);
        row.unwrap().path.clone()
    }

    fn fill(&mut self) {
        let slot = u32::try_from(self.rng.below(SLOTS as usize)).unwrap();
        let seed = self.rng.below(1 << 20) as u64;
        // From the first stripe on nobody knows what the slot holds.
        self.synced.segments.remove(&slot);
        self.sealed_at.remove(&slot);
        for lacking in self.lacking.values_mut() {
            lacking.retain(|other| *other != slot);
        }
        let mut written = self.written.clone();
        written.fill(self.array(), slot, seed).unwrap();
        self.written = written;
        self.note(format!("fill {slot}"));
    }

    fn sync(&mut self) {
        self.array().sync().unwrap();
        self.synced = self.written.clone();
    }

    fn commit(&mut self) {
        self.sync();
        let next = self.array().commits() + 1;
        self.array().commit(b"model", false).unwrap();
        assert_eq!(self.array().commits(), next);
        for slot in self.synced.segments.keys() {
            self.sealed_at.entry(*slot).or_insert(next);
        }
        self.note(format!("commit {next}"));
    }

    fn attach(&mut self) {
        let width = self.pool.paths.len();
        let of = index(self.rng.below(width));
        let status = self.array().status();
        let away = status.members[of.index()].clone();
        let spares = self.array().spares();
        let source = match self.rng.below(3) {
            0 if !spares.is_empty() => Source::Spare(spares[0]),
            1 if away.state != MemberState::Online && !away.path.as_os_str().is_empty() => {
                self.pool.world.heal(&away.path);
                self.pool.world.release_stalled(&away.path);
                Source::Returning { path: away.path }
            }
            _ => new_device(&self.new_path()),
        };
        let outcome = self.array().attach(of, &source);
        self.note(format!("attach {source:?} for {of}: {outcome:?}"));
        let Ok(attached) = outcome else { return };
        let skipped = |slot: &u32| {
            let sealed = self.sealed_at.get(slot).copied();
            attached
                .since
                .is_some_and(|since| sealed.is_some_and(|sealed| sealed <= since))
        };
        let slots = self.written.segments.keys().copied();
        let lacking: Vec<u32> = slots.filter(|slot| !skipped(slot)).collect();
        self.lacking.insert(attached.target, lacking);
    }

    fn rebuild(&mut self) -> Result<(), RaidError> {
        let targets = self.array().targets();
        if targets.is_empty() {
            return Ok(());
        }
        let target = targets[self.rng.below(targets.len())].target;
        // After a crash nobody knows what it has.
        let all: Vec<u32> = self.written.segments.keys().copied().collect();
        let lacking = self.lacking.entry(target).or_insert(all);
        if let Some(slot) = lacking.pop() {
            let outcome = rebuild(self.array.as_ref().unwrap(), target, &[slot]);
            self.note(format!("rebuild {slot} on {target}: {outcome:?}"));
            return outcome;
        }
        self.sync();
        let outcome = self.array().commit_promoting(b"model", false, target);
        self.note(format!("promote {target}: {outcome:?}"));
        self.lacking.remove(&target);
        outcome
    }

    fn hurt(&mut self) {
        let targets = self.array().targets();
        let victim = match self.rng.below(3) {
            0 if !targets.is_empty() => Some(targets[0].target),
            _ => self.dispensable(),
        };
        let Some(victim) = victim else { return };
        let path = self.path_of(victim);
        let fault = match self.rng.below(4) {
            0 => Fault::Vanish,
            1 => Fault::FailNextSync,
            2 => Fault::WriteErrors {
                offset: SLOTS_OFFSET,
                length: SLOT_BYTES * SLOTS,
            },
            _ => Fault::Stall { asks: 6 },
        };
        self.note(format!("{fault:?} on {victim}"));
        self.pool.world.inject(&path, fault);
        // It is met before the next one happens: two may be too many.
        self.fill();
        self.sync();
        self.pool.world.heal(&path);
    }

    fn reopen(&mut self, crash: bool) {
        self.note(format!("reopen, crash {crash}"));
        let array = self.array.take().unwrap();
        if crash {
            let seed = self.rng.below(1 << 30) as u64;
            self.pool.world.power_cut(seed);
            drop(array);
            self.pool.world.power_on();
            self.written = self.synced.clone();
            self.lacking.clear();
        } else {
            array.sync().unwrap();
            self.synced = self.written.clone();
            array.commit(b"model", true).unwrap();
            array.close();
            // What was abandoned on a stalled member completes at last.
            self.pool.world.kill_process();
        }
        let known = self.pool.known_paths();
        let paths = match self.rng.below(2) {
            0 => known,
            _ => {
                // Old members and spares are given too, as after a search.
                let backend = self.pool.backend();
                let mut paths = known;
                for n in 1..=self.devices {
                    let path = PathBuf::from(format!("new{n}"));
                    let ours = tessera_raid::describe_member(&backend, &path).is_ok();
                    if ours && !paths.contains(&path) {
                        paths.push(path);
                    }
                }
                paths
            }
        };
        let array = match self.pool.open_with(&paths, &options()) {
            // One that nobody knows any more is refused, and to be left out.
            Err(error) if error.kind() == Kind::Diverged => self.pool.open_known(),
            array => array,
        };
        let array = array.unwrap_or_else(|error| panic!("{error}\n{}", self.context()));
        array.commit(b"model", false).unwrap();
        self.array = Some(array);
    }
}

fn live(level: Level, width: usize, seed: u64) {
    let (pool, array) = Pool::create(level, width, seed);
    let mut life = Life {
        pool,
        array: Some(array),
        rng: Rng(seed),
        written: Model::default(),
        synced: Model::default(),
        sealed_at: BTreeMap::new(),
        lacking: BTreeMap::new(),
        devices: 0,
        seed,
        log: vec![format!("{level} of {width}")],
    };
    life.fill();
    life.commit();
    for _ in 0..120 {
        match life.rng.below(16) {
            0..3 => life.fill(),
            3 => life.commit(),
            4 => life.sync(),
            5 | 6 => life.attach(),
            7..11 => {
                let _dropped = life.rebuild();
            }
            11 => life.hurt(),
            12 => {
                if let Some(member) = life.dispensable() {
                    life.note(format!("fail {member}"));
                    life.array().fail_member(member, "test").unwrap();
                }
            }
            13 => {
                let spares = life.array().spares();
                if spares.len() > 1 {
                    life.array().remove_spare(spares[0]).unwrap();
                } else {
                    let path = life.new_path();
                    let added = life.array().add_spare(&path, false);
                    life.note(format!("add spare: {added:?}"));
                }
            }
            14 => {
                let crash = life.rng.below(2) == 0;
                life.reopen(crash);
            }
            _ => {
                if let Some(target) = life.array().targets().first() {
                    life.array().detach(target.target, "test").unwrap();
                    life.note(format!("detach {}", target.target));
                }
            }
        }
        if !life.written.segments.is_empty() {
            let context = life.context();
            life.written.check(life.array(), &context);
        }
        let wrong = life.array().scrub_superblocks().unwrap();
        for scrub in wrong {
            assert_eq!(scrub.wrong, [""; 0], "{}", life.context());
        }
    }
}

#[test]
fn what_was_synced_survives_whatever_members_do() {
    if let Some(seed) = std::env::var("TESSERA_MEMBER_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
    {
        let (level, width) = SHAPES_HERE[(seed % SHAPES_HERE.len() as u64) as usize];
        return live(level, width, seed);
    }
    for seed in 0..60u64 {
        let (level, width) = SHAPES_HERE[(seed % SHAPES_HERE.len() as u64) as usize];
        live(level, width, seed);
    }
}
