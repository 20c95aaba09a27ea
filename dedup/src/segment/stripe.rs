//! Stripes in memory: being filled, or closed and on their way to the members.
//!
//! A reader finds a chunk's bytes here until the stripe writer has put the
//! stripe on the members; from then on the members have them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::RwLock;
use tessera_raid::{SegmentId, device::AlignedBuf};

use crate::{Generation, UnwrittenSource};

/// One stripe of one segment.
#[derive(Debug)]
pub struct Stripe {
    /// The segment.
    pub segment: SegmentId,
    /// Its generation.
    pub generation: Generation,
    /// The stripe's number in the segment.
    pub index: u32,
    bytes: RwLock<StripeBytes>,
}

#[derive(Debug)]
enum StripeBytes {
    Filling(AlignedBuf),
    Closed(Arc<AlignedBuf>),
}

impl Stripe {
    pub(super) fn new(
        segment: SegmentId,
        generation: Generation,
        index: u32,
        buffer: AlignedBuf,
    ) -> Self {
        Self {
            segment,
            generation,
            index,
            bytes: RwLock::new(StripeBytes::Filling(buffer)),
        }
    }

    /// Puts bytes at an offset of the stripe. The stripe must not be closed.
    pub(super) fn fill(&self, offset: usize, bytes: &[u8]) {
        match &mut *self.bytes.write() {
            StripeBytes::Filling(buffer) => {
                buffer[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            StripeBytes::Closed(_) => unreachable!("a closed stripe is never extended (R14)"),
        }
    }

    /// Zeroes a range, so that no recycled memory reaches the members.
    pub(super) fn clear(&self, from: usize, to: usize) {
        if let StripeBytes::Filling(buffer) = &mut *self.bytes.write() {
            buffer[from..to].fill(0);
        }
    }

    /// Ends filling and returns the bytes for the members. Idempotent.
    pub(super) fn close(&self) -> Arc<AlignedBuf> {
        let mut bytes = self.bytes.write();
        if let StripeBytes::Filling(buffer) = &mut *bytes {
            let buffer = Arc::new(std::mem::replace(buffer, AlignedBuf::empty()));
            *bytes = StripeBytes::Closed(buffer);
        }
        match &*bytes {
            StripeBytes::Closed(buffer) => Arc::clone(buffer),
            StripeBytes::Filling(_) => unreachable!("closed above"),
        }
    }

    /// Copies `target.len()` bytes from an offset of the stripe.
    pub(super) fn copy(&self, offset: usize, target: &mut [u8]) {
        let range = offset..offset + target.len();
        match &*self.bytes.read() {
            StripeBytes::Filling(buffer) => target.copy_from_slice(&buffer[range]),
            StripeBytes::Closed(buffer) => target.copy_from_slice(&buffer[range]),
        }
    }
}

/// Every stripe that is not on the members yet.
#[derive(Debug)]
pub struct UnwrittenStripes {
    stripes: RwLock<HashMap<(u32, u32), Arc<Stripe>>>,
    /// Lets readers skip the lock while nothing is unwritten.
    count: AtomicUsize,
    stripe_bytes: u32,
}

impl UnwrittenStripes {
    /// An empty set for stripes that hold `stripe_bytes` of data.
    pub fn new(stripe_bytes: u32) -> Self {
        Self {
            stripes: RwLock::default(),
            count: AtomicUsize::new(0),
            stripe_bytes,
        }
    }

    pub(super) fn insert(&self, stripe: &Arc<Stripe>) {
        let mut stripes = self.stripes.write();
        stripes.insert((stripe.segment.0, stripe.index), Arc::clone(stripe));
        self.count.store(stripes.len(), Ordering::Release);
    }

    pub(super) fn remove(&self, stripe: &Arc<Stripe>) {
        let mut stripes = self.stripes.write();
        stripes.remove(&(stripe.segment.0, stripe.index));
        self.count.store(stripes.len(), Ordering::Release);
    }

    /// Stripes in memory.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// True when everything is on the members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl UnwrittenSource for UnwrittenStripes {
    fn copy(
        &self,
        segment: SegmentId,
        generation_low: u8,
        position: u32,
        target: &mut [u8],
    ) -> bool {
        if self.is_empty() {
            return false;
        }
        let key = (segment.0, position / self.stripe_bytes);
        let Some(stripe) = self.stripes.read().get(&key).cloned() else {
            return false;
        };
        if stripe.generation.low() != generation_low {
            return false;
        }
        let offset = usize::try_from(position % self.stripe_bytes).expect("a stripe fits memory");
        stripe.copy(offset, target);
        true
    }
}
