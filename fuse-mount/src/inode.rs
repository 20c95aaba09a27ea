//! Inode numbers: fixed for the directories, derived from the id of a volume.
//!
//! Volume ids are never reused within a pool, so a number means the same
//! volume for ever, across renames and across mounts, and no table is kept.

use fuser::INodeNo;

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inode {
    /// The mount's top directory.
    Root,
    /// The directory `volumes`.
    Volumes,
    /// The directory `snapshots`.
    Snapshots,
    /// The file of the volume or snapshot with this id: they share no ids.
    Volume(u64),
}

/// 1 is the kernel's number for the root.
const ROOT: u64 = 1;
const VOLUMES: u64 = 2;
const SNAPSHOTS: u64 = 3;
/// The number of volume 0; the gap leaves room for more directories.
const FIRST_VOLUME: u64 = 64;

impl Inode {
    /// Its number; `None` for a volume whose id is too large to have one.
    pub fn number(self) -> Option<INodeNo> {
        let number = match self {
            Self::Root => ROOT,
            Self::Volumes => VOLUMES,
            Self::Snapshots => SNAPSHOTS,
            Self::Volume(id) => id.checked_add(FIRST_VOLUME)?,
        };
        Some(INodeNo(number))
    }

    /// What `number` stands for.
    pub fn from_number(number: INodeNo) -> Option<Self> {
        match number.0 {
            ROOT => Some(Self::Root),
            VOLUMES => Some(Self::Volumes),
            SNAPSHOTS => Some(Self::Snapshots),
            other => other.checked_sub(FIRST_VOLUME).map(Self::Volume),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn directories_have_fixed_numbers() {
        assert_eq!(Inode::Root.number(), Some(INodeNo::ROOT));
        for inode in [
            Inode::Root,
            Inode::Volumes,
            Inode::Snapshots,
            Inode::Volume(0),
        ] {
            assert_eq!(inode.number().and_then(Inode::from_number), Some(inode));
        }
        for number in [0, 4, FIRST_VOLUME - 1] {
            assert_eq!(Inode::from_number(INodeNo(number)), None);
        }
    }

    #[test]
    fn an_id_without_a_number_is_told() {
        assert_eq!(Inode::Volume(u64::MAX).number(), None);
    }

    proptest! {
        #[test]
        fn numbers_and_volumes_are_one_to_one(id in 0..u64::MAX - FIRST_VOLUME) {
            let number = Inode::Volume(id).number().expect("the id is small enough");
            prop_assert_eq!(Inode::from_number(number), Some(Inode::Volume(id)));
        }
    }
}
