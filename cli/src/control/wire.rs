//! The JSON bodies that both ends of the control socket share.

use serde::{Deserialize, Serialize};
use tessera_engine::api::{Compression, DedupMode, JobKind, VolumeChange, VolumeSpec};

use crate::failure::Failure;

/// Where the API starts.
pub(super) const STATUS_PATH: &str = "/v1/status";
/// The collection of volumes; one volume is `/v1/volumes/NAME`.
pub(super) const VOLUMES_PATH: &str = "/v1/volumes";

/// The snapshots; one is `/v1/snapshots/VOLUME@NAME`.
pub(super) const SNAPSHOTS_PATH: &str = "/v1/snapshots";

/// The members; one is `/v1/members/INDEX`.
pub(super) const MEMBERS_PATH: &str = "/v1/members";
/// The jobs; one is `/v1/jobs/ID`.
pub(super) const JOBS_PATH: &str = "/v1/jobs";
/// The newest job of a kind.
pub(super) fn kind_path(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Rebuild => "/v1/rebuild",
        JobKind::Scrub => "/v1/scrub",
        JobKind::Reclaim => "/v1/reclaim",
        JobKind::Dedup => "/v1/dedup",
    }
}

/// The kinds of jobs that are started by themselves: one of each at a time.
pub(super) const STARTED: [JobKind; 3] = [JobKind::Scrub, JobKind::Reclaim, JobKind::Dedup];
/// The newest check.
pub(super) const CHECK_PATH: &str = "/v1/check";
/// The fingerprint index.
pub(super) const INDEX_PATH: &str = "/v1/index";
/// What can be set.
pub(super) const SETTINGS_PATH: &str = "/v1/settings";

/// `POST /v1/check`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckBody {
    /// Read and verify every chunk too.
    #[serde(default)]
    pub(super) data: bool,
}

/// `DELETE /v1/volumes/NAME`; it needs no body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteBody {
    /// Its snapshots go with it.
    #[serde(default)]
    pub(super) snapshots: bool,
}

/// `POST /v1/snapshots/VOLUME@NAME/rollback`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RollBackBody {
    /// Although clients use the volume.
    #[serde(default)]
    pub(super) force: bool,
}

/// `POST /v1/snapshots/VOLUME@NAME/clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CloneBody {
    /// The new volume.
    pub(super) name: String,
}

/// `POST /v1/snapshots/VOLUME@NAME/diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiffBody {
    /// A volume or a snapshot.
    pub(super) to: String,
    #[serde(flatten)]
    pub(super) part: crate::access::DiffPart,
}

/// `POST /v1/members/INDEX/fail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailBody {
    /// Why, for the log and for `member list`.
    pub(super) reason: String,
}

/// `POST /v1/members/INDEX/readd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReaddBody {
    /// Where it is now.
    pub(super) path: std::path::PathBuf,
}

/// The answer to `POST /v1/members`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpareAnswer {
    /// The spare's index.
    pub(super) index: u32,
}

/// A number in a collection, and what is to be done with it: the parts of
/// `COLLECTION/NUMBER` or `COLLECTION/NUMBER/VERB`.
pub(super) fn numbered<'a, T: std::str::FromStr>(
    path: &'a str,
    collection: &str,
) -> Option<(T, Option<&'a str>)> {
    let rest = path.strip_prefix(collection)?.strip_prefix('/')?;
    let (number, verb) = match rest.split_once('/') {
        Some((number, verb)) => (number, Some(verb)),
        None => (rest, None),
    };
    // Of several spellings of one number (+1, 01) only one is a path.
    let plain =
        number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
    number
        .parse()
        .ok()
        .filter(|_| plain)
        .map(|number| (number, verb))
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ErrorBody {
    /// What failed.
    pub(super) error: Failure,
}

/// `POST /v1/volumes`: only name and size have no default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    name: String,
    size_bytes: u64,
    #[serde(default = "default_chunk_bytes")]
    chunk_bytes: u32,
    #[serde(default = "default_dedup")]
    dedup: DedupMode,
    #[serde(default = "default_compression")]
    compression: Compression,
}

const fn default_chunk_bytes() -> u32 {
    4096
}

const fn default_dedup() -> DedupMode {
    DedupMode::Inline
}

const fn default_compression() -> Compression {
    Compression::Lz4
}

impl From<CreateBody> for VolumeSpec {
    fn from(body: CreateBody) -> Self {
        Self {
            name: body.name,
            size_bytes: body.size_bytes,
            chunk_bytes: body.chunk_bytes,
            dedup: body.dedup,
            compression: body.compression,
        }
    }
}

