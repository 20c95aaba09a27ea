//! One job as the job table stores it.
//!
//! ```text
//!    0  id u64                        |    8  kind u8, state u8, flags u16, member u32
//!   16  target uuid, 16 bytes         |   32  since u64; of a dedup: merged bytes
//!   40  cursor: phase u32, segment u32|   48  cursor: stripe u32 | damaged count u32
//!   56  done bytes u64                |   64  total bytes u64
//!   72  started, ms u64               |   80  ended, ms u64
//!   88  pieces checked u64            |   96  found u64
//!  104  repaired u64                  |  112  lost u64
//!  120  message length u32, 0 u32     |  128  message, 192 bytes
//!  320  of each of 64 members: checked u64, found u64, repaired u64
//! 1856  24 damaged places: segment u32, position u32
//! ```
//! Little-endian, 2048 bytes; a record of zeroes is a free row.

use std::collections::BTreeMap;

use tessera_raid::{MemberIndex, SegmentId};
use uuid::Uuid;

use crate::api::{JobKind, JobState};

/// Bytes of an encoded record.
pub(crate) const JOB_RECORD_BYTES: usize = 2048;
/// Damaged places that are kept; of more only the number is.
pub(crate) const DAMAGED_MAX: usize = 24;

const MEMBERS_MAX: usize = 64;
const MESSAGE_MAX: usize = 192;
const FLAG_SINCE: u16 = 1;
const FLAG_MEMBER: u16 = 2;
const AT_MESSAGE: usize = 128;
const AT_MEMBERS: usize = AT_MESSAGE + MESSAGE_MAX;
const MEMBER_BYTES: usize = 24;
const AT_DAMAGED: usize = AT_MEMBERS + MEMBERS_MAX * MEMBER_BYTES;
const DAMAGED_BYTES: usize = 8;
const _: () = assert!(AT_DAMAGED + DAMAGED_MAX * DAMAGED_BYTES == JOB_RECORD_BYTES);

/// Up to where a job has come. Everything below has been dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Cursor {
    /// The kind's own stage.
    pub(crate) phase: u32,
    /// The segment to go on with.
    pub(crate) segment: u32,
    /// The stripe in it.
    pub(crate) stripe: u32,
}

/// What was found on one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) checked: u64,
    pub(crate) found: u64,
    pub(crate) repaired: u64,
}

/// A job at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobRecord {
    /// Never reused within a pool.
    pub(crate) id: u64,
    pub(crate) kind: JobKind,
    pub(crate) state: JobState,
    /// The member that a rebuild is for.
    pub(crate) member: Option<MemberIndex>,
    /// The device that it is rebuilt on.
    pub(crate) target: Uuid,
    /// Segments sealed up to this commit are on the target already.
    pub(crate) since: Option<u64>,
    pub(crate) cursor: Cursor,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) started_ms: u64,
    /// 0 while it has not ended.
    pub(crate) ended_ms: u64,
    /// Chunks, pages, blocks and copies looked at.
    pub(crate) checked: u64,
    pub(crate) found: u64,
    pub(crate) repaired: u64,
    /// Things that no copy verifies of.
    pub(crate) lost: u64,
    /// Stored bytes of duplicates that are not needed any more. Only a
    /// deduplication has any, and only a rebuild has a `since`.
    pub(crate) merged_bytes: u64,
    /// Why it ended, or what it waits for.
    pub(crate) message: String,
    pub(crate) members: BTreeMap<MemberIndex, Counts>,
    /// Where they were, as far as there is room.
    pub(crate) damaged: Vec<(SegmentId, u32)>,
}

impl JobRecord {
    pub(crate) fn new(id: u64, kind: JobKind, started_ms: u64) -> Self {
        Self {
            id,
            kind,
            state: JobState::Running,
            member: None,
            target: Uuid::nil(),
            since: None,
            cursor: Cursor::default(),
            done_bytes: 0,
            total_bytes: 0,
            started_ms,
            ended_ms: 0,
            checked: 0,
            found: 0,
            repaired: 0,
            lost: 0,
            merged_bytes: 0,
            message: String::new(),
            members: BTreeMap::new(),
            damaged: Vec::new(),
        }
    }

