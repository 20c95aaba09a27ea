//! Whether to colour what is printed, and which colour a state has.
//!
//! Colours go to terminals only, and not where `NO_COLOR` is set or the
//! terminal is dumb; `--color` has the last word. They repeat what the words
//! say, so that nothing is lost without them.

use std::{io::IsTerminal, sync::OnceLock};

use clap::ValueEnum;

/// What `--color` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColourArg {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Also when piped
    Always,
    /// Not at all
    Never,
}

static CHOICE: OnceLock<ColourArg> = OnceLock::new();

/// Takes over what the command line says. The first call counts.
pub(crate) fn choose(choice: ColourArg) {
    // A second choice cannot come: the command line is read once.
    let _ = CHOICE.set(choice);
}

/// Whether standard output is coloured.
pub(crate) fn on_stdout() -> bool {
    wanted(std::io::stdout().is_terminal())
}

/// Whether standard error is coloured.
pub(crate) fn on_stderr() -> bool {
    wanted(std::io::stderr().is_terminal())
}

fn wanted(terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let plain = set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    decide(CHOICE.get().copied().unwrap_or_default(), terminal, plain)
}

const fn decide(choice: ColourArg, terminal: bool, plain: bool) -> bool {
    match choice {
        ColourArg::Auto => terminal && !plain,
        ColourArg::Always => true,
        ColourArg::Never => false,
    }
}

/// A state's word, coloured by what it means where standard output is.
pub(crate) fn state(word: &str) -> String {
    paint_state(word, word, on_stdout())
}

/// `text` in the colour of the state that `word` names.
pub(super) fn paint_state(word: &str, text: &str, coloured: bool) -> String {
    match code(word.trim()) {
        Some(code) if coloured => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        _ => text.to_owned(),
    }
}

/// The terminal's code for a state: green is well, yellow under way or
/// diminished, red lost.
fn code(word: &str) -> Option<&'static str> {
    match word.split_whitespace().next()? {
        "online" | "ready" | "done" => Some("32"),
        "degraded" | "rebuilding" | "replacing" | "running" | "paused" => Some("33"),
        "failed" | "missing" => Some("31"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_unless_told_otherwise() {
        for (choice, terminal, plain, coloured) in [
            (ColourArg::Auto, true, false, true),
            (ColourArg::Auto, true, true, false),
            (ColourArg::Auto, false, false, false),
            (ColourArg::Always, false, true, true),
            (ColourArg::Never, true, false, false),
        ] {
            assert_eq!(decide(choice, terminal, plain), coloured, "{choice:?}");
        }
    }

    #[test]
    fn a_state_is_coloured_by_its_first_word_and_others_are_not() {
        assert_eq!(
            paint_state("failed", "failed  ", true),
            "\u{1b}[31mfailed  \u{1b}[0m"
        );
        assert_eq!(
            paint_state("rebuilding 40 %", "x", true),
            "\u{1b}[33mx\u{1b}[0m"
        );
        assert_eq!(paint_state("online", "online", false), "online");
        assert_eq!(paint_state("STATE", "STATE", true), "STATE");
        assert_eq!(paint_state("", "", true), "");
    }
}
