//! Replies to options, and why one is refused.

use super::Exports;
use crate::protocol::{
    constants::{MAX_STRING_BYTES, OPTION_REPLY_MAGIC, option, option_reply},
    cursor::Put,
};

/// An error reply's type and its sentence.
pub(super) struct Refusal(pub(super) u32, pub(super) &'static str);

pub(super) const MALFORMED: Refusal = Refusal(option_reply::ERR_INVALID, "The option is malformed");
pub(super) const UNWANTED: Refusal =
    Refusal(option_reply::ERR_INVALID, "This option takes no payload");
pub(super) const NO_EXPORT: Refusal = Refusal(option_reply::ERR_UNKNOWN, "There is no such export");

pub(super) fn string(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(Refusal(
            option_reply::ERR_TOO_BIG,
            "The string is longer than 4096 bytes",
        ));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Refusal(
            option_reply::ERR_INVALID,
            "The string is not UTF-8 or contains a NUL character",
        )),
    }
}

pub(super) fn list(
    payload: &[u8],
    exports: &dyn Exports,
    output: &mut Vec<u8>,
) -> Result<(), Refusal> {
    if !payload.is_empty() {
        return Err(UNWANTED);
    }
    let mut item = Vec::new();
    let with_snapshots = |name: String| {
        let snapshots = exports.snapshots(&name).into_iter();
        let snapshots: Vec<String> = snapshots.map(|of| format!("{name}@{of}")).collect();
        std::iter::once(name).chain(snapshots)
    };
    for name in exports.names().into_iter().flat_map(with_snapshots) {
        // Gone since the names were listed: simply not there any more.
        let Some(export) = exports.describe(&name) else {
            continue;
        };
        let Ok(length) = u32::try_from(name.len()) else {
            continue;
        };
        item.clear();
        item.put_u32(length);
        item.put(name.as_bytes());
        item.put(export.description.as_bytes());
        reply(output, option::LIST, option_reply::SERVER, &item);
    }
    Ok(())
}

pub(super) fn reply(output: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    output.put_u64(OPTION_REPLY_MAGIC);
    output.put_u32(option);
    output.put_u32(kind);
    output.put_u32(u32::try_from(payload.len()).expect("replies are short"));
    output.put(payload);
}
