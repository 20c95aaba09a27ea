//! Superblocks to bytes and back. No I/O.
//!
//! All numbers are little-endian. The CRC32C is last and covers everything
//! before it, so any damage, torn writes included, is refused as a whole.

use uuid::Uuid;

use super::{
    Geometry, HISTORY_MAX, History, LAYOUTS_MAX, MemberRecord, PoolRecord, SEGMENT_DATA_BYTES_END,
    SLOTS_ALIGNMENT, SUPERBLOCK_AREA_BYTES, SUPERBLOCK_BYTES, Standing, Superblock,
};
use crate::{
    ENGINE_RECORD_BYTES, Layout, LayoutId, Level, MAX_MEMBERS, MemberIndex, device::BLOCK_BYTES,
};

/// SUB and LF reveal a copy made in text mode.
const MAGIC: [u8; 8] = *b"TESSERA\x1a";
const VERSION: u32 = 1;
/// Features without which a pool cannot be read. None yet.
const INCOMPAT_KNOWN: u64 = 0;
/// Features without which a pool can be read but not written. None yet.
const READ_ONLY_COMPAT_KNOWN: u64 = 0;

/// Never reached by counting.
const COUNTER_MAX: u64 = 1 << 62;

const LENGTH: usize = 8192;
const UUID_BYTES: usize = 16;
const MEMBER_ROW_BYTES: usize = 40;
const LAYOUT_ROW_BYTES: usize = 80;
const KEY_SLOT_BYTES: usize = 1024;

// Offsets, each from the one before.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = AT_MAGIC + 8;
const AT_LENGTH: usize = AT_VERSION + 4;
const AT_INCOMPAT: usize = AT_LENGTH + 4;
const AT_READ_ONLY_COMPAT: usize = AT_INCOMPAT + 8;
const AT_COMPAT: usize = AT_READ_ONLY_COMPAT + 8;
const AT_POOL: usize = AT_COMPAT + 8;
const AT_MEMBER: usize = AT_POOL + UUID_BYTES;
const AT_SEQUENCE: usize = AT_MEMBER + UUID_BYTES;
const AT_EPOCH: usize = AT_SEQUENCE + 8;
const AT_COMMITS: usize = AT_EPOCH + 8;
const AT_JOURNAL_BYTES: usize = AT_COMMITS + 8;
const AT_SLOTS_OFFSET: usize = AT_JOURNAL_BYTES + 8;
const AT_SLOT_BYTES: usize = AT_SLOTS_OFFSET + 8;
const AT_MEMBER_INDEX: usize = AT_SLOT_BYTES + 8;
const AT_MEMBER_COUNT: usize = AT_MEMBER_INDEX + 1;
const AT_LAYOUT_COUNT: usize = AT_MEMBER_COUNT + 1;
const AT_HISTORY_COUNT: usize = AT_LAYOUT_COUNT + 1;
const AT_CLEAN: usize = AT_HISTORY_COUNT + 1;
const AT_HASH: usize = AT_CLEAN + 1;
const AT_CURRENT_LAYOUT: usize = AT_HASH + 1;
const AT_ENGINE_LENGTH: usize = AT_CURRENT_LAYOUT + 2;
const HEADER_END: usize = AT_ENGINE_LENGTH + 2;
const AT_MEMBERS: usize = 256;
const AT_LAYOUTS: usize = AT_MEMBERS + MAX_MEMBERS * MEMBER_ROW_BYTES;
const AT_HISTORY: usize = AT_LAYOUTS + LAYOUTS_MAX * LAYOUT_ROW_BYTES;
const AT_ENGINE: usize = AT_HISTORY + HISTORY_MAX * UUID_BYTES;
const AT_KEY_SLOTS: usize = AT_ENGINE + ENGINE_RECORD_BYTES;
const KEY_SLOTS_END: usize = AT_KEY_SLOTS + KEY_SLOT_BYTES;
const AT_CRC: usize = LENGTH - 4;

const _: () = {
    assert!(LENGTH as u64 == SUPERBLOCK_BYTES);
    assert!(AT_MEMBER_INDEX == 120 && HEADER_END == 130 && HEADER_END <= AT_MEMBERS);
    assert!(AT_LAYOUTS == 2816 && AT_HISTORY == 4096 && AT_ENGINE == 4608);
    assert!(AT_KEY_SLOTS == 6144 && KEY_SLOTS_END == 7168 && KEY_SLOTS_END <= AT_CRC);
};

