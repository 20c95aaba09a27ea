//! "Did you mean": the name that a mistyped one comes closest to.

use crate::{
    access::Management,
    failure::{Failure, Kind},
};

/// Names less alike than this are no better than a guess (0 to 1).
const ALIKE: f64 = 0.7;

/// The candidate that `name` may have been meant to be.
pub(crate) fn closest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (likeness(name, candidate), candidate))
        .filter(|(likeness, candidate)| *likeness >= ALIKE && *candidate != name)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// How alike two names are, from 0 to 1. The measure for names is too strict
/// with short ones, in which one slip of the fingers is a third of the name.
fn likeness(name: &str, candidate: &str) -> f64 {
    let alike = strsim::jaro_winkler(name, candidate);
    if name.chars().count() > 1 && strsim::osa_distance(name, candidate) == 1 {
        alike.max(ALIKE)
    } else {
        alike
    }
}

/// Adds to a failure to find the volume `name` which one may have been meant.
pub(crate) fn volume<T>(
    pool: &dyn Management,
    name: &str,
    result: Result<T, Failure>,
) -> Result<T, Failure> {
    result.map_err(|failure| {
        if failure.kind != Kind::NotFound {
            return failure;
        }
        // The failure itself is worth more than a hint.
        let Ok(volumes) = pool.volumes() else {
            return failure;
        };
        // It is there: what was not found is something of it.
        if volumes.iter().any(|volume| volume.name == name) {
            return failure;
        }
        match closest(name, volumes.iter().map(|volume| volume.name.as_str())) {
            Some(meant) => Failure::new(
                failure.kind,
                format!("{}; did you mean {meant}?", failure.message),
            ),
            None => failure,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_is_alike_is_suggested() {
        let names = ["vm1", "web", "database"];
        assert_eq!(closest("vm", names), Some("vm1"));
        assert_eq!(closest("databse", names), Some("database"));
        assert_eq!(closest("wbe", names), Some("web"));
        assert_eq!(closest("WEB-SERVER", names), None);
        assert_eq!(closest("zzz", names), None);
        assert_eq!(closest("x", []), None);
    }
}
