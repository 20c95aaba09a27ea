//! Geometry against a naive model: stripes of real bytes on real columns.

use proptest::prelude::*;

use super::*;
use crate::{
    parity::{self, Unit},
    units::SlotIndex,
};

const UNIT: u32 = 4096;

/// Bytes that stand for a unit; the geometry does not look at their number.
const UNIT_SAMPLE: usize = 5;

fn layout(level: Level, width: usize) -> Layout {
    // Members in an order of their own, so that columns are no members.
    let members = (0..width)
        .rev()
        .map(|number| MemberIndex(u8::try_from(number * 2 + 1).unwrap()));
    let members = members.map(|member| MemberIndex(member.0 % 64));
    Layout::new(LayoutId(3), level, UNIT, members.collect()).unwrap()
}

/// Every level at every width up to 8.
fn layouts() -> impl Iterator<Item = Layout> {
    let widths = |level: Level| (1..=8).filter(move |width| level.accepts(*width));
    Level::ALL
        .into_iter()
        .flat_map(move |level| widths(level).map(move |width| layout(level, width)))
}

/// Every set of columns of a layout.
fn sets(layout: &Layout) -> impl Iterator<Item = ColumnSet> + use<> {
    (0..1_u64 << layout.width()).map(ColumnSet)
}

fn data_bytes(stripe: u32, unit: u32) -> Vec<u8> {
    (0..UNIT_SAMPLE)
        .map(|at| {
            let word = (stripe * 1009 + unit * 31 + 7) * (at as u32 * 2 + 1);
            u8::try_from(word.wrapping_mul(0x9e37_79b1) >> 24).unwrap()
        })
        .collect()
}

/// What every column holds, written from the roles alone.
fn columns_of_stripe(layout: &Layout, stripe: u32) -> Vec<Vec<u8>> {
    let data: Vec<Vec<u8>> = (0..layout.data_units())
        .map(|unit| data_bytes(stripe, unit))
        .collect();
    let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let (mut p, mut q) = (vec![0; UNIT_SAMPLE], vec![0; UNIT_SAMPLE]);
    if slices.len() <= parity::MAX_DATA_UNITS {
        parity::generate_pq(&slices, &mut p, &mut q);
    }
    let held = layout.roles(stripe).into_iter().map(|role| match role {
        Role::Data(unit) | Role::Mirror(unit) => data[unit as usize].clone(),
        Role::P => p.clone(),
        Role::Q => q.clone(),
    });
    held.collect()
}

/// Follows a recipe, reading nothing but what it names.
fn follow(layout: &Layout, stripe: u32, unit: u32, recipe: Recipe, held: &[Vec<u8>]) -> Vec<u8> {
    let (erased, read) = match recipe {
        Recipe::Copy(column) => return held[column.index()].clone(),
        Recipe::Solve { erased, read } => (erased, read),
    };
    assert!(erased.intersection(read).is_empty());
    let mut target = vec![0; UNIT_SAMPLE];
    let mut data: Vec<Unit<'_>> = (0..layout.data_units()).map(|_| Unit::Absent).collect();
    let (mut p, mut q) = (Unit::Absent, Unit::Absent);
    for column in read.iter() {
        let present = Unit::Present(&held[column.index()]);
        match layout.role(stripe, column) {
            Role::Data(unit) => data[unit as usize] = present,
            Role::Mirror(_) => panic!("mirrors have no parity"),
            Role::P => p = present,
            Role::Q => q = present,
        }
    }
    data[unit as usize] = Unit::Wanted(&mut target);
    parity::reconstruct(&mut data, p, q).unwrap();
    target
}

#[test]
fn roles_rotate_left_symmetric_as_drawn() {
    use Role::{Data, P, Q};
    let raid5 = layout(Level::Raid5, 4);
    let drawn = [
        [Data(0), Data(1), Data(2), P],
        [Data(1), Data(2), P, Data(0)],
        [Data(2), P, Data(0), Data(1)],
        [P, Data(0), Data(1), Data(2)],
        [Data(0), Data(1), Data(2), P],
    ];
    for (stripe, roles) in (0..).zip(drawn) {
        assert_eq!(raid5.roles(stripe), roles);
    }
    let raid6 = layout(Level::Raid6, 5);
    let drawn = [
        [Q, Data(0), Data(1), Data(2), P],
        [Data(0), Data(1), Data(2), P, Q],
        [Data(1), Data(2), P, Q, Data(0)],
        [Data(2), P, Q, Data(0), Data(1)],
        [P, Q, Data(0), Data(1), Data(2)],
    ];
    for (stripe, roles) in (0..).zip(drawn) {
        assert_eq!(raid6.roles(stripe), roles);
    }
}

