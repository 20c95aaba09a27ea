//! What a command prints: text or JSON on stdout, complaints on stderr.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

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

/// Columns of text, each as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

/// Which side of a column its cells keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[(&str, Align)]) -> Self {
        Self {
            columns: headings.iter().map(|(_, align)| *align).collect(),
            rows: vec![
                headings
                    .iter()
                    .map(|(name, _)| (*name).to_owned())
                    .collect(),
            ],
        }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a row fills every column");
        self.rows.push(cells);
    }

    /// The table, one line a row, each starting with `indent` spaces.
    pub(crate) fn render(&self, indent: usize) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, align), &width) in row.iter().zip(&self.columns).zip(&widths) {
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line_without_control_characters() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
        assert_eq!(one_line("x\u{1b}[31my\u{7}"), "x\\u{1b}[31my\\u{7}");
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["a".into(), "20G".into()]);
        table.row(vec!["longer".into(), "1".into()]);
        assert_eq!(
            table.render(1),
            " NAME    SIZE\n a        20G\n longer     1\n"
        );
    }
}
