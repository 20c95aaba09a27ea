//! Which of many numbered sequences a run does: what takes long can be done in
//! parts, resumed, and replayed.

/// Which of the sequences to do, by their numbers.
pub struct Chosen {
    from: usize,
    shard: usize,
    shards: usize,
    only: Option<usize>,
}

/// The variables that choose.
const NAMES: [&str; 3] = ["TESSERA_FROM", "TESSERA_SHARD", "TESSERA_SEQUENCE"];

impl Chosen {
    pub fn from_env() -> Self {
        let number = |name: &str| super::from_env(name).map(|n| usize::try_from(n).unwrap());
        let shard = std::env::var("TESSERA_SHARD").unwrap_or_else(|_| "0/1".to_owned());
        let (shard, shards) = shard.split_once('/').expect("a shard is like 1/4");
        Self {
            from: number("TESSERA_FROM").unwrap_or(0),
            shard: shard.parse().unwrap(),
            shards: shards.parse().unwrap(),
            only: number("TESSERA_SEQUENCE"),
        }
    }

    pub fn has(&self, number: usize) -> bool {
        match self.only {
            Some(only) => number == only,
            None => number >= self.from && number % self.shards == self.shard,
        }
    }

    /// Not all of them.
    pub fn is_part() -> bool {
        NAMES.iter().any(|name| std::env::var_os(name).is_some())
    }
}