    /// Running or paused.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.state, JobState::Running | JobState::Paused)
    }

    /// Counts of one member.
    pub(crate) fn of(&mut self, member: MemberIndex) -> &mut Counts {
        self.members.entry(member).or_default()
    }

    /// Remembers a place that no copy verifies of.
    pub(crate) fn note_lost(&mut self, segment: SegmentId, position: u32) {
        if self.damaged.contains(&(segment, position)) {
            return;
        }
        self.lost += 1;
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.push((segment, position));
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; JOB_RECORD_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let mut flags = 0;
        if self.since.is_some() {
            flags |= FLAG_SINCE;
        }
        if self.member.is_some() {
            flags |= FLAG_MEMBER;
        }
        put(0, &self.id.to_le_bytes());
        put(8, &[kind_code(self.kind), state_code(self.state)]);
        put(10, &flags.to_le_bytes());
        put(12, &self.member.map_or(0, |m| u32::from(m.0)).to_le_bytes());
        put(16, self.target.as_bytes());
        put(32, &self.since.unwrap_or(self.merged_bytes).to_le_bytes());
        put(40, &self.cursor.phase.to_le_bytes());
        put(44, &self.cursor.segment.to_le_bytes());
        put(48, &self.cursor.stripe.to_le_bytes());
        let count = |n: usize| u32::try_from(n).expect("bounded by the record's length");
        put(52, &count(self.damaged.len()).to_le_bytes());
        let words = [
            self.done_bytes,
            self.total_bytes,
            self.started_ms,
            self.ended_ms,
            self.checked,
            self.found,
            self.repaired,
            self.lost,
        ];
        for (at, word) in (56..).step_by(8).zip(words) {
            put(at, &word.to_le_bytes());
        }
        let message = cut(&self.message);
        put(120, &count(message.len()).to_le_bytes());
        put(AT_MESSAGE, message.as_bytes());
        for (member, counts) in &self.members {
            let at = AT_MEMBERS + member.index() * MEMBER_BYTES;
            put(at, &counts.checked.to_le_bytes());
            put(at + 8, &counts.found.to_le_bytes());
            put(at + 16, &counts.repaired.to_le_bytes());
        }
        for (at, (segment, position)) in (AT_DAMAGED..).step_by(DAMAGED_BYTES).zip(&self.damaged) {
            put(at, &segment.0.to_le_bytes());
            put(at + 4, &position.to_le_bytes());
        }
        bytes
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != JOB_RECORD_BYTES {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_le_bytes(bytes[at..at + 2].try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let flags = u16_at(10)?;
        let length = usize::try_from(u32_at(120)?).ok()?;
        let damaged = usize::try_from(u32_at(52)?).ok()?;
        if length > MESSAGE_MAX || damaged > DAMAGED_MAX {
            return None;
        }
        let mut members = BTreeMap::new();
        for (number, at) in (0..MEMBERS_MAX).zip((AT_MEMBERS..).step_by(MEMBER_BYTES)) {
            let counts = Counts {
                checked: u64_at(at)?,
                found: u64_at(at + 8)?,
                repaired: u64_at(at + 16)?,
            };
            if counts != Counts::default() {
                members.insert(MemberIndex(u8::try_from(number).ok()?), counts);
            }
        }
        let place = |at: usize| Some((SegmentId(u32_at(at)?), u32_at(at + 4)?));
        Some(Self {
            id: u64_at(0).filter(|id| *id != 0)?,
            kind: kind_of(bytes[8])?,
            state: state_of(bytes[9])?,
            member: match flags & FLAG_MEMBER {
                0 => None,
                _ => Some(MemberIndex(u8::try_from(u32_at(12)?).ok()?)),
            },
            target: Uuid::from_bytes(bytes[16..32].try_into().ok()?),
            since: (flags & FLAG_SINCE != 0).then_some(u64_at(32)?),
            cursor: Cursor {
                phase: u32_at(40)?,
                segment: u32_at(44)?,
                stripe: u32_at(48)?,
            },
            done_bytes: u64_at(56)?,
            total_bytes: u64_at(64)?,
            started_ms: u64_at(72)?,
            ended_ms: u64_at(80)?,
            checked: u64_at(88)?,
            found: u64_at(96)?,
            repaired: u64_at(104)?,
            lost: u64_at(112)?,
            merged_bytes: match flags & FLAG_SINCE {
                0 => u64_at(32)?,
                _ => 0,
            },
            message: String::from_utf8(bytes[AT_MESSAGE..AT_MESSAGE + length].to_vec()).ok()?,
            members,
            damaged: (AT_DAMAGED..)
                .step_by(DAMAGED_BYTES)
                .take(damaged)
                .map(place)
                .collect::<Option<_>>()?,
        })
    }
}

fn cut(message: &str) -> &str {
    let end = (0..=message.len().min(MESSAGE_MAX))
        .rev()
        .find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or(0)]
}

