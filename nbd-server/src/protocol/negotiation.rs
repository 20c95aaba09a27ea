//! Negotiation: fixed newstyle option haggling as a state machine.
//!
//! ```text
//!   greeting ──> client flags ──> option ──> ... ──> Transmission
//!                                 ^  │  ╲
//!                                 │  │   ╲──> Closed
//!                                 └──┘ (a refused payload is skipped first)
//! ```
//!
//! Invariants:
//! * Every option is answered, and its payload consumed, so that framing never
//!   slips; only `EXPORT_NAME`, which has no error reply, ends in a disconnect.
//! * Bytes behind the option that starts transmission are left to the caller.
//! * Memory is bounded by [`MAX_OPTION_BYTES`] of input held by the caller, and
//!   work by [`MAX_OPTIONS`].
//! * `SET_META_CONTEXT` counts only for the export that `GO` names.

mod contexts;
mod replies;

use replies::{MALFORMED, NO_EXPORT, Refusal, UNWANTED, list, reply, string};

use super::constants::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, HeaderStyle, INIT_MAGIC, MAX_OPTION_BYTES, MAX_OPTIONS,
    MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, MIN_BLOCK_BYTES, OPTION_MAGIC, PREFERRED_BLOCK_BYTES,
    info, option, option_reply, transmission_flag,
};
use super::contexts::Contexts;
use super::cursor::{Cursor, Put};

/// One run of a server, so that a client that was away can ask whether anything
/// it was answered before is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// A name that no other run has.
    pub name: String,
    /// Runs that ended after all they had answered was durable.
    pub ended_clean: Vec<String>,
}

impl Instance {
    /// Whether nothing that the run of this name has answered is lost. Of the run
    /// that goes on, and has no name here, nothing is.
    pub fn keeps(&self, name: &str) -> bool {
        name.is_empty() || self.name == name || self.ended_clean.iter().any(|of| of == name)
    }
}

/// What negotiation needs to know of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its own name, also when it was asked for as the default export.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Writes fail.
    pub read_only: bool,
}

/// The exports a client may ask about.
pub trait Exports {
    /// All names.
    fn names(&self) -> Vec<String>;
    /// Describes one; the empty name is the default export, if there is one.
    fn describe(&self, name: &str) -> Option<ExportInfo>;
    /// The snapshots that an export can be compared with.
    fn snapshots(&self, name: &str) -> Vec<String> {
        let _ = name;
        Vec::new()
    }

    /// Which instance of the server this is, if it tells.
    fn instance(&self) -> Option<&Instance> {
        None
    }
}

/// What client and server have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// The export, as it was described.
    pub export: ExportInfo,
    /// The headers in use.
    pub style: HeaderStyle,
    /// The contexts that were chosen for this export.
    pub contexts: Contexts,
}

/// Why negotiation ended without an agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The client asked to.
    Aborted,
    /// The client set flags that do not exist.
    UnknownClientFlags(u32),
    /// An option did not start with its magic.
    BadMagic,
    /// An option other than `EXPORT_NAME` from a client without fixed newstyle.
    NotFixedNewstyle(u32),
    /// `EXPORT_NAME` named no export, or came in the wrong state.
    ExportRefused,
    /// More than [`MAX_OPTIONS`].
    TooManyOptions,
}

/// Whether a client may, or has to, switch to TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// There is no TLS.
    #[default]
    Unavailable,
    /// It may.
    Offered,
    /// It has to before it may do anything else.
    Required,
    /// It has.
    Active,
}

/// Where negotiation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It needs more bytes.
    NeedMore,
    /// One message was taken in; there may be more.
    Continue,
    /// The next byte starts a request.
    Transmission(Agreement),
    /// Send what is there and start TLS; what the client has sent behind its
    /// request for it does not count. Then [`Negotiation::tls_started`].
    StartTls,
    /// Send what is there and close.
    Closed(Closed),
}

/// What one call achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// What happened.
    pub step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    Skip { left: u64 },
}

/// The server's side of one negotiation.
#[derive(Debug)]
pub struct Negotiation {
    state: State,
    fixed: bool,
    no_zeroes: bool,
    style: HeaderStyle,
    /// The export for which contexts were chosen, and which.
    context_for: Option<(String, Contexts)>,
    options: u32,
    encryption: Encryption,
    shutting_down: bool,
}

