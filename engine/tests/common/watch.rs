//! A backend that stands before the simulated one, does operations one at a
//! time and takes a snapshot at each at which the power could be cut.
//!
//! The order within a batch is the simulation's: syncs first, then anything.
//! A durable write is first done without being durable: a cut at that moment
//! leaves some of it, or tears it. For every other operation the moment before
//! it is enough, because what was not synced before may be lost anyway.

use std::{io, path::Path, sync::Arc};

use parking_lot::Mutex;
use tessera_raid::{
    MemoryWitness,
    device::{
        Backend, DeviceFacts, DeviceHandle, Io, IoOp, OpenMode, Verdict,
        sim::{SimBackend, SimSnapshot, SimWorld},
    },
};

use super::Rng;

/// The power may be cut here.
pub struct Moment {
    pub world: SimSnapshot,
    pub witness: MemoryWitness,
    /// Steps of the model that had been begun.
    pub begun: usize,
    /// Steps of the model that were durable.
    pub durable: usize,
    pub operation: String,
}

#[derive(Default)]
pub struct Watched {
    pub moments: Vec<Moment>,
    pub begun: usize,
    pub durable: usize,
    /// Moments are being taken.
    pub on: bool,
}

pub struct Watcher {
    sim: SimWorld,
    inner: Arc<SimBackend>,
    witness: MemoryWitness,
    pub watched: Arc<Mutex<Watched>>,
    rng: Mutex<Rng>,
}

impl Watcher {
    pub fn new(sim: &SimWorld, witness: &MemoryWitness) -> Arc<Self> {
        Arc::new(Self {
            sim: sim.clone(),
            inner: sim.backend(),
            witness: witness.clone(),
            watched: Arc::default(),
            rng: Mutex::new(Rng::new(9)),
        })
    }

    fn moment(&self, operation: &Io) {
        let mut watched = self.watched.lock();
        if !watched.on {
            return;
        }
        let moment = Moment {
            world: self.sim.snapshot(),
            witness: self.witness.fork(77),
            begun: watched.begun,
            durable: watched.durable,
            operation: describe(operation),
        };
        watched.moments.push(moment);
    }

    fn run_one(&self, io: &mut [Io], verdict: &dyn Verdict) {
        match &io[0].op {
            IoOp::Write {
                data,
                durable: true,
            } => {
                let op = IoOp::Write {
                    data: data.clone(),
                    durable: false,
                };
                let mut cached = [Io {
                    device: io[0].device,
                    offset: io[0].offset,
                    op,
                    outcome: None,
                }];
                self.inner.run(&mut cached, verdict);
                self.moment(&io[0]);
            }
            IoOp::Read(_) => {}
            _ => self.moment(&io[0]),
        }
        self.inner.run(io, verdict);
    }
}

pub fn describe(io: &Io) -> String {
    let what = match &io.op {
        IoOp::Read(buffer) => format!("read {}", buffer.len()),
        IoOp::Write { data, durable } => {
            let length: usize = data.iter().map(|slice| slice.as_slice().len()).sum();
            format!("write {length}{}", if *durable { ", durable" } else { "" })
        }
        IoOp::Sync => "sync".to_owned(),
        IoOp::Discard { length } => format!("discard {length}"),
        IoOp::Preallocate { length } => format!("preallocate {length}"),
    };
    format!("device {} at {}: {what}", io.device.0, io.offset)
}

impl Backend for Watcher {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle> {
        self.inner.open(path, mode)
    }

    fn create_file(&self, path: &Path, size_bytes: u64) -> io::Result<()> {
        self.inner.create_file(path, size_bytes)
    }

    fn facts(&self, device: DeviceHandle) -> DeviceFacts {
        self.inner.facts(device)
    }

    fn close(&self, device: DeviceHandle) {
        self.inner.close(device);
    }

    fn run(&self, batch: &mut [Io], verdict: &dyn Verdict) {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        let mut rng = self.rng.lock();
        for last in (1..order.len()).rev() {
            order.swap(last, rng.below(last as u64 + 1) as usize);
        }
        drop(rng);
        order.sort_by_key(|at| !matches!(batch[*at].op, IoOp::Sync));
        for at in order {
            self.run_one(&mut batch[at..=at], verdict);
        }
    }
}

/// Prints every operation, for finding out what two runs do differently.
pub struct Tracer(pub Arc<SimBackend>);

impl Backend for Tracer {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle> {
        self.0.open(path, mode)
    }

    fn create_file(&self, path: &Path, size_bytes: u64) -> io::Result<()> {
        self.0.create_file(path, size_bytes)
    }

    fn facts(&self, device: DeviceHandle) -> DeviceFacts {
        self.0.facts(device)
    }

    fn close(&self, device: DeviceHandle) {
        self.0.close(device);
    }

    fn run(&self, batch: &mut [Io], verdict: &dyn Verdict) {
        let named: Vec<String> = batch.iter().map(describe).collect();
        self.0.run(batch, verdict);
        for (io, name) in batch.iter().zip(named) {
            eprintln!("    {name}: {:?}", io.outcome);
        }
    }
}
