//! `tessera man`: manual pages, made from what `--help` says.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;

use crate::args::Cli;

/// Write the manual pages into a directory
///
/// One page a command: tessera.1, tessera-serve.1, tessera-pool-create.1 and so
/// on. 'make install' puts them where man looks.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera man ~/.local/share/man/man1\n  \
    tessera man . && man ./tessera-serve.1")]
pub(crate) struct Man {
    /// An existing directory
    #[arg(value_name = "OUT_DIR")]
    directory: PathBuf,
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        for (name, page) in pages()? {
            let path = self.directory.join(name);
            fs::write(&path, page)
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }
}

/// What every command ends with.
const EXIT_STATUS: &str =
    "0 done; 1 failed, with one sentence on standard error; 2 a check found problems.";

/// Every page's file name and text.
fn pages() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives each command its full name and the options that all commands have.
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned();
    let text = render(command, &name).context("A manual page cannot be made")?;
    let file = Path::new(&name).with_extension("1");
    pages.push((file.to_string_lossy().into_owned(), text));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        add(sub, pages)?;
    }
    Ok(())
}

fn render(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let page = Page::new(command.clone())
        .title(name)
        .source(concat!("Tessera ", env!("CARGO_PKG_VERSION")))
        .manual("Tessera")
        .section("1");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(examples) = command.get_after_help() {
        writeln!(text, ".SH EXAMPLES")?;
        // As they stand: a command line is not to be filled up.
        writeln!(text, ".nf")?;
        let examples = examples.to_string();
        for line in examples.lines().filter(|line| !line.starts_with("Example")) {
            writeln!(text, "{}", escaped(line))?;
        }
        writeln!(text, ".fi")?;
    }
    writeln!(text, ".SH EXIT STATUS\n{}", escaped(EXIT_STATUS))?;
    Ok(text)
}

/// A line that roff shows as it is.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    // At the start of a line these would begin a request.
    if line.starts_with(['.', '\'']) {
        format!("\\&{line}")
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_an_example_is_a_request() {
        assert_eq!(escaped(".x -y"), "\\&.x \\-y");
        assert_eq!(escaped("'a' \\"), "\\&'a' \\e");
    }

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "tessera.1",
            "tessera-serve.1",
            "tessera-pool.1",
            "tessera-pool-create.1",
            "tessera-config-check.1",
        ] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        for (name, text) in &pages {
            let text = String::from_utf8(text.clone()).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{name}:\n{text}");
            assert!(!text.contains("detached"), "{name} shows what is hidden");
            if !text.contains(".SH SUBCOMMANDS") || name == "tessera.1" {
                assert!(text.contains(".SH EXAMPLES"), "{name}:\n{text}");
            }
        }
    }
}
