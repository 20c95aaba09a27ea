//! What volumes may hold after a crash (design section 7).
//!
//! The recovered state is a prefix of one global order over all volumes that
//! contains every flushed write. The driver has one thread, so the order is
//! that of its requests; a request that falls into several atomic pieces is
//! several [`Step`]s. `base` is durable; every prefix of `steps` is allowed.
//!
//! A request that failed with the power may have taken effect up to one of its
//! pieces, or not at all: it may have failed before the power did, for lack of
//! space say, and then requests of its batch that came later did take effect.
//! So its steps are in the prefix or not, whatever comes after them.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use tessera_engine::{
    disk::{Operation, Request},
    pool::simulation::Simulated,
};

/// One atomic change.
#[derive(Debug, Clone)]
pub enum Step {
    Create {
        name: String,
        size: u64,
    },
    Delete {
        name: String,
    },
    Rename {
        old: String,
        new: String,
    },
    Resize {
        name: String,
        size: u64,
    },
    Put {
        name: String,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Zero {
        name: String,
        offset: u64,
        length: u64,
    },
    /// `snapshot` is a full name, here and below.
    Take {
        snapshot: String,
    },
    Forget {
        snapshot: String,
    },
    RollBack {
        snapshot: String,
    },
    Clone {
        snapshot: String,
        name: String,
    },
}

impl Step {
    /// Of a piece of a request: the volume, the place, and what is there when
    /// it took effect.
    pub fn contents(&self) -> (&str, u64, Cow<'_, [u8]>) {
        match self {
            Step::Put {
                name,
                offset,
                bytes,
            } => (name, *offset, Cow::Borrowed(bytes)),
            Step::Zero {
                name,
                offset,
                length,
            } => (name, *offset, Cow::Owned(vec![0; *length as usize])),
            other => unreachable!("not a request: {other:?}"),
        }
    }

    /// Whether it can be seen in the state that it took effect.
    fn is_in(&self, state: &State) -> bool {
        let (name, offset, bytes) = self.contents();
        let at = offset as usize;
        let found = state
            .get(name)
            .and_then(|data| data.get(at..at + bytes.len()));
        found == Some(&*bytes)
    }

    fn touches(&self, other: &Step) -> bool {
        let (name, offset, bytes) = self.contents();
        let (other_name, other_offset, other_bytes) = other.contents();
        name == other_name
            && offset < other_offset + other_bytes.len() as u64
            && other_offset < offset + bytes.len() as u64
    }
}

/// A step that may be lost with all that follow.
#[derive(Debug, Clone)]
pub struct Pending {
    pub step: Step,
    /// It belongs to the request of this number that failed with the power.
    pub failed: Option<u32>,
}

/// The contents of every volume, and of every snapshot under its full name.
/// States share what they have in common: there are many of them.
pub type State = BTreeMap<String, Arc<Vec<u8>>>;

#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Survives every crash.
    pub base: State,
    /// Acknowledged or in flight since.
    pub steps: Vec<Pending>,
    /// Requests that failed with the power, ever.
    pub failed: u32,
    /// `base` and all `steps`: what reads must return.
    pub now: State,
    /// What was durable one commit earlier, and the steps between: beyond the
    /// redundancy the newest batch may be lost while nothing confirms it.
    pub older_base: State,
    pub older_steps: Vec<Pending>,
}

/// A volume's name, or that of the volume of a snapshot.
pub fn volume_of(name: &str) -> &str {
    name.split_once('@').map_or(name, |(volume, _)| volume)
}

/// Every volume and every snapshot of a pool.
pub fn all_names(pool: &Simulated) -> Vec<String> {
    let mut names = pool.names();
    names.extend(pool.snapshot_names());
    names
}

pub fn contents_of<'a>(state: &'a mut State, name: &str) -> &'a mut Vec<u8> {
    Arc::make_mut(state.get_mut(name).unwrap())
}