#[test]
fn roles_and_places_agree() {
    for layout in layouts() {
        for stripe in [0, 1, 2, 3, 5, 7, 8, 100, u32::MAX] {
            let roles = layout.roles(stripe);
            for unit in 0..layout.data_units() {
                let copies: ColumnSet = layout
                    .columns()
                    .iter()
                    .filter(|column| {
                        matches!(roles[column.index()], Role::Data(k) | Role::Mirror(k) if k == unit)
                    })
                    .collect();
                assert_eq!(layout.locate(stripe, unit), copies, "{layout:?} {stripe}");
                let first = layout.data_column(stripe, unit);
                assert_eq!(
                    roles[first.index()],
                    Role::Data(unit),
                    "{layout:?} {stripe}"
                );
                let firsts = roles.iter().filter(|role| **role == Role::Data(unit));
                assert_eq!(firsts.count(), 1);
            }
            let column_of = |wanted: Role| {
                layout
                    .columns()
                    .iter()
                    .find(|column| roles[column.index()] == wanted)
            };
            assert_eq!(layout.p_column(stripe), column_of(Role::P));
            assert_eq!(layout.q_column(stripe), column_of(Role::Q));
        }
    }
}

/// The heart: for each level, width and failed set, a plain read returns the
/// right bytes from live columns alone, and survives says when it can.
#[test]
fn reads_return_the_right_bytes_for_every_failed_set_that_is_survived() {
    for layout in layouts() {
        for failed_columns in sets(&layout) {
            let failed = layout.members_of(failed_columns);
            let mut lost = false;
            for stripe in 0..layout.width() {
                let held = columns_of_stripe(&layout, stripe);
                for unit in 0..layout.data_units() {
                    let expected = data_bytes(stripe, unit);
                    let recipes = match layout.read_plan(stripe, unit, failed) {
                        ReadPlan::Direct(columns) => columns.iter().map(Recipe::Copy).collect(),
                        ReadPlan::Solve { erased, read } => vec![Recipe::Solve { erased, read }],
                        ReadPlan::Lost => {
                            lost = true;
                            assert!(layout.reconstructions(stripe, unit, failed).is_empty());
                            continue;
                        }
                    };
                    assert!(!recipes.is_empty());
                    let all = layout.reconstructions(stripe, unit, failed);
                    assert_eq!(&all[..recipes.len()], recipes, "the plain way comes first");
                    for recipe in all {
                        let read = match recipe {
                            Recipe::Copy(column) => ColumnSet::of(column),
                            Recipe::Solve { read, .. } => read,
                        };
                        assert!(read.intersection(failed_columns).is_empty(), "{layout:?}");
                        let got = follow(&layout, stripe, unit, recipe, &held);
                        assert_eq!(got, expected, "{layout:?} {stripe} {unit} {failed:?}");
                    }
                }
            }
            let naive = match layout.level {
                Level::Single | Level::Raid0 => failed_columns.is_empty(),
                Level::Raid1 => failed_columns != layout.columns(),
                Level::Raid5 => failed_columns.len() <= 1,
                Level::Raid6 => failed_columns.len() <= 2,
                Level::Raid10 => {
                    (0..layout.width() / 2).all(|pair| failed_columns.0 >> (2 * pair) & 3 != 3)
                }
            };
            assert_eq!(layout.survives(failed), naive, "{layout:?} {failed:?}");
            assert_eq!(!lost, naive, "{layout:?} {failed:?}");
            if failed.len() <= layout.guaranteed_failures() as usize {
                assert!(naive);
            }
        }
    }
}

