//! Getting a unit of a stripe back from the others, in memory.

use crate::{
    Column, ColumnSet, Level,
    layout::{Layout, Role},
    parity::{self, Unit},
};

/// Computes data unit `data_unit` of `stripe` into `target`, taking the
/// columns of `erased` as missing; `present` gives the bytes of all others,
/// the same range of each unit.
pub(super) fn solve<'a>(
    layout: &Layout,
    stripe: u32,
    data_unit: u32,
    erased: ColumnSet,
    present: impl Fn(Column) -> &'a [u8],
    target: &mut [u8],
) {
    let unit = |column: Option<Column>| match column {
        Some(column) if !erased.contains(column) => Unit::Present(present(column)),
        _ => Unit::Absent,
    };
    let mut target = Some(target);
    let mut data: Vec<Unit<'_>> = (0..layout.data_units())
        .map(|k| match k == data_unit {
            true => Unit::Wanted(target.take().expect("one unit is wanted")),
            false => unit(Some(layout.data_column(stripe, k))),
        })
        .collect();
    parity::reconstruct(
        &mut data,
        unit(layout.p_column(stripe)),
        unit(layout.q_column(stripe)),
    )
    .expect("a plan erases no more than the level's parities");
}

/// Computes what `wanted` holds in a stripe into `target`, from the columns
/// that `present` has bytes of (never `wanted` itself); the same range of each
/// unit. False where those are too few.
pub(super) fn recover<'a>(
    layout: &Layout,
    stripe: u32,
    wanted: Column,
    present: &dyn Fn(Column) -> Option<&'a [u8]>,
    target: &mut [u8],
) -> bool {
    let given = |column: Column| present(column).filter(|_| column != wanted);
    let absent: ColumnSet = layout
        .columns()
        .iter()
        .filter(|column| given(*column).is_none())
        .collect();
    let parities = match layout.level {
        Level::Raid5 => 1,
        Level::Raid6 => 2,
        _ => 0,
    };
    let data_unit = |k: u32, target: &mut [u8]| {
        let copies = layout.locate(stripe, k);
        if let Some(copy) = copies.iter().find_map(given) {
            target.copy_from_slice(copy);
            return true;
        }
        if absent.len() > parities {
            return false;
        }
        // With one unknown Q is not needed, and left out.
        let erased = match layout.q_column(stripe) {
            Some(q) if absent.len() < parities => absent.with(q),
            _ => absent,
        };
        let bytes = |column| given(column).expect("a column that is not erased is present");
        solve(layout, stripe, k, erased, bytes, target);
        true
    };
    match layout.role(stripe, wanted) {
        Role::Data(k) | Role::Mirror(k) => data_unit(k, target),
        parity @ (Role::P | Role::Q) => {
            let mut units = vec![vec![0; target.len()]; layout.data_units() as usize];
            let known = (0..).zip(&mut units).all(|(k, unit)| data_unit(k, unit));
            let data: Vec<&[u8]> = units.iter().map(Vec::as_slice).collect();
            let mut other = vec![0; target.len()];
            match parity {
                Role::P => parity::generate_p(&data, target),
                _ => parity::generate_pq(&data, &mut other, target),
            }
            known
        }
    }
}
