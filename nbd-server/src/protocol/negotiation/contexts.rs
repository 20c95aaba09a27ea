//! The options that choose and list metadata contexts.

use super::{
    Exports, Negotiation,
    replies::{MALFORMED, NO_EXPORT, Refusal, reply, string},
};
use crate::protocol::{
    constants::{BASE_ALLOCATION, HeaderStyle, option, option_reply},
    contexts::{CHANGED_SINCE, Contexts, KEPT, Query, SINCE_MAX},
    cursor::{Cursor, Put},
};

impl Negotiation {
    /// Answers `LIST_` and `SET_META_CONTEXT`; the export's own name and what
    /// was found, if anything was.
    pub(super) fn contexts(
        &self,
        option: u32,
        payload: &[u8],
        exports: &dyn Exports,
        output: &mut Vec<u8>,
    ) -> Result<Option<(String, Contexts)>, Refusal> {
        let setting = option == option::SET_META_CONTEXT;
        if self.style == HeaderStyle::Simple {
            return Err(Refusal(
                option_reply::ERR_INVALID,
                "Metadata contexts need structured replies or extended headers",
            ));
        }
        let mut cursor = Cursor(payload);
        let name = string(cursor.counted().ok_or(MALFORMED)?)?;
        let count = cursor.u32().ok_or(MALFORMED)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            // Each query takes four bytes at least, so the payload bounds this.
            queries.push(Query::new(string(cursor.counted().ok_or(MALFORMED)?)?));
        }
        if !cursor.is_empty() {
            return Err(MALFORMED);
        }
        if count == 0 && !setting {
            let all = [true, false].map(|base| Query::All { base });
            queries.extend(all);
        }
        let export = exports.describe(name).ok_or(NO_EXPORT)?;
        let ours =
            |query: &Query<'_>| matches!(query, Query::Since(_) | Query::All { base: false });
        let snapshots = match queries.iter().any(ours) {
            true => exports.snapshots(&export.name),
            false => Vec::new(),
        };
        let mut names: Vec<String> = Vec::new();
        for query in queries {
            match query {
                Query::All { .. } if setting => {}
                Query::Allocation | Query::All { base: true } => {
                    names.push(BASE_ALLOCATION.to_owned());
                }
                Query::All { base: false } => {
                    names.extend(snapshots.iter().map(|of| format!("{CHANGED_SINCE}{of}")));
                }
                Query::Since(wanted) if snapshots.iter().any(|known| known == wanted) => {
                    names.push(format!("{CHANGED_SINCE}{wanted}"));
                }
                Query::Kept(asked) if !setting => {
                    let instance = exports.instance().filter(|now| now.keeps(asked));
                    names.extend(instance.map(|now| match asked {
                        "" => format!("{KEPT}{}", now.name),
                        asked => format!("{KEPT}{asked}"),
                    }));
                }
                Query::Since(_) | Query::Kept(_) | Query::Other => {}
            }
        }
        if !setting {
            names.sort_by_key(|name| name != BASE_ALLOCATION);
            names.dedup();
            for name in names {
                context(output, option, 0, &name);
            }
            return Ok(None);
        }
        let mut found = Contexts::default();
        let since = |name: &&String| name.starts_with(CHANGED_SINCE);
        if names.iter().filter(since).count() > SINCE_MAX {
            return Err(Refusal(
                option_reply::ERR_TOO_BIG,
                "At most 15 snapshots can be compared with at once",
            ));
        }
        for name in names {
            if let Some(id) = found.add(&name) {
                context(output, option, id, &name);
            }
        }
        Ok((!found.set.is_empty()).then_some((export.name, found)))
    }
}

fn context(output: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    let mut item = Vec::with_capacity(4 + name.len());
    item.put_u32(id);
    item.put(name.as_bytes());
    reply(output, option, option_reply::META_CONTEXT, &item);
}
