//! What a command prints: text or JSON on stdout, complaints on stderr.

mod colour;
mod table;

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

pub(crate) use colour::{ColourArg, choose as choose_colours, on_stderr, on_stdout, state};
pub(crate) use table::{Align, Table};

/// How a command ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// A check ran to its end and found damage.
    Problems,
}

/// Writes `text` to stdout at once. A reader that has gone away (`| head`) is
/// no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("Standard output cannot be written")
        }
        _ => Ok(()),
    }
}

/// Writes `value` to stdout as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("The answer has no JSON form")?;
    text.push('\n');
    print(&text)
}

/// Writes one line to stderr, prefixed by the program's name. Nothing can be
/// done if that fails.
pub(crate) fn complain(sentence: &str) {
    let line = one_line(sentence);
    let _ = writeln!(io::stderr().lock(), "tessera: {line}");
}

/// Writes one line to stderr as it is, for remarks that are no errors.
pub(crate) fn remark(sentence: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", one_line(sentence));
}

/// Joins lines with single spaces and shows other control characters escaped,
/// so that a strange path cannot forge or break a message.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line_without_control_characters() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
        assert_eq!(one_line("x\u{1b}[31my\u{7}"), "x\\u{1b}[31my\\u{7}");
    }
}
