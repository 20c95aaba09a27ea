//! Getting a unit of a stripe back from the others, in memory.

use crate::{
    Column, ColumnSet,
    layout::Layout,
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