/// `PATCH /v1/volumes/NAME`: one change at a time, so that none is half done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeBody {
    /// The new size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size_bytes: Option<u64>,
    /// Shrinking is meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) force: bool,
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// How new writes are deduplicated; may come with `compression`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dedup: Option<DedupMode>,
    /// How new writes are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compression: Option<Compression>,
    /// Whether it may be made smaller through a mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allow_shrink: Option<bool>,
}

impl ChangeBody {
    /// What it changes of the treatment of new writes.
    pub(super) fn treatment(&self) -> VolumeChange {
        VolumeChange {
            dedup: self.dedup,
            compression: self.compression,
            allow_shrink: self.allow_shrink,
        }
    }
}

/// The path of one volume. A name may hold anything here, so that a wrong one
/// is refused by the pool in the pool's words.
pub(super) fn volume_path(name: &str) -> String {
    named_path(VOLUMES_PATH, name)
}

/// The volume's name in a path made by [`volume_path`].
pub(super) fn volume_name(path: &str) -> Option<String> {
    decoded(path.strip_prefix(VOLUMES_PATH)?.strip_prefix('/')?)
}

/// The path of one snapshot, or of those of a volume.
pub(super) fn snapshot_path(name: &str) -> String {
    named_path(SNAPSHOTS_PATH, name)
}

/// What [`snapshot_path`] was made of, and what is to be done with it.
pub(super) fn snapshot_name(path: &str) -> Option<(String, Option<&str>)> {
    let rest = path.strip_prefix(SNAPSHOTS_PATH)?.strip_prefix('/')?;
    let (name, verb) = match rest.split_once('/') {
        Some((name, verb)) => (name, Some(verb)),
        None => (rest, None),
    };
    Some((decoded(name)?, verb))
}

fn named_path(collection: &str, name: &str) -> String {
    let mut path = format!("{collection}/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn decoded(encoded: &str) -> Option<String> {
    if encoded.contains('/') {
        return None;
    }
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: u8| char::from(b).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_name_no_volume_are_refused() {
        for path in [
            "/v1/volumes",
            "/v1/volumesx",
            "/v1/volumes/a/b",
            "/v1/volumes/%4",
            "/v1/volumes/%zz",
            "/v1/volumes/%FF",
        ] {
            assert_eq!(volume_name(path), None, "{path}");
        }
        assert_eq!(volume_name("/v1/volumes/"), Some(String::new()));
    }

    #[test]
    fn snapshots_are_named_in_paths_with_what_is_to_be_done() {
        let name = |name: &str| name.to_owned();
        let parse = snapshot_name;
        assert_eq!(parse("/v1/snapshots/a@b"), Some((name("a@b"), None)));
        let clone = parse("/v1/snapshots/a%40b/clone");
        assert_eq!(clone, Some((name("a@b"), Some("clone"))));
        let path = snapshot_path("a");
        assert_eq!(parse(&path), Some((name("a"), None)));
        for path in ["/v1/snapshots", "/v1/snapshotsx/a", "/v1/snapshots/%4"] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn numbered_paths_have_one_spelling() {
        let parse = |path| numbered::<u32>(path, JOBS_PATH);
        assert_eq!(parse("/v1/jobs/7"), Some((7, None)));
        assert_eq!(parse("/v1/jobs/0/pause"), Some((0, Some("pause"))));
        for path in [
            "/v1/jobs",
            "/v1/jobs/",
            "/v1/jobs/07",
            "/v1/jobs/+7",
            "/v1/jobs/x",
            "/v1/jobs/99999999999",
            "/v1/jobsx/1",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn creating_needs_only_a_name_and_a_size() {
        let body: CreateBody = serde_json::from_str(r#"{"name":"a","size_bytes":1}"#).unwrap();
        let spec = VolumeSpec::from(body);
        assert_eq!((spec.chunk_bytes, spec.dedup), (4096, DedupMode::Inline));
        assert!(
            serde_json::from_str::<CreateBody>(r#"{"name":"a","size_bytes":1,"x":1}"#).is_err()
        );
    }

    proptest! {
        #[test]
        fn names_cross_the_path_unchanged(name in "\\PC{0,40}") {
            let path = volume_path(&name);
            prop_assert!(path.is_ascii() && !path.contains(' '));
            prop_assert_eq!(volume_name(&path), Some(name));
        }
    }
}
