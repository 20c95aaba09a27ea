//! Extended attributes: what a volume is, and what new ones are to be.
//!
//! ```text
//!   volumes/NAME  user.tessera.id, .dedup, .compression, .chunk-size, .shrink,
//!                 .mapped-bytes, .unique-bytes, .stored-bytes,
//!                 .exclusive-bytes, .shared-bytes, .ratio, .compression-ratio
//!   volumes       user.tessera.dedup, .compression, .chunk-size (of files to
//!                 be created), .ratio, .compression-ratio
//! ```
//! Ratios of a file are the volume's own, those of the directory the pool's.
//! Whether a volume may shrink is kept in the pool; what is set of the directory
//! holds until the mount ends.

use tessera_engine::api::{Compression, DedupMode, VolumeInfo, VolumeSpec};

use crate::{
    errno::{Errno, errno_of_management},
    node::Node,
    volumes::{Ratios, Volumes},
};

const PREFIX: &str = "user.tessera.";

/// The attributes of a volume's file.
const OF_VOLUMES: [&str; 12] = [
    "id",
    "dedup",
    "compression",
    "chunk-size",
    "mapped-bytes",
    "unique-bytes",
    "stored-bytes",
    "exclusive-bytes",
    "shared-bytes",
    "ratio",
    "compression-ratio",
    "shrink",
];
/// The attributes of the directory with the volumes.
const OF_DIRECTORY: [&str; 5] = [
    "dedup",
    "compression",
    "chunk-size",
    "ratio",
    "compression-ratio",
];

/// How volumes are made that are created as files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Deduplication.
    pub dedup: DedupMode,
    /// Compression.
    pub compression: Compression,
    /// Bytes per chunk.
    pub chunk_bytes: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            dedup: DedupMode::Inline,
            compression: Compression::Lz4,
            chunk_bytes: 4096,
        }
    }
}

impl Defaults {
    /// An empty file of this name.
    pub fn spec(&self, name: &str) -> VolumeSpec {
        VolumeSpec {
            name: name.to_owned(),
            size_bytes: Node::newborn_bytes(),
            chunk_bytes: self.chunk_bytes,
            dedup: self.dedup,
            compression: self.compression,
        }
    }

    fn get(&self, key: &str) -> Option<String> {
        match key {
            "dedup" => Some(self.dedup.name().to_owned()),
            "compression" => Some(compression_name(self.compression).to_owned()),
            "chunk-size" => Some(self.chunk_bytes.to_string()),
            _ => None,
        }
    }

    /// Changes one of them.
    ///
    /// # Errors
    /// EINVAL for a value that none can have, EPERM for what cannot be set.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        let (key, value) = (key_of(name).ok_or(Errno::EOPNOTSUPP)?, text(value)?);
        match key {
            "dedup" => {
                self.dedup = named(&DedupMode::ALL, DedupMode::name, value)?;
            }
            "compression" => {
                let all = [Compression::Lz4, Compression::None];
                self.compression = named(&all, compression_name, value)?;
            }
            "chunk-size" => {
                let sizes = [4096u32, 8192, 16384, 32768, 65536];
                let size = sizes.into_iter().find(|size| size.to_string() == value);
                self.chunk_bytes = size.ok_or(Errno::EINVAL)?;
            }
            _ => return Err(unknown(&OF_DIRECTORY, key)),
        }
        Ok(())
    }
}

/// The names of a volume's attributes, each ended by a zero byte.
pub fn names_of_volume() -> Vec<u8> {
    joined(&OF_VOLUMES)
}

/// The names of the attributes of the directory with the volumes.
pub fn names_of_directory() -> Vec<u8> {
    joined(&OF_DIRECTORY)
}

/// One attribute of a volume.
///
/// # Errors
/// ENODATA if there is none of that name.
pub fn of_volume(
    name: &[u8],
    volume: &VolumeInfo,
    is_growing: bool,
    volumes: &dyn Volumes,
) -> Result<String, Errno> {
    let key = key_of(name).ok_or(Errno::ENODATA)?;
    let own = Defaults {
        dedup: volume.dedup,
        compression: volume.compression,
        chunk_bytes: volume.chunk_bytes,
    };
    match key {
        "id" => Ok(volume.id.to_string()),
        "mapped-bytes" => Ok(volume.logical_bytes.to_string()),
        "shrink" => {
            let may_shrink = volume.allow_shrink || is_growing;
            Ok(if may_shrink { "yes" } else { "no" }.to_owned())
        }
        _ => own
            .get(key)
            .or_else(|| counted(key, volume.id, volumes))
            .ok_or(Errno::ENODATA),
    }
}

