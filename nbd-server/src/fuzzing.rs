//! Entry points for fuzzing: any bytes from a client give an answer or an
//! error. Not part of the crate's interface.

use crate::protocol::{
    Action, Agreement, ContextSet, Encryption, ExportInfo, Exports, HeaderStyle, Instance,
    Negotiation, Parsed, Progress, Step, Terms, constants::MAX_PAYLOAD_BYTES, request,
};

const SIZE: u64 = 1 << 30;

struct Two(Instance);

impl Two {
    fn new() -> Self {
        Self(Instance {
            name: "now".to_owned(),
            ended_clean: vec!["before".to_owned()],
        })
    }
}

impl Exports for Two {
    fn instance(&self) -> Option<&Instance> {
        Some(&self.0)
    }

    fn names(&self) -> Vec<String> {
        vec!["a".to_owned(), "b".to_owned()]
    }

    fn describe(&self, name: &str) -> Option<ExportInfo> {
        let known = ["a", "b"].into_iter().find(|known| *known == name)?;
        Some(ExportInfo {
            name: known.to_owned(),
            description: "an export".to_owned(),
            size: SIZE,
            read_only: known == "b",
        })
    }

    fn snapshots(&self, _: &str) -> Vec<String> {
        vec!["s".to_owned()]
    }
}

/// Bytes as all that a client sends, from its flags on.
pub fn negotiation(bytes: &[u8]) {
    let exports = Two::new();
    let mut output = Vec::new();
    let mut negotiation = Negotiation::new(Encryption::Offered, &mut output);
    let mut rest = bytes;
    loop {
        let Progress { consumed, step } = negotiation.feed(rest, &exports, &mut output);
        assert!(consumed <= rest.len(), "no more is consumed than there is");
        rest = &rest[consumed..];
        match step {
            Step::Continue => assert!(consumed > 0, "negotiation gets on"),
            Step::NeedMore => {
                assert_eq!(consumed, 0, "an incomplete message stays");
                break;
            }
            // As if the rest had come through TLS.
            Step::StartTls => negotiation.tls_started(),
            Step::Closed(_) => break,
            Step::Transmission(Agreement {
                export,
                style,
                contexts,
            }) => {
                let ExportInfo {
                    size, read_only, ..
                } = export;
                requests(
                    Terms {
                        style,
                        contexts: contexts.set,
                        read_only,
                        size,
                    },
                    rest,
                );
                break;
            }
        }
    }
}

/// The first byte chooses what was agreed on; the others are requests.
pub fn transmission(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let style = match first & 3 {
        0 => HeaderStyle::Simple,
        1 => HeaderStyle::Structured,
        _ => HeaderStyle::Extended,
    };
    let read_only = first & 8 != 0;
    let contexts = match first & 4 {
        0 => ContextSet::NONE,
        _ => ContextSet::ALLOCATION,
    };
    requests(
        Terms {
            style,
            contexts,
            read_only,
            size: SIZE,
        },
        rest,
    );
}

fn requests(terms: Terms, mut rest: &[u8]) {
    while let Parsed::Header(header) = request::parse(terms.style, rest) {
        rest = &rest[request::header_bytes(terms.style)..];
        let payload_bytes = header.payload_bytes(terms.style);
        let within = usize::try_from(payload_bytes)
            .ok()
            .filter(|length| *length <= rest.len());
        let payload = &rest[..within.unwrap_or(rest.len())];
        match terms.validate(&header) {
            Ok(Action::Read { .. } | Action::Write { .. }) => {
                let end = header.offset.checked_add(header.length);
                assert!(
                    end.is_some_and(|end| end <= terms.size),
                    "transfers lie in the export"
                );
                assert!(header.length <= MAX_PAYLOAD_BYTES, "transfers are bounded");
            }
            Ok(Action::Trim { .. } | Action::WriteZeroes { .. }) => {
                assert!(!terms.read_only, "a read-only export is not changed");
            }
            Ok(Action::BlockStatusQuery { .. }) => {
                let _refused_or_not = terms.query(header.offset, payload);
            }
            Ok(Action::Disconnect) => return,
            Ok(_) | Err(_) => {}
        }
        rest = &rest[payload.len()..];
    }
}
