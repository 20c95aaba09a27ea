//! Creating: check everything, lay the members out, write superblock 1.
//!
//! Until all checks have passed nothing is written. Then, on every member:
//! 1. the superblock areas and the journal ring are allocated and zeroed, so
//!    that neither needs space or metadata later (R4) and no superblock of an
//!    earlier pool is left;
//! 2. the slots are discarded;
//! 3. superblock 1 goes to its two places, durably;
//! 4. and the witness makes it a pool.
//!
//! A create that fails leaves members that do not make up a pool, and removes
//! nothing.

use std::{sync::Arc, time::Duration};

use super::{
    Array, CreateSpec, Limits, Parts, SystemClock,
    limits::Counters,
    prepare::{lay_out, run_all},
    roster::{OpenDevice, Row},
    superblocks::check_engine_record,
};
use crate::{
    Kind, LayoutId, MemberIndex, MemberSet, RaidError, Sizes,
    device::{AlignedBuf, BLOCK_BYTES, Backend, BufSlice, Io, IoOp, OpenMode},
    layout::{Layout, SegmentGeometry},
    member::{Devices, OpenMember, open_members, places, refuse_used},
    sabotage::broken,
    superblock::{
        Geometry, HASH_BLAKE3, History, MemberRecord, PoolRecord, SEGMENT_DATA_BYTES_END,
        SUPERBLOCK_BYTES, Standing, encode,
    },
    witness::Witness,
};

const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const DEFAULT_JOURNAL_MIN: u64 = 4 << 20;
const DEFAULT_JOURNAL_MAX: u64 = 256 << 20;

impl Array {
    /// Makes a new array and opens it for writing, clean.
    ///
    /// Members are existing files or block devices. Slots are as many as the
    /// smallest member has room for.
    ///
    /// # Errors
    /// `InvalidArgument` for a level, width or size that cannot be,
    /// `DuplicateMember`, `Locked`, `AlreadyUsed` (unless forced): nothing
    /// has been written then. `Stalled` where a member does not answer; `Io`
    /// and `Witness` from writing.
    pub fn create(
        backend: Arc<dyn Backend>,
        spec: &CreateSpec,
        engine_record: &[u8],
        witness: Box<dyn Witness>,
    ) -> Result<Array, RaidError> {
        check_engine_record(engine_record)?;
        let layout = layout_of(spec)?;
        let segment = segment_of(&layout, spec.sizes.segment_data_bytes_target)?;
        if let Some(record) = witness.load()?
            && !spec.force
        {
            return Err(RaidError::new(
                Kind::AlreadyUsed,
                format!("There is a pool here already, {}", record.pool),
            ));
        }
        let mut devices = Devices::new(Arc::clone(&backend));
        let mode = OpenMode {
            writable: true,
            lock_patience: LOCK_PATIENCE,
        };
        let opened = open_members(&mut devices, &spec.members, mode, true)?;
        if !spec.force {
            for member in &opened {
                refuse_used(backend.as_ref(), member, spec.stall_limit)?;
            }
        }
        let geometry = geometry_of(spec, &segment, &opened)?;
        let record = PoolRecord {
            pool: witness.issue_id(),
            sequence: 1,
            commits: 0,
            history: History::first(witness.issue_id()),
            clean: true,
            hash_algorithm: HASH_BLAKE3,
            geometry,
            current_layout: layout.id,
            layouts: vec![layout],
            members: opened
                .iter()
                .map(|m| record_of(m, &geometry, witness.as_ref()))
                .collect(),
            engine_record: engine_record.to_vec(),
        };
        let patience = spec.stall_limit;
        lay_out(backend.as_ref(), &opened, &record.geometry, true, patience)?;
        write_first(backend.as_ref(), &opened, &record, patience)?;
        let rows = opened
            .into_iter()
            .zip(&record.members)
            .map(|(member, row)| {
                let counters = Arc::new(Counters::default());
                let backend = Arc::clone(&backend);
                Row {
                    uuid: row.uuid,
                    path: member.path,
                    size_bytes: row.size_bytes,
                    device: Some(OpenDevice::new(
                        backend,
                        member.device,
                        row.uuid,
                        Arc::clone(&counters),
                    )),
                    present: true,
                    counters,
                }
            });
        let rows = rows.collect();
        let array = Array::assemble(Parts {
            backend,
            witness,
            read_only: false,
            limits: Limits {
                stall: spec.stall_limit,
                ..Limits::default()
            },
            clock: Arc::new(SystemClock::default()),
            record,
            rows,
        });
        devices.keep();
        array.finish_creation()
    }
}