/// What takes a count: nothing while there is none.
fn counted(key: &str, id: u64, volumes: &dyn Volumes) -> Option<String> {
    let of: fn(&VolumeInfo) -> Option<String> = match key {
        "unique-bytes" => |volume| Some(volume.space.unique_bytes?.to_string()),
        "stored-bytes" => |volume| Some(volume.space.stored_bytes?.to_string()),
        "exclusive-bytes" => |volume| Some(volume.space.exclusive_bytes?.to_string()),
        "shared-bytes" => |volume| Some(volume.space.shared_bytes?.to_string()),
        "ratio" => |volume| Some(quotient(volume.logical_bytes, volume.space.unique_bytes?)),
        "compression-ratio" => |volume| {
            let VolumeInfo { space, .. } = volume;
            Some(quotient(space.unique_bytes?, space.stored_bytes?))
        },
        _ => return None,
    };
    of(&volumes.counted(id)?)
}

fn quotient(above: u64, below: u64) -> String {
    match below {
        0 => "1.00".to_owned(),
        below => format!("{:.2}", above as f64 / below as f64),
    }
}

/// One attribute of the directory with the volumes.
///
/// # Errors
/// ENODATA if there is none of that name.
pub fn of_directory(
    name: &[u8],
    defaults: &Defaults,
    volumes: &dyn Volumes,
) -> Result<String, Errno> {
    let key = key_of(name).ok_or(Errno::ENODATA)?;
    defaults
        .get(key)
        .or_else(|| ratio(key, volumes))
        .ok_or(Errno::ENODATA)
}

/// Sets an attribute of a volume: whether it may be made smaller.
///
/// # Errors
/// EPERM for what is fixed, EINVAL for a value that makes no sense.
pub fn set_of_volume(
    name: &[u8],
    value: &[u8],
    id: u64,
    volumes: &dyn Volumes,
) -> Result<(), Errno> {
    let allowed = match key_of(name).ok_or(Errno::EOPNOTSUPP)? {
        "shrink" => match text(value)? {
            "yes" => true,
            "no" => false,
            _ => return Err(Errno::EINVAL),
        },
        key => return Err(unknown(&OF_VOLUMES, key)),
    };
    let set = volumes.allow_shrink(id, allowed);
    set.map_err(|error| errno_of_management(&error))
}

/// What exists cannot be set or removed; what does not is not ours to keep.
fn unknown(known: &[&str], key: &str) -> Errno {
    if known.contains(&key) {
        Errno::EPERM
    } else {
        Errno::EOPNOTSUPP
    }
}

fn ratio(key: &str, volumes: &dyn Volumes) -> Option<String> {
    let of: fn(&Ratios) -> f64 = match key {
        "ratio" => |ratios| ratios.dedup,
        "compression-ratio" => |ratios| ratios.compression,
        _ => return None,
    };
    Some(format!("{:.2}", of(&volumes.ratios())))
}

fn joined(names: &[&str]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.extend_from_slice(PREFIX.as_bytes());
        list.extend_from_slice(name.as_bytes());
        list.push(0);
    }
    list
}

fn key_of(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name.strip_prefix(PREFIX.as_bytes())?).ok()
}

fn text(value: &[u8]) -> Result<&str, Errno> {
    std::str::from_utf8(value).map_err(|_| Errno::EINVAL)
}

fn named<T: Copy>(all: &[T], name: fn(T) -> &'static str, wanted: &str) -> Result<T, Errno> {
    let found = all.iter().copied().find(|one| name(*one) == wanted);
    found.ok_or(Errno::EINVAL)
}

fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::Lz4 => "lz4",
        Compression::None => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_set_by_name_and_nothing_else_is() {
        let mut defaults = Defaults::default();
        for (key, value) in [
            ("dedup", "off"),
            ("compression", "none"),
            ("chunk-size", "65536"),
        ] {
            let name = format!("{PREFIX}{key}");
            defaults.set(name.as_bytes(), value.as_bytes()).unwrap();
            assert_eq!(defaults.get(key).as_deref(), Some(value));
            assert_eq!(
                defaults.set(name.as_bytes(), b"maybe"),
                Err(Errno::EINVAL),
                "{key}"
            );
        }
        defaults.set(b"user.tessera.dedup", b"post").unwrap();
        assert_eq!(defaults.spec("new").dedup, DedupMode::Post);
        defaults.set(b"user.tessera.dedup", b"off").unwrap();
        let spec = defaults.spec("new");
        assert_eq!((spec.chunk_bytes, spec.dedup), (65536, DedupMode::Off));
        for (name, errno) in [
            ("user.tessera.ratio", Errno::EPERM),
            ("user.tessera.colour", Errno::EOPNOTSUPP),
            ("user.comment", Errno::EOPNOTSUPP),
        ] {
            assert_eq!(defaults.set(name.as_bytes(), b"1"), Err(errno), "{name}");
        }
    }

    #[test]
    fn names_are_listed_with_zeroes_between() {
        let names = names_of_volume();
        let names: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
        assert_eq!(names.len(), OF_VOLUMES.len() + 1);
        assert_eq!(names[0], b"user.tessera.id");
        assert_eq!(names[OF_VOLUMES.len()], b"");
    }
}
