use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Condvar;
use tessera_engine::disk::{DiskError, DiskInfo, Extent, FlushDone, Request};

use super::super::batch::Work;
use super::super::buffers::BufferPool;
use super::*;
use crate::protocol::reply::Addressee;

/// Reads wait until they are let go; a read at offset 1 panics.
#[derive(Default)]
struct GatedDisk {
    inside: AtomicUsize,
    open: Mutex<bool>,
    opened: Condvar,
}

impl GatedDisk {
    fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }
}

impl Disk for GatedDisk {
    fn info(&self) -> DiskInfo {
        unimplemented!("nobody asks")
    }

    fn execute(&self, batch: &mut [Request<'_>]) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
        drop(open);
        for request in batch {
            if let tessera_engine::disk::Operation::Read { offset, buffer } = &mut request.operation
            {
                assert_ne!(*offset, 1, "the panic that a test asks for");
                buffer.fill(7);
            }
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn flush(&self, _: FlushDone) {}

    fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>, DiskError> {
        Ok(Vec::new())
    }
}

fn job(disk: &Arc<GatedDisk>, offset: u64) -> Job {
    let pool = BufferPool::new(0, 0);
    let mut batch = Batch::default();
    batch.ensure_reply(&pool);
    let work = Work::Read {
        offset,
        length: 512,
        last: true,
    };
    let to = Addressee { cookie: 1, offset };
    batch.push(to, work, false, 1024, Ok(()));
    Job {
        disk: Arc::clone(disk) as Arc<dyn Disk>,
        batch,
        style: HeaderStyle::Structured,
    }
}

#[test]
fn a_job_is_refused_when_all_helpers_are_busy_and_taken_when_one_is_free() {
    let disk = Arc::new(GatedDisk::default());
    let helpers = Helpers::with(2);
    let tickets = [0, 512].map(|offset| helpers.give(job(&disk, offset)).ok().unwrap());
    let refused = helpers.give(job(&disk, 1024)).err().unwrap();
    assert_eq!(refused.entries().len(), 1);
    disk.open();
    for ticket in tickets {
        let batch = ticket.wait().unwrap();
        assert!(batch.reply().contains(&7));
        // At once: a result is not out before its helper counts as free.
        assert!(
            helpers
                .give(job(&disk, 1024))
                .ok()
                .unwrap()
                .wait()
                .is_some()
        );
    }
    assert_eq!(helpers.count.lock().started, 2);
}

#[test]
fn no_more_helpers_are_started_than_work_at_a_time() {
    let disk = Arc::new(GatedDisk::default());
    disk.open();
    let helpers = Helpers::with(8);
    for _ in 0..100 {
        assert!(helpers.give(job(&disk, 0)).ok().unwrap().wait().is_some());
    }
    assert_eq!(helpers.count.lock().started, 1);
}

#[test]
fn a_panic_of_the_disk_costs_the_batch_and_not_the_helper() {
    let disk = Arc::new(GatedDisk::default());
    disk.open();
    let helpers = Helpers::with(1);
    assert!(helpers.give(job(&disk, 1)).ok().unwrap().wait().is_none());
    assert!(helpers.give(job(&disk, 0)).ok().unwrap().wait().is_some());
}

#[test]
fn a_dropped_ticket_has_waited_for_its_job() {
    let disk = Arc::new(GatedDisk::default());
    let helpers = Helpers::with(1);
    let ticket = helpers.give(job(&disk, 0)).ok().unwrap();
    let opener = std::thread::spawn({
        let disk = Arc::clone(&disk);
        move || {
            while disk.inside.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            disk.open();
        }
    });
    drop(ticket);
    assert_eq!(disk.inside.load(Ordering::SeqCst), 0);
    opener.join().unwrap();
    // The helper has let go of the disk too.
    assert_eq!(Arc::strong_count(&disk), 1);
}
