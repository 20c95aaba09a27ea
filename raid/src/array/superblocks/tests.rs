//! The barrier and the one writer, from inside.

use std::{io, path::PathBuf, sync::Arc};

use super::*;
use crate::{
    CreateSpec, Level, Limits, MemberSet, MemoryWitness, Placement, Sizes, SlotIndex, StripeWrite,
    device::sim::SimWorld,
};

fn array() -> (SimWorld, MemoryWitness, Array) {
    let world = SimWorld::new(1);
    let members: Vec<PathBuf> = (0..3).map(|n| format!("disk{n}").into()).collect();
    for path in &members {
        world.add_device(path, 4 << 20);
    }
    let witness = MemoryWitness::new();
    let sizes = Sizes {
        segment_data_bytes_target: 1 << 18,
        journal_bytes: Some(1 << 16),
    };
    let spec = CreateSpec {
        level: Level::Raid5,
        stripe_unit_bytes: 4096,
        members,
        force: false,
        sizes,
        stall_limit: Limits::default().stall,
    };
    let array = Array::create(world.backend(), &spec, b"", Box::new(witness.clone())).unwrap();
    array.commit(b"", false).unwrap();
    (world, witness, array)
}

/// Another thread has met a failure and is on its way to the barrier: the
/// member is out of use in memory, and nobody has written that down yet.
fn note(array: &Array) {
    let failing = [Arc::clone(array.roster().device(MemberIndex(1)))];
    let mut state = array.superblocks.lock();
    array.note_failures(&mut state, &failing, "test").unwrap();
}

#[test]
fn r2_whoever_skips_a_member_waits_for_the_barrier() {
    let block = Arc::new(AlignedBuf::zeroed(4096));
    let stripe = |array: &Array| StripeWrite {
        placement: Placement::equal(array.current_layout, SlotIndex(0)),
        stripe: 0,
        data: Arc::new(AlignedBuf::zeroed(array.stripe_data_bytes() as usize)),
    };
    for act in 0..4 {
        let (world, witness, array) = array();
        let sequence = array.sequence();
        let before = array.roster();
        note(&array);
        assert_eq!(array.sequence(), sequence, "not written down yet");
        match act {
            0 => array.write_stripes(&[stripe(&array)]).unwrap(),
            1 => array.sync().unwrap(),
            2 => array.journal_write(0, &block).unwrap(),
            _ => array
                .degrade(&before, MemberSet::of(MemberIndex(1)), "again")
                .unwrap(),
        }
        assert_eq!(array.sequence(), sequence + 1, "case {act}");
        let recorded = array.durable_record();
        assert_eq!(recorded.members[1].standing, Standing::Failed);
        let witnessed = witness.record().unwrap();
        assert_eq!(witnessed.membership_id, recorded.history.head());
        let before = world.counters("disk0").durable_writes;
        array.write_stripes(&[stripe(&array)]).unwrap();
        assert_eq!(
            world.counters("disk0").durable_writes,
            before,
            "once is enough"
        );
    }
}

#[test]
fn r6_waiting_callers_share_one_write() {
    let (world, _witness, array) = array();
    let before = world.counters("disk0").durable_writes;
    // Two commits are desired before anybody writes.
    {
        let mut state = array.superblocks.lock();
        state.desired.engine_record = b"first".to_vec();
        state.desired_version += 1;
    }
    array.commit(b"second", false).unwrap();
    assert_eq!(world.counters("disk0").durable_writes - before, 2);
    assert_eq!(array.engine_record(), b"second");
}

/// Does something in the middle of the next durable write.
struct Interposed {
    inner: Arc<dyn crate::device::Backend>,
    act: parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl crate::device::Backend for Interposed {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn open(
        &self,
        path: &std::path::Path,
        mode: crate::device::OpenMode,
    ) -> io::Result<crate::device::DeviceHandle> {
        self.inner.open(path, mode)
    }
    fn create_file(&self, path: &std::path::Path, size_bytes: u64) -> io::Result<()> {
        self.inner.create_file(path, size_bytes)
    }
    fn facts(&self, device: crate::device::DeviceHandle) -> crate::device::DeviceFacts {
        self.inner.facts(device)
    }
    fn close(&self, device: crate::device::DeviceHandle) {
        self.inner.close(device);
    }
    fn run(&self, batch: &mut [crate::device::Io], verdict: &dyn crate::device::Verdict) {
        if let Some(act) = self.act.lock().take() {
            act();
        }
        self.inner.run(batch, verdict);
    }
}

#[test]
fn r6_what_is_desired_during_a_write_is_written_after_it() {
    let (world, witness, array) = array();
    drop(array);
    let backend = Arc::new(Interposed {
        inner: world.backend(),
        act: parking_lot::Mutex::default(),
    });
    let members: Vec<PathBuf> = (0..3).map(|n| format!("disk{n}").into()).collect();
    let array = Array::open(
        Arc::clone(&backend) as Arc<dyn crate::device::Backend>,
        &members,
        Box::new(witness),
        &crate::OpenOptions::default(),
    );
    let array = Arc::new(array.unwrap());
    let other = Arc::downgrade(&array);
    *backend.act.lock() = Some(Box::new(move || {
        let array = other.upgrade().unwrap();
        let state = array.superblocks.try_lock();
        let mut state = state.expect("nothing is held while superblocks are written");
        assert!(state.writing);
        state.desired.engine_record = b"second".to_vec();
        state.desired_version += 1;
    }));
    array.commit(b"first", false).unwrap();
    assert!(backend.act.lock().is_none(), "it has happened");
    assert_eq!(array.engine_record(), b"first");
    array.flush_changes().unwrap();
    assert_eq!(array.engine_record(), b"second");
}
