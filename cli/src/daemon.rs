//! Going to the background: the same command again, in a session of its own.
//!
//! A process with threads cannot fork, and a pool is opened with threads. So
//! the command that is told `--daemon` starts itself once more with a hidden
//! `--detached`, passes on what that one prints, and ends when it can be used
//! or has failed. The other one gives up its terminal, and at its end of the
//! start also stdout and stderr, which is how the first one knows.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::Context;

use crate::output;

/// The hidden option of the process in the background.
pub(crate) const DETACHED: &str = "detached";
/// The option that asks for it.
pub(crate) const DAEMON: &str = "daemon";
/// Either of them.
pub(crate) const BACKGROUND: &str = "background";

/// Runs this very command line in the background, and returns when it can be
/// used. Its messages appear as if they were this process's.
///
/// # Errors
/// It cannot be started. If it fails, this process ends as it did.
pub(crate) fn start() -> anyhow::Result<()> {
    let program = std::env::current_exe().context("The program does not find itself")?;
    let (wanted, instead) = (format!("--{DAEMON}"), format!("--{DETACHED}"));
    let arguments = std::env::args_os().skip(1).map(|argument| {
        if argument == *wanted {
            OsString::from(&instead)
        } else {
            argument
        }
    });
    let mut child = Command::new(program)
        .args(arguments)
        // What it tells later goes to no terminal.
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("The process in the background cannot be started")?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut usable = false;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("The process in the background says something odd")?;
        output::print(&format!("{line}\n"))?;
        usable = true;
    }
    if !usable {
        let status = child
            .wait()
            .context("The process in the background is lost")?;
        // It has said on stderr, which is ours too, what is wrong.
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// Leaves the session of who started this process. Comes first.
///
/// # Errors
/// The system refuses.
pub(crate) fn leave_session() -> anyhow::Result<()> {
    rustix::process::setsid().context("The process cannot leave its terminal")?;
    Ok(())
}

/// Gives up stdout and stderr, which tells [`start`] that all is well.
///
/// # Errors
/// `/dev/null` cannot be opened.
pub(crate) fn leave_output() -> anyhow::Result<()> {
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .context("/dev/null cannot be opened")?;
    leave_output_to(&null)
}

/// The same, and what is said from then on goes to `file`.
///
/// # Errors
/// The system refuses.
pub(crate) fn leave_output_to(file: &File) -> anyhow::Result<()> {
    rustix::stdio::dup2_stderr(file).context("Standard error cannot be given up")?;
    rustix::stdio::dup2_stdout(file).context("Standard output cannot be given up")?;
    Ok(())
}
