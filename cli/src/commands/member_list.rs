//! `tessera member list`: who holds the pool's data, and in what state.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::{MemberState, MemberStatus};

use crate::{
    access::{self, Intent},
    args::Globals,
    output::{self, Align, Table},
};

/// List the members of a pool, spares and those being filled too
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera member list tank\n  \
    tessera member list tank --json | jq '.[] | select(.state != \"online\")'")]
pub(crate) struct List {
    /// The pool's directory
    dir: PathBuf,
    /// Show them as JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let answer = access::with_pool(&self.dir, Intent::Look, globals.io(), |pool| {
            Ok(pool.status()?)
        })?;
        let members = &answer.pool.members;
        if self.json {
            return output::print_json(members);
        }
        let mut text = table(members).render(0);
        for member in members {
            if let Some(reason) = &member.reason {
                text.push_str(&format!("Member {}: {reason}\n", member.index));
            }
        }
        output::print(&text)
    }
}

/// The members, a line each.
pub(crate) fn table(members: &[MemberStatus]) -> Table {
    let mut table = Table::new(&[
        ("#", Align::Right),
        ("STATE", Align::Left),
        ("READ ERRORS", Align::Right),
        ("WRITE ERRORS", Align::Right),
        ("REPAIRED", Align::Right),
        ("PATH", Align::Left),
    ])
    .colour_states(1);
    for member in members {
        let state = match member.state {
            MemberState::Online => "online".to_owned(),
            MemberState::Failed => "failed".to_owned(),
            MemberState::Missing => "missing".to_owned(),
            MemberState::Spare => "spare".to_owned(),
            MemberState::Rebuilding => filling("rebuilding", member),
            MemberState::Replacing => filling("replacing", member),
        };
        table.row(vec![
            member.index.to_string(),
            state,
            member.read_errors.to_string(),
            member.write_errors.to_string(),
            member.repaired.to_string(),
            member.path.clone(),
        ]);
    }
    table
}

fn filling(verb: &str, member: &MemberStatus) -> String {
    match member.of {
        Some(of) => format!("{verb} {of}"),
        None => verb.to_owned(),
    }
}
