//! The commands, one file each.

pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod pool_check;
pub(crate) mod pool_create;
pub(crate) mod pool_import;
pub(crate) mod pool_status;
pub(crate) mod serve;
pub(crate) mod volume_create;
pub(crate) mod volume_delete;
pub(crate) mod volume_list;
pub(crate) mod volume_rename;
pub(crate) mod volume_resize;
pub(crate) mod volume_show;

use crate::{
    args::{Cli, Command, ConfigCommand, PoolCommand, VolumeCommand},
    output::Outcome,
};

/// Runs what the command line asks for.
pub(crate) fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let globals = &cli.globals;
    match cli.command {
        Command::Pool(PoolCommand::Create(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Status(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Import(command)) => command.run(globals)?,
        Command::Pool(PoolCommand::Check(command)) => return command.run(globals),
        Command::Volume(VolumeCommand::Create(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::List(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Show(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Resize(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Rename(command)) => command.run(globals)?,
        Command::Volume(VolumeCommand::Delete(command)) => command.run(globals)?,
        Command::Serve(command) => command.run(globals)?,
        Command::Mount(command) => command.run(globals)?,
        Command::Config(ConfigCommand::Check(command)) => command.run()?,
        Command::Config(ConfigCommand::Example(command)) => command.run()?,
        Command::Completions(command) => command.run()?,
        Command::Man(command) => command.run()?,
    }
    Ok(Outcome::Done)
}
