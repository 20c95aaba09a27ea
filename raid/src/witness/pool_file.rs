//! `pool.toml`: the witness in the pool's directory (R3), and where
//! `tessera` finds the members.
//!
//! It is written to a temporary file, synced, renamed over the old one, and
//! the directory synced, so a crash leaves one whole record. Members inside
//! the directory are stored relative to it: the directory can be moved.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Witness, WitnessMember, WitnessRecord};
use crate::{Kind, Level, MemberIndex, RaidError, sabotage::broken};

const FILE_NAME: &str = "pool.toml";
const TEMPORARY_NAME: &str = "pool.toml.new";
/// A pool of 64 members with the longest paths stays below this.
const FILE_BYTES_MAX: u64 = 1 << 20;
const VERSION: u32 = 1;
const PREAMBLE: &str = "# Written by tessera; the members hold the truth. \
If this file is lost, `tessera pool import` makes it anew.\n\
# membership_id keeps a left-behind member from being used as if it were current.\n\n";

/// The witness in a pool's directory, `DIR/pool.toml`.
#[derive(Debug, Clone)]
pub struct PoolFile {
    directory: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    uuid: Uuid,
    level: Level,
    membership_epoch: u64,
    membership_id: Uuid,
    #[serde(rename = "member")]
    members: Vec<MemberEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberEntry {
    index: u8,
    uuid: Uuid,
    path: PathBuf,
}

impl PoolFile {
    /// The witness of the pool in `directory`, which need not have one yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// How a member's path is stored. One that is not known stays empty.
    fn stored_path(&self, member: &Path) -> io::Result<PathBuf> {
        if member.as_os_str().is_empty() {
            return Ok(PathBuf::new());
        }
        let member = std::path::absolute(member)?;
        let directory = std::path::absolute(&self.directory)?;
        if let Ok(inside) = member.strip_prefix(&directory) {
            return Ok(inside.to_owned());
        }
        Ok(member)
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let temporary = self.directory.join(TEMPORARY_NAME);
        // 1. The new record is durable under another name ...
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        if !broken("sync.witness") {
            file.sync_all()?;
        }
        // 2. ... takes the name atomically ...
        fs::rename(&temporary, self.path())?;
        // 3. ... and keeps it after a power cut.
        if broken("sync.witness_name") {
            return Ok(());
        }
        File::open(&self.directory)?.sync_all()
    }
}

impl Witness for PoolFile {
    fn load(&self) -> Result<Option<WitnessRecord>, RaidError> {
        let path = self.path();
        let unreadable = |source| {
            RaidError::new(Kind::Witness, format!("Cannot read {}", path.display()))
                .with_source(source)
        };
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
            Ok(facts) if !facts.is_file() || facts.len() > FILE_BYTES_MAX => {
                return Err(RaidError::new(
                    Kind::Witness,
                    format!("{} is not a pool's description", path.display()),
                ));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(&path).map_err(unreadable)?;
        let document: Document = toml::from_str(&text).map_err(|error| {
            RaidError::new(
                Kind::Witness,
                format!(
                    "{} is damaged ({}); move it away and import the members again",
                    path.display(),
                    error.message()
                ),
            )
        })?;
        if document.version != VERSION {
            return Err(RaidError::new(
                Kind::NewerFormat,
                format!(
                    "{} has version {}, this program knows version {VERSION}",
                    path.display(),
                    document.version
                ),
            ));
        }
        let members = document.members.into_iter().map(|entry| WitnessMember {
            index: MemberIndex(entry.index),
            uuid: entry.uuid,
            path: match entry.path.as_os_str().is_empty() {
                true => entry.path,
                false => self.directory.join(entry.path),
            },
        });
        Ok(Some(WitnessRecord {
            pool: document.uuid,
            level: document.level,
            members: members.collect(),
            membership_epoch: document.membership_epoch,
            membership_id: document.membership_id,
        }))
    }

    fn store(&self, record: &WitnessRecord) -> Result<(), RaidError> {
        let failed = |source| {
            RaidError::new(
                Kind::Witness,
                format!("Cannot write {}", self.path().display()),
            )
            .with_source(source)
        };
        let mut members = Vec::with_capacity(record.members.len());
        for member in &record.members {
            members.push(MemberEntry {
                index: member.index.0,
                uuid: member.uuid,
                path: self.stored_path(&member.path).map_err(failed)?,
            });
        }
        let document = Document {
            version: VERSION,
            uuid: record.pool,
            level: record.level,
            membership_epoch: record.membership_epoch,
            membership_id: record.membership_id,
            members,
        };
        let body = toml::to_string(&document)
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        self.write(&format!("{PREAMBLE}{body}")).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(directory: &Path) -> WitnessRecord {
        WitnessRecord {
            pool: Uuid::from_u128(7),
            level: Level::Raid5,
            members: (0..3)
                .map(|n| WitnessMember {
                    index: MemberIndex(n),
                    uuid: Uuid::from_u128(100 + u128::from(n)),
                    path: if n == 0 {
                        directory.join("disk0.img")
                    } else {
                        PathBuf::from(format!("/somewhere/else/disk{n}.img"))
                    },
                })
                .collect(),
            membership_epoch: 5,
            membership_id: Uuid::from_u128(9),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_stored() {
        let directory = tempfile::tempdir().unwrap();
        let file = PoolFile::new(directory.path());
        assert_eq!(file.load().unwrap(), None);
        let record = record(directory.path());
        file.store(&record).unwrap();
        assert_eq!(file.load().unwrap(), Some(record));
        assert!(!directory.path().join(TEMPORARY_NAME).exists());
    }

    #[test]
    fn members_inside_the_directory_move_with_it() {
        let parent = tempfile::tempdir().unwrap();
        let before = parent.path().join("before");
        let after = parent.path().join("after");
        fs::create_dir(&before).unwrap();
        PoolFile::new(&before).store(&record(&before)).unwrap();
        fs::rename(&before, &after).unwrap();
        let loaded = PoolFile::new(&after).load().unwrap().unwrap();
        assert_eq!(loaded.members[0].path, after.join("disk0.img"));
        assert_eq!(
            loaded.members[1].path,
            Path::new("/somewhere/else/disk1.img")
        );
    }

    #[test]
    fn a_member_that_was_never_seen_has_no_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = PoolFile::new(directory.path());
        let mut record = record(directory.path());
        record.members[1].path = PathBuf::new();
        file.store(&record).unwrap();
        assert_eq!(file.load().unwrap(), Some(record));
    }

    #[test]
    fn a_failed_store_leaves_the_old_record() {
        let directory = tempfile::tempdir().unwrap();
        let file = PoolFile::new(directory.path());
        let old = record(directory.path());
        file.store(&old).unwrap();
        // The temporary name is taken by a directory: the new text has no place.
        fs::create_dir(directory.path().join(TEMPORARY_NAME)).unwrap();
        let new = WitnessRecord {
            membership_epoch: 6,
            ..old.clone()
        };
        assert_eq!(file.store(&new).unwrap_err().kind(), Kind::Witness);
        assert_eq!(file.load().unwrap(), Some(old));
    }

    #[test]
    fn damage_and_newer_versions_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = PoolFile::new(directory.path());
        fs::write(file.path(), "uuid = 3").unwrap();
        let error = file.load().unwrap_err();
        assert_eq!(error.kind(), Kind::Witness);
        assert!(error.to_string().contains("pool.toml"));
        file.store(&record(directory.path())).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        fs::write(file.path(), text.replace("version = 1", "version = 2")).unwrap();
        assert_eq!(file.load().unwrap_err().kind(), Kind::NewerFormat);
    }
}
