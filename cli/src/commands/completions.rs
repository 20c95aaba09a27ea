//! `tessera completions`: scripts with which a shell completes commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{args::Cli, output};

/// Print the script with which a shell completes tessera's commands
///
/// 'make install' puts them where the shells look.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    source <(tessera completions bash)\n  \
    tessera completions fish > ~/.config/fish/completions/tessera.fish")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut command = Cli::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        output::print(&String::from_utf8(script)?)
    }
}