pub fn apply(state: &mut State, step: &Step) {
    let size = |bytes: u64| usize::try_from(bytes).unwrap();
    match step {
        Step::Create { name, size: bytes } => {
            let contents = Arc::new(vec![0; size(*bytes)]);
            assert!(state.insert(name.clone(), contents).is_none());
        }
        Step::Delete { name } => {
            state.remove(name).unwrap();
            state.retain(|other, _| volume_of(other) != name);
        }
        Step::Rename { old, new } => {
            let all: Vec<String> = state.keys().cloned().collect();
            for name in all.iter().filter(|name| volume_of(name) == old) {
                let contents = state.remove(name).unwrap();
                let renamed = format!("{new}{}", &name[old.len()..]);
                assert!(state.insert(renamed, contents).is_none());
            }
        }
        Step::Take { snapshot } => {
            let contents = state[volume_of(snapshot)].clone();
            assert!(state.insert(snapshot.clone(), contents).is_none());
        }
        Step::Forget { snapshot } => {
            state.remove(snapshot).unwrap();
        }
        Step::RollBack { snapshot } => {
            let contents = state[snapshot].clone();
            state.insert(volume_of(snapshot).to_owned(), contents);
        }
        Step::Clone { snapshot, name } => {
            let contents = state[snapshot].clone();
            assert!(state.insert(name.clone(), contents).is_none());
        }
        Step::Resize { name, size: bytes } => {
            contents_of(state, name).resize(size(*bytes), 0);
        }
        Step::Put {
            name,
            offset,
            bytes,
        } => {
            let at = size(*offset);
            contents_of(state, name)[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Step::Zero {
            name,
            offset,
            length,
        } => {
            let at = size(*offset);
            contents_of(state, name)[at..at + size(*length)].fill(0);
        }
    }
}

/// The steps of a write: an unaligned head, whole chunks, an unaligned tail.
pub fn write_steps(name: &str, offset: u64, data: &[u8], chunk: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let (mut at, mut rest) = (offset, data);
    while !rest.is_empty() {
        let within = at % chunk;
        let length = if within == 0 && rest.len() as u64 >= chunk {
            (rest.len() - rest.len() % chunk as usize).min(1 << 20)
        } else {
            rest.len().min((chunk - within) as usize)
        };
        let (piece, after) = rest.split_at(length);
        steps.push(Step::Put {
            name: name.to_owned(),
            offset: at,
            bytes: piece.into(),
        });
        at += length as u64;
        rest = after;
    }
    steps
}

/// The steps of zeroing: whole chunks, then head and tail.
pub fn zero_steps(name: &str, offset: u64, length: u64, size: u64, chunk: u64) -> Vec<Step> {
    let end = offset + length;
    let last_end = if end == size {
        end.next_multiple_of(chunk)
    } else {
        end
    };
    let (first, beyond) = (offset.next_multiple_of(chunk), last_end / chunk * chunk);
    let mut steps = Vec::new();
    let mut push = |from: u64, to: u64| {
        if from < to {
            steps.push(Step::Zero {
                name: name.to_owned(),
                offset: from,
                length: to - from,
            });
        }
    };
    push(first, beyond.min(end));
    push(offset, first.min(end));
    if beyond >= first {
        push(beyond, end);
    }
    steps
}

impl Model {
    /// Something was asked for; it may or may not happen.
    pub fn begin(&mut self, steps: Vec<Step>) {
        for step in steps {
            apply(&mut self.now, &step);
            self.push(step, None);
        }
    }

    /// A request failed and there is no power to see how far it came.
    pub fn begin_failed(&mut self, steps: Vec<Step>) {
        self.failed += 1;
        for step in steps {
            self.push(step, Some(self.failed));
        }
    }

    fn push(&mut self, step: Step, failed: Option<u32>) {
        // Else what is found would not tell which of them took effect.
        let mut others = self.steps.iter().filter(|other| other.failed.is_some());
        assert!(
            others.all(|other| !other.step.touches(&step)),
            "requests of one batch have different places"
        );
        self.steps.push(Pending { step, failed });
    }

    /// Everything so far is durable.
    pub fn all_durable(&mut self) {
        assert!(
            self.steps.iter().all(|pending| pending.failed.is_none()),
            "there is power for that"
        );
        if !self.steps.is_empty() {
            self.older_base = std::mem::take(&mut self.base);
            self.older_steps = std::mem::take(&mut self.steps);
        }
        self.base = self.now.clone();
    }

    /// Whether `found` is an allowed state.
    pub fn allows(&self, found: &State) -> bool {
        let shows = |step: &Step| step.is_in(found);
        let mut allowed = false;
        each_state(&self.base, self.steps.iter(), shows, |state| {
            allowed |= state == found;
        });
        allowed
    }

    /// After recovery: checks the promise, and goes on from what was found.
    pub fn recovered(&mut self, found: State, context: &str) {
        if !self.allows(&found) {
            panic!("{context}: {}", self.explain(&found));
        }
        self.go_on_from(found);
    }

    /// `found` is what recovery made durable, for good.
    pub fn go_on_from(&mut self, found: State) {
        self.older_base = found.clone();
        self.older_steps.clear();
        self.base = found.clone();
        self.now = found;
        self.steps.clear();
    }

    /// A state that was allowed to be found, the newest batch lost or not, for
    /// which `agrees` holds; the newest of them. `shows` tells of a piece of a
    /// failed request whether what was found may have it.
    pub fn newest_agreeing(
        &self,
        shows: impl Fn(&Step) -> bool,
        agrees: impl Fn(&State) -> bool,
    ) -> Option<State> {
        let mut last = None;
        let steps = self.older_steps.iter().chain(&self.steps);
        each_state(&self.older_base, steps, shows, |state| {
            if agrees(state) {
                last = Some(state.clone());
            }
        });
        last
    }

    /// Where `found` differs from the state that has every step, and which
    /// steps touched that place.
    pub fn explain(&self, found: &State) -> String {
        let mut text = format!(
            "the recovered state is no prefix ({} steps since the last flush)",
            self.steps.len()
        );
        let mut state = self.base.clone();
        for number in 0..=self.steps.len() {
            if let Some(before) = number.checked_sub(1).map(|before| &self.steps[before])
                && (before.failed.is_none() || before.step.is_in(found))
            {
                apply(&mut state, &before.step);
            }
            text += &format!("\n  after {number}: {}", differences(&state, found));
            if let Some(pending) = self.steps.get(number) {
                let name = match &pending.step {
                    Step::Put {
                        name,
                        offset,
                        bytes,
                    } => {
                        format!("put {name} {offset}+{}", bytes.len())
                    }
                    other => format!("{other:?}"),
                };
                let failed = if pending.failed.is_some() {
                    "failed "
                } else {
                    ""
                };
                text += &format!("; next: {failed}{name}");
            }
        }
        text
    }
}

/// The state after each of the steps, beginning with none of them; pieces of
/// failed requests as `shows` says, up to the first of a request that is not there.
fn each_state<'a>(
    base: &State,
    steps: impl Iterator<Item = &'a Pending>,
    shows: impl Fn(&Step) -> bool,
    mut visit: impl FnMut(&State),
) {
    let mut state = base.clone();
    let mut ended = None;
    visit(&state);
    for pending in steps {
        let step = &pending.step;
        if pending.failed.is_some() && (ended == pending.failed || !shows(step)) {
            ended = pending.failed;
            continue;
        }
        apply(&mut state, step);
        visit(&state);
    }
}

fn differences(expected: &State, found: &State) -> String {
    let names = |state: &State| {
        state
            .iter()
            .map(|(name, data)| (name.clone(), data.len()))
            .collect::<Vec<_>>()
    };
    if names(expected) != names(found) {
        return format!("volumes {:?}, found {:?}", names(expected), names(found));
    }
    let mut wrong = Vec::new();
    for (name, data) in expected {
        for (number, (one, two)) in data.chunks(4096).zip(found[name].chunks(4096)).enumerate() {
            if one != two {
                wrong.push(format!("{name}:{number}"));
            }
        }
    }
    let shown: Vec<_> = wrong.iter().take(8).cloned().collect();
    format!("{} chunks differ: {shown:?}", wrong.len())
}

/// Reads volumes and snapshots in full. A read that fails is a broken promise.
pub fn read_all(pool: &Simulated, names: &[String], context: &str) -> State {
    let mut state = State::new();
    for name in names {
        let disk = pool.disk(name).unwrap();
        let mut data = vec![0xa5; usize::try_from(disk.size()).unwrap()];
        for (number, piece) in data.chunks_mut(64 << 10).enumerate() {
            let offset = number as u64 * (64 << 10);
            let mut batch = [Request::new(Operation::Read {
                offset,
                buffer: piece,
            })];
            disk.execute(&mut batch);
            if let Err(error) = &batch[0].result {
                panic!("{context}: reading {name} at {offset}: {error}");
            }
        }
        state.insert(name.clone(), Arc::new(data));
    }
    state
}
