//! Naming a member: by its index or by its path.

use std::path::{Path, PathBuf};

use tessera_engine::api::MemberStatus;

use crate::failure::{Failure, Kind};

/// The index of the member that `named` means. A number is an index; anything
/// else, or a number with a slash before it, is a path.
pub(crate) fn choose(members: &[MemberStatus], named: &str) -> Result<u32, Failure> {
    if let Ok(index) = named.parse::<u32>() {
        return match members.iter().any(|member| member.index == index) {
            true => Ok(index),
            false => Err(Failure::new(
                Kind::NotFound,
                format!("The pool has no member {index}; see 'tessera member list'"),
            )),
        };
    }
    let wanted = canonical(Path::new(named));
    members
        .iter()
        .find(|member| canonical(Path::new(&member.path)) == wanted)
        .map(|member| member.index)
        .ok_or_else(|| {
            Failure::new(
                Kind::NotFound,
                format!("{named} is no member of the pool; see 'tessera member list'"),
            )
        })
}

/// The path for comparison, also where nothing is there any more.
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize()
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.to_owned())
}

/// A path as another process will understand it.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(
            Kind::InvalidArgument,
            format!("{} is no path: {error}", path.display()),
        )
    })
}