/// Why bytes are not a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// They do not start like one.
    NoMagic,
    /// They start like one, but this is wrong with them.
    Damaged(&'static str),
    /// They are one, of a format this program does not know.
    Newer {
        /// They could be used read-only.
        readable: bool,
    },
}

/// Reads a superblock; `writable` refuses what may only be read.
pub(crate) fn decode(bytes: &[u8], writable: bool) -> Result<Superblock, Absence> {
    use Absence::{Damaged, Newer, NoMagic};
    if bytes.len() != LENGTH || bytes[AT_MAGIC..AT_VERSION] != MAGIC {
        return Err(NoMagic);
    }
    // The length and the place of the checksum are promised for all versions,
    // so that damage is told apart from a newer format.
    if crc32c::crc32c(&bytes[..AT_CRC]) != u32_at(bytes, AT_CRC) {
        return Err(Damaged("its checksum does not match"));
    }
    if u32_at(bytes, AT_VERSION) != VERSION || u32_at(bytes, AT_LENGTH) as usize != LENGTH {
        return Err(Newer { readable: false });
    }
    if u64_at(bytes, AT_INCOMPAT) & !INCOMPAT_KNOWN != 0 {
        return Err(Newer { readable: false });
    }
    if writable && u64_at(bytes, AT_READ_ONLY_COMPAT) & !READ_ONLY_COMPAT_KNOWN != 0 {
        return Err(Newer { readable: true });
    }
    let record = decode_record(bytes)?;
    let member = MemberIndex(bytes[AT_MEMBER_INDEX]);
    match record.members.get(member.index()) {
        None => Err(Damaged("its member index is out of range")),
        Some(own) if own.uuid != uuid_at(bytes, AT_MEMBER) => {
            Err(Damaged("its member table disagrees with its identity"))
        }
        Some(own) if own.standing == Standing::Vacant => Err(Damaged("its own row is vacant")),
        Some(_) => Ok(Superblock { member, record }),
    }
}

fn decode_record(bytes: &[u8]) -> Result<PoolRecord, Absence> {
    use Absence::Damaged;
    let member_count = usize::from(bytes[AT_MEMBER_COUNT]);
    let layout_count = usize::from(bytes[AT_LAYOUT_COUNT]);
    let history_count = usize::from(bytes[AT_HISTORY_COUNT]);
    let engine_length = usize::from(u16_at(bytes, AT_ENGINE_LENGTH));
    // Every length is bounded before anything is allocated.
    if !(1..=MAX_MEMBERS).contains(&member_count)
        || !(1..=LAYOUTS_MAX).contains(&layout_count)
        || !(1..=HISTORY_MAX).contains(&history_count)
        || engine_length > ENGINE_RECORD_BYTES
    {
        return Err(Damaged("a length is out of bounds"));
    }
    // The counters are counted on from.
    if u64_at(bytes, AT_SEQUENCE) > COUNTER_MAX
        || u64_at(bytes, AT_EPOCH) > COUNTER_MAX
        || u64_at(bytes, AT_COMMITS) > COUNTER_MAX
    {
        return Err(Damaged("a counter is out of bounds"));
    }
    let geometry = Geometry {
        journal_bytes: u64_at(bytes, AT_JOURNAL_BYTES),
        slots_offset: u64_at(bytes, AT_SLOTS_OFFSET),
        slot_bytes: u64_at(bytes, AT_SLOT_BYTES),
    };
    let block = BLOCK_BYTES as u64;
    let front = Geometry::JOURNAL_OFFSET.checked_add(geometry.journal_bytes);
    if !geometry.journal_bytes.is_multiple_of(block)
        || geometry.journal_bytes == 0
        || front.is_none_or(|end| end > geometry.slots_offset)
        || !geometry.slots_offset.is_multiple_of(SLOTS_ALIGNMENT)
        || geometry.slot_bytes == 0
        || !geometry.slot_bytes.is_multiple_of(block)
    {
        return Err(Damaged("its areas do not fit together"));
    }
    let members = (0..member_count)
        .map(|n| decode_member(&bytes[AT_MEMBERS + n * MEMBER_ROW_BYTES..], &geometry))
        .collect::<Result<Vec<_>, _>>()?;
    let layouts = (0..layout_count)
        .map(|n| {
            let row = &bytes[AT_LAYOUTS + n * LAYOUT_ROW_BYTES..][..LAYOUT_ROW_BYTES];
            decode_layout(row, member_count, &geometry)
        })
        .collect::<Result<Vec<_>, _>>()?;
    check_roles(&members, &layouts)?;
    let current_layout = LayoutId(u16_at(bytes, AT_CURRENT_LAYOUT));
    if !layouts.iter().any(|layout| layout.id == current_layout) {
        return Err(Damaged("its current layout is not in its table"));
    }
    let ids = (0..history_count)
        .map(|n| uuid_at(bytes, AT_HISTORY + n * UUID_BYTES))
        .collect();
    let clean = match bytes[AT_CLEAN] {
        0 => false,
        1 => true,
        _ => return Err(Damaged("its clean flag is neither set nor clear")),
    };
    Ok(PoolRecord {
        pool: uuid_at(bytes, AT_POOL),
        sequence: u64_at(bytes, AT_SEQUENCE),
        commits: u64_at(bytes, AT_COMMITS),
        history: History {
            epoch: u64_at(bytes, AT_EPOCH),
            ids,
        },
        clean,
        hash_algorithm: bytes[AT_HASH],
        geometry,
        current_layout,
        layouts,
        members,
        engine_record: bytes[AT_ENGINE..AT_ENGINE + engine_length].to_vec(),
    })
}