fn kind_code(kind: JobKind) -> u8 {
    match kind {
        JobKind::Rebuild => 1,
        JobKind::Scrub => 2,
        JobKind::Reclaim => 3,
        JobKind::Dedup => 4,
    }
}

fn kind_of(code: u8) -> Option<JobKind> {
    JobKind::ALL
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
}

fn state_code(state: JobState) -> u8 {
    match state {
        JobState::Idle => 1,
        JobState::Running => 2,
        JobState::Paused => 3,
        JobState::Done => 4,
        JobState::Failed => 5,
    }
}

fn state_of(code: u8) -> Option<JobState> {
    use JobState::{Done, Failed, Idle, Paused, Running};
    [Idle, Running, Paused, Done, Failed]
        .into_iter()
        .find(|state| state_code(*state) == code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_stored_form_of_a_job_does_not_change() {
        let record = JobRecord {
            state: JobState::Paused,
            member: Some(MemberIndex(3)),
            target: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            since: Some(0x1112),
            cursor: Cursor {
                phase: 0x21,
                segment: 0x31,
                stripe: 0x41,
            },
            done_bytes: 0x5152,
            total_bytes: 0x6162,
            ended_ms: 0x7172,
            checked: 0x81,
            found: 0x82,
            repaired: 0x83,
            lost: 0x84,
            message: "Waits".to_owned(),
            members: BTreeMap::from([(
                MemberIndex(63),
                Counts {
                    checked: 0x91,
                    found: 0x92,
                    repaired: 0x93,
                },
            )]),
            damaged: vec![(SegmentId(0xa1), 0xa2)],
            ..JobRecord::new(0xb1b2, JobKind::Rebuild, 0xc1c2)
        };
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/format/job-1.bin");
        let golden = std::fs::read(path).unwrap();
        assert_eq!(record.encode(), golden);
        assert_eq!(JobRecord::decode(&golden), Some(record));
    }

    proptest! {
        #[test]
        fn records_round_trip(
            words: [u64; 8], cursor: [u32; 3], member in proptest::option::of(0u8..64),
            since: Option<u64>, message in "\\PC{0,60}",
            counts in proptest::collection::btree_map(0u8..64, 1u64.., 0..64),
            damaged in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..DAMAGED_MAX),
        ) {
            let record = JobRecord {
                member: member.map(MemberIndex),
                target: Uuid::from_u128(7),
                since,
                cursor: Cursor { phase: cursor[0], segment: cursor[1], stripe: cursor[2] },
                done_bytes: words[0], total_bytes: words[1], started_ms: words[2],
                ended_ms: words[3], checked: words[4], found: words[5],
                repaired: words[6], lost: words[7],
                message: cut(&message).to_owned(),
                members: counts.into_iter().map(|(member, checked)| {
                    (MemberIndex(member), Counts { checked, found: 1, repaired: 2 })
                }).collect(),
                damaged: damaged.into_iter().map(|(s, p)| (SegmentId(s), p)).collect(),
                ..JobRecord::new(9, JobKind::Scrub, 0)
            };
            prop_assert_eq!(JobRecord::decode(&record.encode()), Some(record));
        }

        #[test]
        fn decoding_is_total(bytes in proptest::collection::vec(any::<u8>(), JOB_RECORD_BYTES)) {
            let _any_answer = JobRecord::decode(&bytes);
        }
    }
}
