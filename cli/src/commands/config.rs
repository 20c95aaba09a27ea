//! `tessera config`: the configuration file of `tessera serve`.

use std::path::PathBuf;

use clap::Args;

use super::serve::settings::{Endpoint, Settings};
use crate::{output, size};

/// A configuration that shows every key.
pub(crate) const EXAMPLE: &str = include_str!("../../../docs/install/tessera.toml");

/// Check a configuration without serving anything
///
/// Reads the file as 'tessera serve --config' does and shows what would hold,
/// defaults included. An unknown key, a wrong value and an address that cannot
/// be one are named with their line. Certificates and keys are read and have to
/// be good. Nothing else is opened, so that a file can be checked while the
/// server it is for runs; SIGHUP then takes it over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera config check tank.toml\n  \
    tessera config check tank.toml && systemctl reload tessera@tank\n  \
    tessera config check tank.toml --json | jq .endpoints")]
pub(crate) struct Check {
    /// The configuration
    file: PathBuf,
    /// Show what would hold as JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let settings = Settings::of_file(&self.file)?;
        settings.load_tls()?;
        if self.json {
            output::print_json(&settings)
        } else {
            output::print(&render(&settings)?)
        }
    }
}

fn render(settings: &Settings) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{:<14}{value}\n", format!("{name}:")));
    };
    line("Pool", settings.pool.display().to_string());
    let access = if settings.read_only {
        "read-only"
    } else {
        "read and write"
    };
    line("Access", access.to_owned());
    line("Memory", size::format(settings.memory_bytes));
    for endpoint in settings.endpoints_or_default()? {
        line(
            "Listens on",
            match endpoint {
                Endpoint::Socket(path) => path.display().to_string(),
                Endpoint::Listen(address) => address,
            },
        );
    }
    line(
        "Connections",
        format!("at most {}", settings.max_connections),
    );
    if let Some(tls) = &settings.tls {
        let who = match (tls.required, &tls.client_authority) {
            (true, None) => "required",
            (true, Some(_)) => "required, clients show certificates",
            (false, None) => "for those that ask for it",
            (false, Some(_)) => "for those that ask for it, with certificates of their own",
        };
        line("TLS", who.to_owned());
    } else {
        line("TLS", "off".to_owned());
    }
    if let Some(mount) = &settings.mount {
        let others = if mount.allow_other {
            ", for other users too"
        } else {
            ""
        };
        line("Mounted on", format!("{}{others}", mount.path.display()));
    }
    line(
        "Drain",
        format!("at most {} seconds", settings.drain_timeout_seconds),
    );
    Ok(text)
}

/// Print a configuration that shows every key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera config example > tank.toml")]
pub(crate) struct Example {}

impl Example {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        output::print(EXAMPLE)
    }
}