const OPTION_HEADER_BYTES: usize = 16;

/// The transmission flags of an export: what works, nothing else.
pub fn transmission_flags(read_only: bool, style: HeaderStyle, block_status: bool) -> u16 {
    use transmission_flag as flag;
    let mut flags = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::CAN_MULTI_CONN
        | flag::SEND_CACHE;
    flags |= if read_only {
        flag::READ_ONLY
    } else {
        flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
    };
    if style != HeaderStyle::Simple {
        flags |= flag::SEND_DF;
    }
    if style == HeaderStyle::Extended && block_status {
        flags |= flag::BLOCK_STATUS_PAYLOAD;
    }
    flags
}

impl Agreement {
    /// The transmission flags that were sent with it.
    pub fn transmission_flags(&self) -> u16 {
        transmission_flags(
            self.export.read_only,
            self.style,
            !self.contexts.set.is_empty(),
        )
    }
}

impl Negotiation {
    /// Starts; the greeting is appended to `output`.
    pub fn new(encryption: Encryption, output: &mut Vec<u8>) -> Self {
        output.put_u64(INIT_MAGIC);
        output.put_u64(OPTION_MAGIC);
        output.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        Self {
            state: State::ClientFlags,
            fixed: false,
            no_zeroes: false,
            style: HeaderStyle::Simple,
            context_for: None,
            options: 0,
            encryption,
            shutting_down: false,
        }
    }

    /// TLS is in use: nothing that was agreed on before it counts.
    pub fn tls_started(&mut self) {
        self.encryption = Encryption::Active;
        self.state = State::Option;
        self.style = HeaderStyle::Simple;
        self.context_for = None;
    }

