//! Opening again after a crash or a stop, and comparing with the model.

use std::sync::Arc;

use tessera_engine::{
    EngineError, ErrorKind,
    disk::{Operation, Request},
    pool::simulation::Simulated,
};

use super::{
    driver::Run,
    hazards::Mode,
    model::{State, Step, all_names, read_all},
    requests::blocks,
};

/// Operations of a recovery are fewer; a cut beyond its end does not happen.
const RECOVERY_OPERATIONS: u64 = 120;

impl Run {
    pub(super) fn kill(&mut self) {
        self.note("kill".to_owned());
        self.world.sim.kill_process();
        self.reopen_after_crash();
    }

    /// A clean stop, as far as it can be one.
    pub(super) fn close_and_reopen(&mut self) {
        self.note("close".to_owned());
        match self.pool().close() {
            Ok(()) => self.model.all_durable(),
            Err(_) if !self.world.sim.has_power() => {}
            Err(error) if error.kind() == ErrorKind::NoSpace => self.counts.no_space += 1,
            Err(_) if self.excused("closing") => {}
            Err(error) => panic!("cannot close: {error}: {error:?}"),
        }
        self.reopen_after_crash();
    }

    /// Opens again, perhaps after more power cuts, and checks the promise.
    pub(super) fn reopen_after_crash(&mut self) {
        self.counts.crashes += 1;
        self.failed = false;
        self.pool = None;
        self.world.sim.cut_after(0);
        self.world.sim.power_on();
        self.mend_devices();
        let expected = match self.rng.chance(4) && self.mode != Mode::Beyond {
            true => Some(self.look_read_only()),
            false => None,
        };
        let Some(pool) = self.open_until_it_works() else {
            self.counts.refused += 1;
            self.ended = true;
            return;
        };
        self.pool = Some(pool);
        if self.mode == Mode::Beyond {
            return self.go_on_with_what_is_left();
        }
        let found = read_all(self.pool(), &all_names(self.pool()), "after recovery");
        if let Some(expected) = expected {
            assert!(
                found == expected,
                "a read-only open shows what recovery makes durable"
            );
        }
        self.counts.verified += found.values().map(|data| data.len() as u64).sum::<u64>();
        self.model.recovered(found, "after recovery");
    }

    fn look_read_only(&mut self) -> State {
        self.note("open read-only".to_owned());
        let writes = self.world.writes();
        let pool = self
            .world
            .open_read_only()
            .unwrap_or_else(|e| panic!("{e}: {e:?}"));
        let found = read_all(&pool, &all_names(&pool), "read-only");
        drop(pool);
        assert_eq!(
            self.world.writes(),
            writes,
            "a read-only open writes nothing (R1)"
        );
        if !self.model.allows(&found) {
            panic!("read-only: {}", self.model.explain(&found));
        }
        found
    }

    /// `None` only beyond the redundancy.
    fn open_until_it_works(&mut self) -> Option<Simulated> {
        let mut refused = 0;
        loop {
            self.complete_stalled();
            if self.rng.chance(3) {
                let operations = 1 + self.rng.below(RECOVERY_OPERATIONS);
                self.note(format!("open; power will be cut after {operations}"));
                self.world.sim.cut_after(operations);
            } else {
                self.note("open".to_owned());
            }
            match self.world.open() {
                // What is read for deduplication alone may fail.
                Ok(pool) if self.world.sim.has_power() => {
                    self.world.sim.cut_after(0);
                    return Some(pool);
                }
                _ if !self.world.sim.has_power() => {
                    self.counts.cut_recoveries += 1;
                    self.world.sim.power_on();
                }
                Ok(_) => unreachable!("with power or without"),
                Err(error) => {
                    self.world.sim.cut_after(0);
                    self.note(format!("cannot open: {error}"));
                    self.refusal_is_allowed(&error);
                    refused += 1;
                    if refused == 3 {
                        return None;
                    }
                    // A refusal changes nothing: with the members back it opens,
                    // unless something is damaged for good.
                    for path in &self.world.paths {
                        self.world.sim.heal(path);
                    }
                }
            }
        }
    }

    fn refusal_is_allowed(&self, error: &EngineError) {
        assert!(self.mode == Mode::Beyond, "cannot open: {error}: {error:?}");
    }

    /// Beyond the redundancy: what can be read must be a state that was
    /// allowed; what cannot is remembered as unknown.
    fn go_on_with_what_is_left(&mut self) {
        let mut found = State::new();
        let mut unreadable = std::collections::BTreeSet::new();
        for name in all_names(self.pool()) {
            let disk = self.pool().disk(&name).unwrap();
            let mut data = vec![0xa5; usize::try_from(disk.size()).unwrap()];
            for (number, piece) in data.chunks_mut(4096).enumerate() {
                let offset = number as u64 * 4096;
                let mut batch = [Request::new(Operation::Read {
                    offset,
                    buffer: piece,
                })];
                disk.execute(&mut batch);
                if batch[0].result.is_err() {
                    unreadable.insert((name.clone(), number));
                }
            }
            self.counts.verified += data.len() as u64;
            found.insert(name, data.into());
        }
        self.counts.errors += unreadable.len() as u64;
        let unknown = |name: &String, number: usize| {
            let key = (name.clone(), number);
            unreadable.contains(&key) || self.unknown.contains(&key)
        };
        let agrees = |state: &State| {
            state.len() == found.len()
                && state.iter().all(|(name, data)| {
                    found.get(name).is_some_and(|other| {
                        data.len() == other.len()
                            && data
                                .chunks(4096)
                                .zip(other.chunks(4096))
                                .enumerate()
                                .all(|(number, (one, two))| one == two || unknown(name, number))
                    })
                })
        };
        let shows = |step: &Step| {
            let (name, offset, bytes) = step.contents();
            let Some(found) = found.get(name) else {
                return false;
            };
            let Some(found) = found.get(offset as usize..offset as usize + bytes.len()) else {
                return false;
            };
            (offset as usize / 4096..)
                .zip(blocks(offset, found).zip(blocks(offset, &bytes)))
                .all(|(number, (one, two))| one == two || unknown(&name.to_owned(), number))
        };
        let Some(mut state) = self.model.newest_agreeing(shows, agrees) else {
            panic!("a lie after recovery: {}", self.model.explain(&found));
        };
        // What can be read now is what it is from here on.
        for (name, data) in &mut state {
            for (number, (known, now)) in Arc::make_mut(data)
                .chunks_mut(4096)
                .zip(found[name].chunks(4096))
                .enumerate()
            {
                if !unreadable.contains(&(name.clone(), number)) {
                    known.copy_from_slice(now);
                }
            }
        }
        self.unknown = unreadable;
        self.model.go_on_from(state);
    }
}

/// Kinds of errors that say "not now": nothing is lost.
pub fn is_lack_of_space(error: &EngineError) -> bool {
    error.kind() == ErrorKind::NoSpace
}
