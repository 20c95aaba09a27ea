//! Volumes of a run come, go, change their names and sizes.

use tessera_engine::{EngineError, api::DedupMode};

use super::{
    driver::{Run, VOLUMES_MAX},
    hazards::Mode,
    model::Step,
    world::volume,
};

impl Run {
    pub(super) fn create(&mut self) {
        let name = format!("v{}", self.volumes_made);
        self.volumes_made += 1;
        let size = (1 + self.rng.below(500)) * 512;
        self.note(format!("create {name} of {size}"));
        let mut spec = volume(&name, size);
        if self.mode != Mode::Plain {
            let most = self.world.stripe_bytes.min(64 << 10);
            let chunk = 4096 << self.rng.below(5);
            spec.chunk_bytes = if chunk > most { 4096 } else { chunk };
        }
        self.chunks
            .insert(name.clone(), u64::from(spec.chunk_bytes));
        spec.dedup = self.some_mode();
        let result = self.pool().create_volume(&spec).map(|_| ());
        self.changed_catalogue("create", result, vec![Step::Create { name, size }]);
    }

    pub(super) fn some_mode(&mut self) -> DedupMode {
        match self.rng.below(8) {
            0 => DedupMode::Off,
            1..4 => DedupMode::Post,
            _ => DedupMode::Inline,
        }
    }

    pub(super) fn changed_catalogue(
        &mut self,
        what: &str,
        result: Result<(), EngineError>,
        steps: Vec<Step>,
    ) {
        let no_power = !self.world.sim.has_power();
        if self.management(what, result) {
            self.model.begin(steps);
            self.model.all_durable();
        } else if no_power || self.failed || self.is_done(&steps) {
            self.model.begin(steps);
        }
    }

    /// Whether a change that met "no space" at its end was made.
    fn is_done(&self, steps: &[Step]) -> bool {
        let size = |name: &String| self.pool().disk(name).map(|disk| disk.size());
        match steps.last() {
            Some(Step::Create { name, .. }) => size(name).is_some(),
            Some(Step::Delete { name }) => size(name).is_none(),
            Some(Step::Rename { new, .. }) => size(new).is_some(),
            Some(Step::Resize { name, size: to }) => size(name) == Some(*to),
            Some(Step::Take { snapshot }) => size(snapshot).is_some(),
            Some(Step::Forget { snapshot }) => size(snapshot).is_none(),
            Some(Step::Clone { name, .. }) => size(name).is_some(),
            // It takes its place in the order before anything can fail for
            // lack of space.
            Some(Step::RollBack { .. }) => true,
            other => unreachable!("not a change of the catalogue: {other:?}"),
        }
    }

    pub(super) fn manage(&mut self) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let count = self.volume_count();
        match self.rng.below(8) {
            0..3 if count < VOLUMES_MAX => self.create(),
            3 if count > 1 => {
                self.note(format!("delete {name}"));
                let result = self.pool().delete_volume_and_snapshots(&name);
                self.changed_catalogue("delete", result, vec![Step::Delete { name }]);
            }
            // What cannot be read is remembered by name.
            4 if self.mode != Mode::Beyond => {
                let new = format!("v{}", self.volumes_made);
                self.volumes_made += 1;
                self.note(format!("rename {name} to {new}"));
                let result = self.pool().rename_volume(&name, &new).map(|_| ());
                self.chunks.insert(new.clone(), self.chunk_of(&name));
                self.changed_catalogue("rename", result, vec![Step::Rename { old: name, new }]);
            }
            _ => {
                let to = (1 + self.rng.below(500)) * 512;
                self.note(format!("resize {name} from {size} to {to}"));
                let mut steps = Vec::new();
                let odd_end = size.min(to.next_multiple_of(self.chunk_of(&name)));
                if to < odd_end {
                    // The rest of the last chunk is cleared before the cut.
                    let length = odd_end - to;
                    steps.push(Step::Zero {
                        name: name.clone(),
                        offset: to,
                        length,
                    });
                }
                steps.push(Step::Resize {
                    name: name.clone(),
                    size: to,
                });
                let result = self.pool().resize_volume(&name, to, true).map(|_| ());
                self.changed_catalogue("resize", result, steps);
            }
        }
    }
}
