//! Random snapshots, clones and rollbacks of a simulated pool and its model.

use super::{
    driver::Run,
    hazards::Mode,
    model::{Step, volume_of},
};

const SNAPSHOTS_MAX: usize = 4;

impl Run {
    /// One of the snapshots, by its full name.
    pub(super) fn some_snapshot(&mut self) -> Option<String> {
        let names: Vec<&String> = self.model.now.keys().filter(|n| n.contains('@')).collect();
        let count = names.len() as u64;
        (count > 0).then(|| {
            let at = self.rng.below(count) as usize;
            self.model
                .now
                .keys()
                .filter(|name| name.contains('@'))
                .nth(at)
                .expect("counted")
                .clone()
        })
    }

    pub(super) fn snapshots(&mut self) {
        let count = self.model.now.keys().filter(|n| n.contains('@')).count();
        let snapshot = self.some_snapshot();
        match (self.rng.below(10), snapshot) {
            (0..5, _) | (_, None) if count < SNAPSHOTS_MAX => self.take_snapshot(),
            (5, Some(snapshot)) => self.clone_of(&snapshot),
            (6..8, Some(snapshot)) => self.roll_back(&snapshot),
            (_, Some(snapshot)) => self.forget(snapshot),
            (_, None) => {}
        }
    }

    fn take_snapshot(&mut self) {
        let Some((name, _)) = self.some_volume() else {
            return;
        };
        let own = format!("s{}", self.volumes_made);
        self.volumes_made += 1;
        let snapshot = format!("{name}@{own}");
        self.note(format!("take {snapshot}"));
        let result = self.pool().create_snapshot(&name, &own).map(|_| ());
        self.same_unknown(&name, &snapshot);
        self.changed_catalogue("snapshot", result, vec![Step::Take { snapshot }]);
    }

    fn forget(&mut self, snapshot: String) {
        self.note(format!("forget {snapshot}"));
        let (volume, own) = snapshot.split_once('@').expect("a full name");
        let result = self.pool().delete_snapshot(volume, own);
        self.changed_catalogue("forget", result, vec![Step::Forget { snapshot }]);
    }

    fn roll_back(&mut self, snapshot: &str) {
        // Which blocks are unknown would depend on whether it came to pass.
        if self.mode == Mode::Beyond && !self.unknown.is_empty() {
            return;
        }
        self.note(format!("roll back to {snapshot}"));
        let (volume, own) = snapshot.split_once('@').expect("a full name");
        let result = self.pool().roll_back(volume, own, false).map(|_| ());
        let snapshot = snapshot.to_owned();
        self.changed_catalogue("roll back", result, vec![Step::RollBack { snapshot }]);
    }

    fn clone_of(&mut self, snapshot: &str) {
        if self.volume_count() >= super::driver::VOLUMES_MAX {
            return;
        }
        let name = format!("v{}", self.volumes_made);
        self.volumes_made += 1;
        self.note(format!("clone {snapshot} as {name}"));
        let (volume, own) = snapshot.split_once('@').expect("a full name");
        let result = self.pool().clone_snapshot(volume, own, &name).map(|_| ());
        let chunk = self.chunk_of(volume_of(snapshot));
        self.chunks.insert(name.clone(), chunk);
        self.same_unknown(snapshot, &name);
        let snapshot = snapshot.to_owned();
        self.changed_catalogue("clone", result, vec![Step::Clone { snapshot, name }]);
    }

    /// What cannot be read of one cannot be read of the other.
    fn same_unknown(&mut self, from: &str, to: &str) {
        let blocks = self.unknown.iter().filter(|(name, _)| name == from);
        let same: Vec<_> = blocks.map(|(_, number)| (to.to_owned(), *number)).collect();
        self.unknown.extend(same);
    }
}