/// Layouts have the rows that can be theirs, targets are for one of those,
/// and everybody has an identity of their own.
fn check_roles(members: &[MemberRecord], layouts: &[Layout]) -> Result<(), Absence> {
    let mut columns = layouts.iter().flat_map(|layout| &layout.members);
    let of_layouts = |index: &MemberIndex| members[index.index()].standing.is_of_layouts();
    if !columns.all(of_layouts) {
        return Err(Absence::Damaged("a layout has a spare for a member"));
    }
    let mut identities = std::collections::BTreeSet::new();
    for member in members {
        match member.standing {
            Standing::Vacant if *member != MemberRecord::VACANT => {
                return Err(Absence::Damaged("a vacant row is not empty"));
            }
            Standing::Vacant => continue,
            Standing::Target(of) if of.index() >= members.len() || !of_layouts(&of) => {
                return Err(Absence::Damaged("a target is for nobody"));
            }
            _ => {}
        }
        if !identities.insert(member.uuid) {
            return Err(Absence::Damaged("two rows have one identity"));
        }
    }
    Ok(())
}

// A member row: uuid 16, size 8, changed at 8, slots 4, standing 1, target
// for 1, zero 2.
fn decode_member(row: &[u8], geometry: &Geometry) -> Result<MemberRecord, Absence> {
    let record = MemberRecord {
        uuid: uuid_at(row, 0),
        size_bytes: u64_at(row, 16),
        changed_at: u64_at(row, 24),
        slot_count: u32_at(row, 32),
        standing: Standing::from_codes(array_at(row, 36))
            .ok_or(Absence::Damaged("a member's state is unknown"))?,
    };
    if record.standing == Standing::Vacant {
        return Ok(record);
    }
    let least = geometry
        .slot_bytes
        .checked_mul(u64::from(record.slot_count))
        .and_then(|slots| slots.checked_add(geometry.slots_offset))
        .and_then(|end| end.checked_add(SUPERBLOCK_AREA_BYTES));
    if least.is_none_or(|least| least > record.size_bytes)
        || !record.size_bytes.is_multiple_of(BLOCK_BYTES as u64)
    {
        return Err(Absence::Damaged("a member is too small for its slots"));
    }
    Ok(record)
}

// A layout row: id 2, level 1, members 1, stripe unit 4, zero 8, members 64.
fn decode_layout(row: &[u8], member_count: usize, geometry: &Geometry) -> Result<Layout, Absence> {
    use Absence::Damaged;
    let level = Level::from_code(row[2]).ok_or(Damaged("a layout's level is unknown"))?;
    let width = usize::from(row[3]);
    let stripe_unit_bytes = u32_at(row, 4);
    if width > MAX_MEMBERS || !level.accepts(width) {
        return Err(Damaged("a layout's member count does not fit its level"));
    }
    if stripe_unit_bytes == 0
        || !stripe_unit_bytes.is_multiple_of(BLOCK_BYTES as u32)
        || !geometry
            .slot_bytes
            .is_multiple_of(u64::from(stripe_unit_bytes))
    {
        return Err(Damaged("a layout's stripe unit does not fit the slots"));
    }
    let members: Vec<_> = row[16..16 + width]
        .iter()
        .map(|index| MemberIndex(*index))
        .collect();
    if members.iter().any(|member| member.index() >= member_count)
        || members
            .iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            != width
    {
        return Err(Damaged("a layout's members are not members"));
    }
    let layout = Layout::new(LayoutId(u16_at(row, 0)), level, stripe_unit_bytes, members)
        .map_err(|_| Damaged("a layout is impossible"))?;
    let segment = geometry
        .slot_bytes
        .checked_mul(u64::from(layout.data_units()));
    if segment.is_none_or(|bytes| bytes >= SEGMENT_DATA_BYTES_END) {
        return Err(Damaged("its segments are too large"));
    }
    Ok(layout)
}

