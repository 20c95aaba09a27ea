//! A segment's geometry: consecutive full stripes, and where a byte lies.

use super::Layout;

/// The sizes of segments of one layout.
///
/// A segment is `stripes` consecutive stripes; on every member its part is
/// one slot of `stripes` stripe units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentGeometry {
    /// Consecutive bytes on one member.
    pub stripe_unit_bytes: u32,
    /// Distinct data units of a stripe.
    pub data_units: u32,
    /// Stripes of a segment.
    pub stripes_per_segment: u32,
}

/// The part of a byte range that lies in one stripe unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The stripe within the segment.
    pub stripe: u32,
    /// The data unit within the stripe.
    pub data_unit: u32,
    /// First byte within the unit.
    pub offset_in_unit: u32,
    /// Bytes.
    pub length: u32,
    /// First byte within the range that was asked for.
    pub offset_in_range: u32,
}

impl SegmentGeometry {
    /// Segments of as many stripes as fit into `target_bytes` of data, at
    /// least one.
    pub fn new(layout: &Layout, target_bytes: u32) -> Self {
        let stripes = (target_bytes / layout.stripe_data_bytes()).max(1);
        Self::with_stripes(layout, stripes)
    }

    /// Segments of `stripes_per_segment` stripes.
    pub fn with_stripes(layout: &Layout, stripes_per_segment: u32) -> Self {
        let stripe_unit_bytes = layout.stripe_unit_bytes;
        Self {
            stripe_unit_bytes,
            data_units: layout.data_units(),
            stripes_per_segment,
        }
    }

    /// Bytes of data in a stripe.
    pub fn stripe_data_bytes(&self) -> u32 {
        self.stripe_unit_bytes * self.data_units
    }

    /// Bytes of data in a segment.
    pub fn segment_data_bytes(&self) -> u32 {
        self.stripe_data_bytes() * self.stripes_per_segment
    }

    /// Bytes of a segment on each member.
    pub fn slot_bytes(&self) -> u32 {
        self.stripe_unit_bytes * self.stripes_per_segment
    }

    /// First byte of a stripe's unit within its slot, the same on every
    /// member.
    pub fn offset_in_slot(&self, stripe: u32) -> u32 {
        assert!(
            stripe < self.stripes_per_segment,
            "the stripe is one of the segment's"
        );
        stripe * self.stripe_unit_bytes
    }

    /// The data byte at a place of the segment, the inverse of
    /// [`SegmentGeometry::pieces`].
    pub fn data_offset(&self, stripe: u32, data_unit: u32, offset_in_unit: u32) -> u32 {
        (stripe * self.data_units + data_unit) * self.stripe_unit_bytes + offset_in_unit
    }

    /// Cuts `length` data bytes from `offset` of a segment at the borders of
    /// stripe units, in order.
    ///
    /// # Panics
    /// Where the range leaves the segment.
    pub fn pieces(&self, offset: u32, length: u32) -> impl Iterator<Item = Piece> + Clone + use<> {
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.segment_data_bytes());
        let end = end.expect("the range lies within its segment");
        let (unit, data_units) = (self.stripe_unit_bytes, self.data_units);
        let mut next = offset;
        std::iter::from_fn(move || {
            if next == end {
                return None;
            }
            let (number, offset_in_unit) = (next / unit, next % unit);
            let length = (unit - offset_in_unit).min(end - next);
            let piece = Piece {
                stripe: number / data_units,
                data_unit: number % data_units,
                offset_in_unit,
                length,
                offset_in_range: next - offset,
            };
            next += length;
            Some(piece)
        })
    }
}
