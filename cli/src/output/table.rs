//! Tables: columns as wide as their widest cell, and together no wider than
//! the terminal. What is piped is never shortened.

use std::io::IsTerminal;

use super::colour;

/// Spaces between columns.
const GAP: usize = 2;
/// No column of words is made narrower than this.
const NARROWEST: usize = 8;

/// Rows of cells under headings.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
    state_column: Option<usize>,
}

/// Which side of a column its cells keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// For words; these are shortened where there is no room.
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
            state_column: None,
        }
    }

    /// Colours the cells of this column by the state they name.
    pub(crate) fn colour_states(mut self, column: usize) -> Self {
        self.state_column = Some(column);
        self
    }

    /// Adds a row; it has as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a row fills every column");
        self.rows.push(cells);
    }

    /// The table for standard output, one line a row, each starting with
    /// `indent` spaces.
    pub(crate) fn render(&self, indent: usize) -> String {
        self.render_within(indent, terminal_width(), colour::on_stdout())
    }

    fn render_within(&self, indent: usize, limit: Option<usize>, coloured: bool) -> String {
        let widths = self.widths(indent, limit);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            let last = row.len() - 1;
            for (index, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let cell = shortened(cell, width);
                let padded = match self.columns[index] {
                    Align::Left if index == last => cell.clone(),
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                };
                if self.state_column == Some(index) {
                    line.push_str(&colour::paint_state(&cell, &padded, coloured));
                } else {
                    line.push_str(&padded);
                }
                if index != last {
                    line.push_str(&" ".repeat(GAP));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Each column's width: that of its widest cell, less what the widest
    /// columns of words must give up for the row to fit.
    fn widths(&self, indent: usize, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let lengths = self.rows.iter().map(|row| row[column].chars().count());
                lengths.max().unwrap_or(0)
            })
            .collect();
        let Some(limit) = limit else { return widths };
        let gaps = indent + GAP * (widths.len() - 1);
        while widths.iter().sum::<usize>() + gaps > limit {
            let widest = (0..widths.len())
                .filter(|&column| {
                    let heading = self.rows[0][column].chars().count();
                    self.columns[column] == Align::Left && widths[column] > NARROWEST.max(heading)
                })
                .max_by_key(|&column| widths[column]);
            let Some(widest) = widest else { break };
            widths[widest] -= 1;
        }
        widths
    }
}

/// The cell in at most `width` characters: its start and its end, for a path's
/// end says more than its middle.
fn shortened(cell: &str, width: usize) -> String {
    let length = cell.chars().count();
    if length <= width {
        return cell.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (start, end) = (kept / 2, kept - kept / 2);
    let head: String = cell.chars().take(start).collect();
    let tail: String = cell.chars().skip(length - end).collect();
    format!("{head}…{tail}")
}

/// How many columns the terminal has; none where standard output is no
/// terminal, or one that does not tell.
pub(super) fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members() -> Table {
        let mut table = Table::new(&[
            ("#", Align::Right),
            ("STATE", Align::Left),
            ("PATH", Align::Left),
        ])
        .colour_states(1);
        table.row(vec![
            "0".into(),
            "online".into(),
            "/srv/tessera/tank/disk0.img".into(),
        ]);
        table.row(vec!["1".into(), "failed".into(), "/dev/sdb".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["a".into(), "20G".into()]);
        table.row(vec!["longer".into(), "1".into()]);
        assert_eq!(
            table.render_within(1, None, false),
            " NAME    SIZE\n a        20G\n longer     1\n"
        );
    }

    #[test]
    fn a_long_path_gives_up_its_middle_where_the_terminal_is_narrow() {
        assert_eq!(
            members().render_within(2, Some(30), false),
            "  #  STATE   PATH\n  0  online  /srv/tes…isk0.img\n  1  failed  /dev/sdb\n"
        );
    }

    #[test]
    fn colours_change_no_column() {
        let coloured = members().render_within(2, None, true);
        assert!(coloured.contains("\u{1b}[31mfailed\u{1b}[0m  /dev/sdb"));
        let plain = coloured
            .replace("\u{1b}[31m", "")
            .replace("\u{1b}[32m", "")
            .replace("\u{1b}[0m", "");
        assert_eq!(plain, members().render_within(2, None, false));
    }

    proptest! {
        #[test]
        fn lines_fit_whatever_the_cells(cells in prop::collection::vec("\\PC{0,60}", 3), width in 40usize..90) {
            let mut table = members();
            // Numbers are never shortened, so theirs are as short as numbers are.
            table.row(vec!["12".into(), cells[1].clone(), cells[2].clone()]);
            for line in table.render_within(2, Some(width), false).lines() {
                prop_assert!(line.chars().count() <= width, "{line:?}");
            }
        }
    }
}