/// Writes a member's superblock into `bytes`, 8 KiB.
pub(crate) fn encode(record: &PoolRecord, member: MemberIndex, bytes: &mut [u8]) {
    assert_eq!(bytes.len(), LENGTH, "a superblock is 8 KiB");
    assert!(
        record.engine_record.len() <= ENGINE_RECORD_BYTES,
        "the engine's record fits"
    );
    assert!(record.layouts.len() <= LAYOUTS_MAX, "the layout table fits");
    bytes.fill(0);
    bytes[AT_MAGIC..AT_VERSION].copy_from_slice(&MAGIC);
    put(bytes, AT_VERSION, &VERSION.to_le_bytes());
    put(bytes, AT_LENGTH, &(LENGTH as u32).to_le_bytes());
    put(bytes, AT_INCOMPAT, &INCOMPAT_KNOWN.to_le_bytes());
    put(
        bytes,
        AT_READ_ONLY_COMPAT,
        &READ_ONLY_COMPAT_KNOWN.to_le_bytes(),
    );
    // Compatible features may be dropped by a writer that does not know them.
    put(bytes, AT_COMPAT, &0u64.to_le_bytes());
    put(bytes, AT_POOL, record.pool.as_bytes());
    put(
        bytes,
        AT_MEMBER,
        record.members[member.index()].uuid.as_bytes(),
    );
    put(bytes, AT_SEQUENCE, &record.sequence.to_le_bytes());
    put(bytes, AT_EPOCH, &record.history.epoch.to_le_bytes());
    put(bytes, AT_COMMITS, &record.commits.to_le_bytes());
    put(
        bytes,
        AT_JOURNAL_BYTES,
        &record.geometry.journal_bytes.to_le_bytes(),
    );
    put(
        bytes,
        AT_SLOTS_OFFSET,
        &record.geometry.slots_offset.to_le_bytes(),
    );
    put(
        bytes,
        AT_SLOT_BYTES,
        &record.geometry.slot_bytes.to_le_bytes(),
    );
    bytes[AT_MEMBER_INDEX] = member.0;
    bytes[AT_MEMBER_COUNT] = narrow(record.members.len());
    bytes[AT_LAYOUT_COUNT] = narrow(record.layouts.len());
    bytes[AT_HISTORY_COUNT] = narrow(record.history.ids.len());
    bytes[AT_CLEAN] = u8::from(record.clean);
    bytes[AT_HASH] = record.hash_algorithm;
    put(
        bytes,
        AT_CURRENT_LAYOUT,
        &record.current_layout.0.to_le_bytes(),
    );
    let engine_length = u16::try_from(record.engine_record.len()).expect("checked above");
    put(bytes, AT_ENGINE_LENGTH, &engine_length.to_le_bytes());
    for (n, row) in record.members.iter().enumerate() {
        let at = AT_MEMBERS + n * MEMBER_ROW_BYTES;
        put(bytes, at, row.uuid.as_bytes());
        put(bytes, at + 16, &row.size_bytes.to_le_bytes());
        put(bytes, at + 24, &row.changed_at.to_le_bytes());
        put(bytes, at + 32, &row.slot_count.to_le_bytes());
        put(bytes, at + 36, &row.standing.codes());
    }
    for (n, layout) in record.layouts.iter().enumerate() {
        let at = AT_LAYOUTS + n * LAYOUT_ROW_BYTES;
        put(bytes, at, &layout.id.0.to_le_bytes());
        bytes[at + 2] = layout.level.code();
        bytes[at + 3] = narrow(layout.members.len());
        put(bytes, at + 4, &layout.stripe_unit_bytes.to_le_bytes());
        for (column, member) in layout.members.iter().enumerate() {
            bytes[at + 16 + column] = member.0;
        }
    }
    for (n, id) in record.history.ids.iter().enumerate() {
        put(bytes, AT_HISTORY + n * UUID_BYTES, id.as_bytes());
    }
    put(bytes, AT_ENGINE, &record.engine_record);
    let crc = crc32c::crc32c(&bytes[..AT_CRC]);
    put(bytes, AT_CRC, &crc.to_le_bytes());
}

fn narrow(count: usize) -> u8 {
    u8::try_from(count).expect("tables have at most 64 rows")
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("the slice has the array's length")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests;