fn invalid(message: impl Into<String>) -> RaidError {
    RaidError::new(Kind::InvalidArgument, message)
}

fn layout_of(spec: &CreateSpec) -> Result<Layout, RaidError> {
    let count = spec.members.len();
    if !spec.level.accepts(count) {
        return Err(invalid(format!(
            "Level {} needs {}, not {count}",
            spec.level,
            spec.level.members_in_words()
        )));
    }
    let members = MemberSet::first(count).iter().collect();
    Layout::new(LayoutId(0), spec.level, spec.stripe_unit_bytes, members)
        .map_err(|error| invalid(error.to_string()))
}

fn segment_of(layout: &Layout, target: u32) -> Result<SegmentGeometry, RaidError> {
    let stripe = layout.stripe_data_bytes();
    if u64::from(stripe) >= SEGMENT_DATA_BYTES_END {
        return Err(invalid(format!(
            "A stripe of {stripe} bytes of data is too large; use a smaller stripe unit"
        )));
    }
    if target > Sizes::SEGMENT_DATA_BYTES_MAX {
        return Err(invalid(format!("Segments of {target} bytes are too large")));
    }
    // Positions stay below 2^24, so a target of exactly that loses a stripe.
    let target = target.min(Sizes::SEGMENT_DATA_BYTES_MAX - 1);
    Ok(SegmentGeometry::new(layout, target))
}

fn geometry_of(
    spec: &CreateSpec,
    segment: &SegmentGeometry,
    opened: &[OpenMember],
) -> Result<Geometry, RaidError> {
    let smallest = opened
        .iter()
        .map(|member| member.facts.size_bytes)
        .min()
        .unwrap_or(0);
    let block = BLOCK_BYTES as u64;
    let journal_bytes = spec.sizes.journal_bytes.unwrap_or_else(|| {
        let share = (smallest / 64).clamp(DEFAULT_JOURNAL_MIN, DEFAULT_JOURNAL_MAX);
        share / block * block
    });
    if journal_bytes == 0 || !journal_bytes.is_multiple_of(block) {
        return Err(invalid(format!(
            "A journal of {journal_bytes} bytes is not a multiple of {block}"
        )));
    }
    let geometry = Geometry::new(journal_bytes, u64::from(segment.slot_bytes()));
    let needed = geometry.size_for(1);
    for member in opened {
        if member.facts.size_bytes < needed {
            return Err(invalid(format!(
                "{} is too small: it has {} bytes, a member needs at least {needed}",
                member.path.display(),
                member.facts.size_bytes
            )));
        }
    }
    Ok(geometry)
}

fn record_of(member: &OpenMember, geometry: &Geometry, witness: &dyn Witness) -> MemberRecord {
    let size_bytes = member.facts.size_bytes;
    MemberRecord {
        uuid: witness.issue_id(),
        size_bytes,
        slot_count: geometry.slot_count(size_bytes),
        standing: Standing::InSync,
        changed_at: 1,
    }
}

fn write_first(
    backend: &dyn Backend,
    opened: &[OpenMember],
    record: &PoolRecord,
    patience: Duration,
) -> Result<(), RaidError> {
    for place in 0..2 {
        let indices = (0..).map(MemberIndex);
        let mut batch: Vec<Io> = opened
            .iter()
            .zip(indices)
            .map(|(member, index)| {
                let mut bytes = AlignedBuf::zeroed(SUPERBLOCK_BYTES as usize);
                encode(record, index, &mut bytes);
                let offset = places(record.sequence, member.facts.size_bytes)[place];
                let data = vec![BufSlice::from(bytes)];
                let op = IoOp::Write {
                    data,
                    durable: !broken("sync.first_superblock"),
                };
                Io {
                    device: member.device,
                    offset,
                    op,
                    outcome: None,
                }
            })
            .collect();
        run_all(backend, &mut batch, opened, 1, patience)?;
    }
    Ok(())
}
