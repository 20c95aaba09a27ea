//! `tessera man`: manual pages, made from what `--help` says.

use std::{
    fs,
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
    let page = Page::new(command.clone())
        .title(&name)
        .manual("Tessera")
        .section("1");
    let mut text = Vec::new();
    page.render(&mut text)
        .context("A manual page cannot be made")?;
    let file = Path::new(&name).with_extension("1");
    pages.push((file.to_string_lossy().into_owned(), text));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        add(sub, pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            if text.contains(".SH SUBCOMMANDS") && name != "tessera.1" {
                continue;
            }
            assert!(text.contains("Example"), "{name}:\n{text}");
        }
    }
}