    /// From now on every option but `ABORT` is answered with `ERR_SHUTDOWN`.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Takes in at most one message from the start of `input` and appends the
    /// replies to `output`. The caller calls again, with the consumed bytes
    /// removed, until the step is not [`Step::Continue`]. Nothing is consumed
    /// when the step is [`Step::NeedMore`], and it never asks for more than
    /// [`MAX_OPTION_BYTES`] and a header.
    pub fn feed(&mut self, input: &[u8], exports: &dyn Exports, output: &mut Vec<u8>) -> Progress {
        match self.state {
            State::ClientFlags => self.client_flags(input),
            State::Option => self.option(input, exports, output),
            State::Skip { left } => {
                let available = u64::try_from(input.len()).unwrap_or(u64::MAX);
                let consumed = left.min(available);
                self.state = match left - consumed {
                    0 => State::Option,
                    left => State::Skip { left },
                };
                let step = if consumed == 0 {
                    Step::NeedMore
                } else {
                    Step::Continue
                };
                Progress {
                    consumed: usize::try_from(consumed).unwrap_or(input.len()),
                    step,
                }
            }
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Progress {
        let Some(flags) = Cursor(input).u32() else {
            return Progress {
                consumed: 0,
                step: Step::NeedMore,
            };
        };
        let fixed = u32::from(FLAG_FIXED_NEWSTYLE);
        let no_zeroes = u32::from(FLAG_NO_ZEROES);
        let step = if flags & !(fixed | no_zeroes) != 0 {
            Step::Closed(Closed::UnknownClientFlags(flags))
        } else {
            self.fixed = flags & fixed != 0;
            self.no_zeroes = flags & no_zeroes != 0;
            self.state = State::Option;
            Step::Continue
        };
        Progress { consumed: 4, step }
    }

    fn option(&mut self, input: &[u8], exports: &dyn Exports, output: &mut Vec<u8>) -> Progress {
        let mut cursor = Cursor(input);
        match cursor.u64() {
            Some(OPTION_MAGIC) => {}
            Some(_) => {
                return Progress {
                    consumed: 8,
                    step: Step::Closed(Closed::BadMagic),
                };
            }
            None => {
                return Progress {
                    consumed: 0,
                    step: Step::NeedMore,
                };
            }
        }
        let (Some(option), Some(length)) = (cursor.u32(), cursor.u32()) else {
            return Progress {
                consumed: 0,
                step: Step::NeedMore,
            };
        };
        let close = |closed| Progress {
            consumed: OPTION_HEADER_BYTES,
            step: Step::Closed(closed),
        };
        if self.options == MAX_OPTIONS {
            return close(Closed::TooManyOptions);
        }
        if !self.fixed && option != option::EXPORT_NAME {
            return close(Closed::NotFixedNewstyle(option));
        }
        let refusal = if option == option::EXPORT_NAME {
            // There is no error reply to this one.
            if length as usize > MAX_STRING_BYTES
                || self.shutting_down
                || self.encryption == Encryption::Required
            {
                return close(Closed::ExportRefused);
            }
            None
        } else if option == option::ABORT {
            reply(output, option, option_reply::ACK, &[]);
            return close(Closed::Aborted);
        } else if self.shutting_down {
            Some((option_reply::ERR_SHUTDOWN, "The server is shutting down"))
        } else if self.encryption == Encryption::Required && option != option::STARTTLS {
            Some((option_reply::ERR_TLS_REQD, "This server requires TLS"))
        } else if !KNOWN.contains(&option)
            || option == option::STARTTLS && self.encryption == Encryption::Unavailable
        {
            Some((option_reply::ERR_UNSUP, "This option is not supported"))
        } else if length as usize > MAX_OPTION_BYTES {
            Some((
                option_reply::ERR_TOO_BIG,
                "The option is longer than 64 KiB",
            ))
        } else {
            None
        };
        if let Some((kind, message)) = refusal {
            self.options += 1;
            if option == option::SET_META_CONTEXT {
                self.context_for = None;
            }
            reply(output, option, kind, message.as_bytes());
            if length != 0 {
                self.state = State::Skip {
                    left: u64::from(length),
                };
            }
            return Progress {
                consumed: OPTION_HEADER_BYTES,
                step: Step::Continue,
            };
        }
        let Some(payload) = cursor.take(length as usize) else {
            return Progress {
                consumed: 0,
                step: Step::NeedMore,
            };
        };
        self.options += 1;
        let step = self.dispatch(option, payload, exports, output);
        Progress {
            consumed: OPTION_HEADER_BYTES + payload.len(),
            step,
        }
    }

    fn dispatch(
        &mut self,
        option: u32,
        payload: &[u8],
        exports: &dyn Exports,
        output: &mut Vec<u8>,
    ) -> Step {
        let result = match option {
            option::STARTTLS => match self.start_tls(payload) {
                Ok(()) => {
                    reply(output, option, option_reply::ACK, &[]);
                    return Step::StartTls;
                }
                Err(refusal) => Err(refusal),
            },
            option::EXPORT_NAME => return self.export_name(payload, exports, output),
            option::LIST => list(payload, exports, output),
            option::INFO | option::GO => match self.describe(option, payload, exports, output) {
                Ok(agreement) if option == option::GO => {
                    reply(output, option, option_reply::ACK, &[]);
                    return Step::Transmission(agreement);
                }
                Ok(_) => Ok(()),
                Err(refusal) => Err(refusal),
            },
            option::STRUCTURED_REPLY => self.structured_reply(payload),
            option::EXTENDED_HEADERS => self.extended_headers(payload),
            option::LIST_META_CONTEXT => {
                self.contexts(option, payload, exports, output).map(|_| ())
            }
            option::SET_META_CONTEXT => {
                // The old set is gone even when this fails.
                self.context_for = None;
                self.contexts(option, payload, exports, output)
                    .map(|chosen| {
                        self.context_for = chosen;
                    })
            }
            _ => Err(Refusal(
                option_reply::ERR_UNSUP,
                "This option is not supported",
            )),
        };
        match result {
            Ok(()) => reply(output, option, option_reply::ACK, &[]),
            Err(Refusal(kind, message)) => reply(output, option, kind, message.as_bytes()),
        }
        Step::Continue
    }

    fn agreement(&self, export: ExportInfo) -> Agreement {
        let chosen = self.context_for.as_ref();
        let contexts = chosen
            .filter(|(name, _)| *name == export.name)
            .map_or_else(Contexts::default, |(_, contexts)| contexts.clone());
        Agreement {
            export,
            style: self.style,
            contexts,
        }
    }

    fn export_name(&mut self, payload: &[u8], exports: &dyn Exports, output: &mut Vec<u8>) -> Step {
        // A client with extended headers must use GO.
        if self.style == HeaderStyle::Extended {
            return Step::Closed(Closed::ExportRefused);
        }
        let Some(export) = string(payload).ok().and_then(|name| exports.describe(name)) else {
            return Step::Closed(Closed::ExportRefused);
        };
        let agreement = self.agreement(export);
        output.put_u64(agreement.export.size);
        output.put_u16(agreement.transmission_flags());
        if !self.no_zeroes {
            output.put(&[0; 124]);
        }
        Step::Transmission(agreement)
    }

    fn describe(
        &self,
        option: u32,
        payload: &[u8],
        exports: &dyn Exports,
        output: &mut Vec<u8>,
    ) -> Result<Agreement, Refusal> {
        let mut cursor = Cursor(payload);
        let name = string(cursor.counted().ok_or(MALFORMED)?)?;
        let count = cursor.u16().ok_or(MALFORMED)?;
        if cursor.0.len() != usize::from(count) * 2 {
            return Err(MALFORMED);
        }
        let mut wanted = [false; 4];
        while let Some(item) = cursor.u16() {
            if let Some(wanted) = wanted.get_mut(usize::from(item)) {
                *wanted = true;
            }
        }
        let export = exports.describe(name).ok_or(NO_EXPORT)?;
        let agreement = self.agreement(export);
        let export = &agreement.export;
        let mut item = Vec::new();
        let mut send = |kind: u16, fill: &dyn Fn(&mut Vec<u8>)| {
            item.clear();
            item.put_u16(kind);
            fill(&mut item);
            reply(output, option, option_reply::INFO, &item);
        };
        send(info::EXPORT, &|item| {
            item.put_u64(export.size);
            item.put_u16(agreement.transmission_flags());
        });
        if wanted[usize::from(info::NAME)] {
            send(info::NAME, &|item| item.put(export.name.as_bytes()));
        }
        if wanted[usize::from(info::DESCRIPTION)] {
            send(info::DESCRIPTION, &|item| {
                item.put(export.description.as_bytes())
            });
        }
        if wanted[usize::from(info::BLOCK_SIZE)] {
            send(info::BLOCK_SIZE, &|item| {
                item.put_u32(MIN_BLOCK_BYTES);
                item.put_u32(PREFERRED_BLOCK_BYTES);
                item.put_u32(u32::try_from(MAX_PAYLOAD_BYTES).unwrap_or(u32::MAX));
            });
        }
        Ok(agreement)
    }

    fn start_tls(&self, payload: &[u8]) -> Result<(), Refusal> {
        if !payload.is_empty() {
            return Err(UNWANTED);
        }
        if self.encryption == Encryption::Active {
            return Err(Refusal(option_reply::ERR_INVALID, "TLS is in use already"));
        }
        Ok(())
    }

    fn structured_reply(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        if !payload.is_empty() {
            return Err(UNWANTED);
        }
        match self.style {
            HeaderStyle::Simple => {
                self.style = HeaderStyle::Structured;
                Ok(())
            }
            HeaderStyle::Structured => Err(Refusal(
                option_reply::ERR_INVALID,
                "Structured replies are in use already",
            )),
            HeaderStyle::Extended => Err(Refusal(
                option_reply::ERR_EXT_HEADER_REQD,
                "Extended headers are in use already",
            )),
        }
    }

    fn extended_headers(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        if !payload.is_empty() {
            return Err(UNWANTED);
        }
        if self.style == HeaderStyle::Extended {
            return Err(Refusal(
                option_reply::ERR_INVALID,
                "Extended headers are in use already",
            ));
        }
        self.style = HeaderStyle::Extended;
        Ok(())
    }
}

const KNOWN: [u32; 10] = [
    option::STARTTLS,
    option::EXPORT_NAME,
    option::ABORT,
    option::LIST,
    option::INFO,
    option::GO,
    option::STRUCTURED_REPLY,
    option::LIST_META_CONTEXT,
    option::SET_META_CONTEXT,
    option::EXTENDED_HEADERS,
];

#[cfg(test)]
mod tests;