/// A checksum tells right from wrong; some recipe must then be right as long
/// as no more columns are wrong or missing than the level survives.
#[test]
fn some_reconstruction_is_right_while_the_redundancy_lasts() {
    for layout in layouts() {
        for wrong in sets(&layout) {
            for failed in sets(&layout).filter(|set| set.intersection(wrong).is_empty()) {
                if !layout.survives(layout.members_of(wrong.union(failed))) {
                    continue;
                }
                for stripe in 0..layout.width() {
                    let mut held = columns_of_stripe(&layout, stripe);
                    for column in wrong.iter() {
                        held[column.index()]
                            .iter_mut()
                            .for_each(|byte| *byte ^= 0x5a + column.0);
                    }
                    for unit in 0..layout.data_units() {
                        let recipes =
                            layout.reconstructions(stripe, unit, layout.members_of(failed));
                        let right = recipes.into_iter().any(|recipe| {
                            follow(&layout, stripe, unit, recipe, &held) == data_bytes(stripe, unit)
                        });
                        assert!(right, "{layout:?} {stripe} {unit}, wrong {wrong:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn journal_copies_are_lost_only_together_with_the_pool() {
    for layout in layouts() {
        for live in sets(&layout).filter(|live| !live.is_empty()) {
            let in_sync = layout.members_of(live);
            let absent = layout.member_set().difference(in_sync);
            let copies = layout.journal_members(in_sync);
            let set: MemberSet = copies.iter().copied().collect();
            assert_eq!(set.len(), copies.len());
            assert!(set.difference(in_sync).is_empty(), "only members in sync");
            let wanted = (layout.guaranteed_failures() as usize + 1).min(live.len());
            assert_eq!(copies.len(), wanted, "{layout:?} {live:?}");
            assert!(
                !layout.survives(absent.union(set)),
                "{layout:?} {live:?} {set:?}"
            );
        }
        // Members of other layouts do not count.
        let strangers = MemberSet(!layout.member_set().0);
        assert!(layout.journal_members(strangers).is_empty());
    }
}

#[test]
fn raid_10_journals_to_a_whole_pair() {
    let layout = layout(Level::Raid10, 6);
    let broken_first = layout.member_set().without(layout.member(Column(1)));
    let copies = layout.journal_members(broken_first);
    assert_eq!(copies, [layout.member(Column(2)), layout.member(Column(3))]);
}

#[test]
fn the_widest_layouts_work() {
    for level in [
        Level::Raid0,
        Level::Raid1,
        Level::Raid5,
        Level::Raid6,
        Level::Raid10,
    ] {
        let members = (0..64).map(MemberIndex).collect();
        let layout = Layout::new(LayoutId(0), level, UNIT, members).unwrap();
        for stripe in [0, 1, 63, 64] {
            let held = columns_of_stripe(&layout, stripe);
            let unit = layout.data_units() - 1;
            let failed = MemberSet::of(layout.member(layout.data_column(stripe, unit)));
            if !layout.survives(failed) {
                continue;
            }
            for recipe in layout.reconstructions(stripe, unit, failed) {
                let got = follow(&layout, stripe, unit, recipe, &held);
                assert_eq!(got, data_bytes(stripe, unit));
            }
        }
    }
}

#[test]
fn impossible_layouts_are_refused() {
    let members = |count: u8| (0..count).map(MemberIndex).collect::<Vec<_>>();
    let new = |level, unit, members| Layout::new(LayoutId(0), level, unit, members).unwrap_err();
    let count = new(Level::Raid5, UNIT, members(2));
    assert_eq!(
        count,
        LayoutError::MemberCount {
            level: Level::Raid5,
            count: 2
        }
    );
    assert_eq!(
        count.to_string(),
        "Level raid5 needs 3 to 64 members, not 2"
    );
    new(Level::Raid10, UNIT, members(5));
    new(Level::Single, UNIT, members(2));
    for unit in [0, 512, 5000, 2 << 20] {
        assert_eq!(
            new(Level::Raid0, unit, members(2)),
            LayoutError::StripeUnit(unit)
        );
    }
    let twice = vec![MemberIndex(1), MemberIndex(1)];
    assert_eq!(
        new(Level::Raid0, UNIT, twice),
        LayoutError::Duplicate(MemberIndex(1))
    );
    let beyond = vec![MemberIndex(1), MemberIndex(64)];
    assert_eq!(
        new(Level::Raid0, UNIT, beyond),
        LayoutError::Index(MemberIndex(64))
    );
}

#[test]
fn a_segment_takes_the_whole_stripes_that_fit() {
    let layout = layout(Level::Raid5, 4);
    let geometry = SegmentGeometry::new(&layout, 8 << 20);
    assert_eq!(geometry.stripes_per_segment, (8 << 20) / (3 * UNIT));
    assert_eq!(geometry.slot_bytes(), geometry.stripes_per_segment * UNIT);
    assert_eq!(
        geometry.segment_data_bytes(),
        geometry.stripes_per_segment * 3 * UNIT
    );
    assert_eq!(SegmentGeometry::new(&layout, 1).stripes_per_segment, 1);
    assert_eq!(geometry.offset_in_slot(2), 2 * UNIT);
}

proptest! {
    #[test]
    fn pieces_cover_a_range_in_order_and_stay_within_units(
        width in 1..8_usize,
        stripes in 1..6_u32,
        (start, end) in (0.0..1.0_f64, 0.0..1.0_f64),
    ) {
        let level = if width == 1 { Level::Single } else { Level::Raid0 };
        let geometry = SegmentGeometry::with_stripes(&layout(level, width), stripes);
        let total = f64::from(geometry.segment_data_bytes());
        let (start, end) = ((start * total) as u32, (end * total) as u32);
        let (offset, length) = (start.min(end), start.abs_diff(end));
        let mut next = offset;
        for piece in geometry.pieces(offset, length) {
            prop_assert!(piece.length > 0);
            prop_assert!(piece.offset_in_unit + piece.length <= UNIT);
            prop_assert!(piece.data_unit < geometry.data_units && piece.stripe < stripes);
            prop_assert_eq!(piece.offset_in_range, next - offset);
            // A byte's place, one at a time: unit after unit, stripe after
            // stripe.
            let naive = piece.stripe * geometry.stripe_data_bytes()
                + piece.data_unit * UNIT
                + piece.offset_in_unit;
            prop_assert_eq!(naive, next);
            let inverse = geometry.data_offset(piece.stripe, piece.data_unit, piece.offset_in_unit);
            prop_assert_eq!(inverse, next);
            next += piece.length;
        }
        prop_assert_eq!(next, offset + length);
    }

    #[test]
    fn placements_round_trip(
        layout in any::<u16>(),
        equal in any::<bool>(),
        slots in prop::collection::vec(any::<u32>(), 1..=64),
    ) {
        let slots = match equal {
            true => Slots::Equal(SlotIndex(slots[0])),
            false => Slots::PerMember(slots.into_iter().map(SlotIndex).collect()),
        };
        let placement = Placement { layout: LayoutId(layout), slots };
        let mut bytes = Vec::new();
        placement.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), placement.encoded_bytes());
        prop_assert!(bytes.len() <= Placement::MAX_ENCODED_BYTES);
        for cut in 0..bytes.len() {
            prop_assert_eq!(Placement::decode(&bytes[..cut]), Err(PlacementError::Short));
        }
        let length = bytes.len();
        bytes.extend([1, 2, 3]);
        prop_assert_eq!(Placement::decode(&bytes), Ok((placement, length)));
    }

    #[test]
    fn decoding_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok((placement, length)) = Placement::decode(&bytes) {
            let mut again = Vec::new();
            placement.encode(&mut again);
            prop_assert_eq!(&again, &bytes[..length]);
        }
    }
}

#[test]
fn unknown_placements_are_refused() {
    for header in [
        [0, 0, 0, 0],
        [0, 0, 0, 2],
        [0, 0, 1, 0],
        [0, 0, 1, 65],
        [0, 0, 2, 1],
    ] {
        let mut bytes = header.to_vec();
        bytes.resize(300, 0);
        let (kind, count) = (header[2], header[3]);
        assert_eq!(
            Placement::decode(&bytes),
            Err(PlacementError::Unknown { kind, count })
        );
    }
}

#[test]
fn slots_are_looked_up_by_column() {
    let equal = Placement::equal(LayoutId(0), SlotIndex(9));
    assert_eq!(equal.slot(Column(5)), SlotIndex(9));
    let slots = Slots::PerMember(vec![SlotIndex(4), SlotIndex(7)]);
    let own = Placement {
        layout: LayoutId(0),
        slots,
    };
    assert_eq!(own.slot(Column(1)), SlotIndex(7));
}
