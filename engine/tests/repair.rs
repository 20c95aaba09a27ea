//! Repair: pools that do not open any more, and what is got back of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    model::State,
    pools::{assert_holds, filled, problems, write},
    world::{SHAPES, Scale, World, losses, volume},
};
use tessera_engine::{
    EngineError,
    api::RepairReport,
    pool::{CheckObserver, RepairMode, simulation},
};
use tessera_raid::Level;

struct Quiet;

impl CheckObserver for Quiet {
    fn progress(&self, _: &str, _: u64, _: u64) {}
}

fn repair(world: &World, mode: RepairMode) -> RepairReport {
    let open = |read_only| world.array(read_only).map_err(EngineError::from);
    simulation::repair(&open, world.options(), mode, &Quiet).unwrap()
}

/// A closed pool with a volume, several checkpoints and full map segments.
fn closed(level: Level) -> (World, State, State) {
    let (_, width) = SHAPES.into_iter().find(|shape| shape.0 == level).unwrap();
    let world = World::create(level, width, Scale::TINY, 13);
    let pool = world.open().unwrap();
    let mut state = filled(&pool, "a", 600 << 10);
    for seed in 10..22 {
        write(&pool, &mut state, "a", seed * 8192, seed, 10_000);
        pool.checkpoint().unwrap();
    }
    let older = state.clone();
    write(&pool, &mut state, "a", 0, 30, 5000);
    pool.close().unwrap();
    (world, older, state)
}

/// Where pages lie on members that begin like this; each copy of a page.
fn pages_like(world: &World, magic: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let from = world.slots_offset;
    let length = usize::try_from(world.device_bytes - from).unwrap();
    let mut found = Vec::new();
    for path in &world.paths {
        let bytes = world.sim.peek(path, from, length);
        let blocks = (from..).step_by(4096).zip(bytes.chunks(4096));
        let like = blocks.filter(|(_, block)| block.starts_with(magic));
        found.extend(like.map(|(at, block)| (at, block.to_vec())));
    }
    found
}

fn roots(world: &World) -> Vec<(u64, Vec<u8>)> {
    let mut roots = pages_like(world, b"TSRROOT1");
    roots.sort_by_key(|(_, page)| u64::from_le_bytes(page[32..40].try_into().unwrap()));
    roots
}

/// Where the page that a pointer in a root page names lies.
fn named_by(world: &World, root: &[u8], at: usize) -> u64 {
    let segment = u32::from_le_bytes(root[at..at + 4].try_into().unwrap());
    let mut position = [0; 8];
    position[..3].copy_from_slice(&root[at + 4..at + 7]);
    world.slot_offset(segment) + u64::from_le_bytes(position)
}

/// Destroys a row of blocks, one of each member: what redundancy there is for
/// any one of them is among the others.
fn destroy(world: &World, at: u64) {
    for path in &world.paths {
        world.sim.poke(path, at, &[0xee; 4096]);
    }
}

#[test]
fn a_healthy_pool_is_only_verified() {
    for (level, _) in SHAPES {
        let (world, _, state) = closed(level);
        let writes = world.writes();
        let plan = repair(&world, RepairMode::Plan);
        assert_eq!(plan.actions.len(), 1, "{level}: {plan:?}");
        assert_eq!(plan.problems, Vec::<String>::new());
        assert_eq!(world.writes(), writes);
        assert_eq!(repair(&world, RepairMode::Apply).repaired, 0);
        assert_holds(&world.open().unwrap(), &state, "afterwards");
    }
}

#[test]
fn what_a_copy_verifies_of_is_mended() {
    for (level, width) in SHAPES {
        if losses(level) == 0 {
            continue;
        }
        let (world, _, state) = closed(level);
        world.sim.poke(&world.paths[width - 1], 200, &[1; 9]);
        for block in 0..4 {
            let at = world.slot_offset(0) + block * 4096;
            world.sim.poke(&world.paths[0], at, &[2; 4096]);
        }
        let plan = repair(&world, RepairMode::Plan);
        assert!(plan.actions.len() >= 2, "{level}: {plan:?}");
        let done = repair(&world, RepairMode::Apply);
        assert!(done.applied && done.repaired >= 4, "{level}: {done:?}");
        assert_eq!(done.problems, Vec::<String>::new());
        assert_eq!(problems(&world), Vec::<String>::new(), "{level}");
        assert_holds(&world.open().unwrap(), &state, "afterwards");
    }
}

#[test]
fn a_lost_segment_table_is_made_anew() {
    let (world, _, state) = closed(Level::Single);
    let root = roots(&world).pop().unwrap().1;
    destroy(&world, named_by(&world, &root, 104 + 16));
    assert!(world.open().is_err());
    let writes = world.writes();
    let plan = repair(&world, RepairMode::Plan);
    assert!(plan.actions[0].contains("segment table"), "{plan:?}");
    assert!(!plan.applied);
    assert_eq!(world.writes(), writes, "a plan writes nothing");
    let done = repair(&world, RepairMode::Apply);
    assert!(done.applied, "{done:?}");
    let pool = world.open().unwrap();
    assert_holds(&pool, &state, "with a new segment table");
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn a_lost_catalogue_is_made_anew() {
    let (world, _, state) = closed(Level::Single);
    let root = roots(&world).pop().unwrap().1;
    destroy(&world, named_by(&world, &root, 56 + 16));
    assert!(world.open().is_err());
    let done = repair(&world, RepairMode::Apply);
    assert!(done.applied, "{done:?}");
    let pool = world.open().unwrap();
    assert_eq!(pool.names(), ["a"]);
    // Its record may be an older one, but it is the volume's own.
    let found = common::model::read_all(&pool, &pool.names(), "salvaged");
    assert_eq!(found["a"].len(), state["a"].len());
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn without_the_newest_root_an_older_one_is_used_at_every_level() {
    for (level, _) in SHAPES {
        let (world, older, _) = closed(level);
        destroy(&world, roots(&world).pop().unwrap().0);
        assert!(world.open().is_err(), "{level}");
        let writes = world.writes();
        let plan = repair(&world, RepairMode::Plan);
        assert!(plan.problems[0].contains("root page is lost"), "{plan:?}");
        assert!(
            plan.actions[0].contains("Use the root of checkpoint"),
            "{level}: {plan:?}"
        );
        assert_eq!(world.writes(), writes, "{level}: a plan writes nothing");
        let done = repair(&world, RepairMode::Apply);
        assert!(done.applied, "{level}: {done:?}");
        let pool = world.open().unwrap();
        assert_holds(&pool, &older, "as of the checkpoint before");
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{level}");
    }
}

#[test]
fn an_older_root_is_found_without_the_members_that_may_be_missing() {
    for (level, width) in SHAPES {
        for missing in 0..losses(level) {
            let (world, older, _) = closed(level);
            destroy(&world, roots(&world).pop().unwrap().0);
            // At RAID 10 no two of them mirror each other.
            for member in 0..=missing {
                let gone = (2 * member) % width;
                world.sim.remove_device(&world.paths[gone]);
            }
            let done = repair(&world, RepairMode::Apply);
            assert!(done.applied, "{level} without {missing}: {done:?}");
            assert_holds(&world.open().unwrap(), &older, "degraded");
        }
    }
}

/// Repairs without any root, nor these pages.
fn rootless(world: &World, lost: &[(u64, Vec<u8>)]) -> RepairReport {
    for (at, _) in roots(world).iter().chain(lost) {
        destroy(world, *at);
    }
    assert!(world.open().is_err());
    let done = repair(world, RepairMode::Apply);
    assert!(done.applied, "{done:?}");
    done
}

#[test]
fn without_any_root_everything_is_as_of_the_last_checkpoint() {
    for (level, _) in SHAPES {
        let (world, _, mut state) = closed(level);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("empty", 1 << 20)).unwrap();
        state.insert("empty".to_owned(), vec![0; 1 << 20].into());
        pool.create_snapshot("a", "before").unwrap();
        let before = state["a"].clone();
        state.insert("a@before".to_owned(), before);
        write(&pool, &mut state, "a", 4096, 40, 200 << 10);
        pool.close().unwrap();
        drop(pool);

        let done = rootless(&world, &[]);
        let told = |what: &str| done.actions.iter().any(|action| action.contains(what));
        assert!(told("map of volume a"), "{level}: {done:?}");
        assert!(told("map of snapshot a@before"), "{level}: {done:?}");
        let pool = world.open().unwrap();
        assert_holds(&pool, &state, "without a root");
        pool.delete_snapshot("a", "before").unwrap();
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{level}");
    }
}

#[test]
fn without_any_root_or_catalogue_volumes_come_back_from_leaves_of_their_maps() {
    let (world, ..) = closed(Level::Single);
    // Leaves of the catalogue begin with the record of the first volume.
    let mut first = 16_u64.to_le_bytes().to_vec();
    first.extend((600_u64 << 10).to_le_bytes());
    let catalogue = pages_like(&world, &first);
    assert!(catalogue.len() > 5, "{}", catalogue.len());
    let done = rootless(&world, &catalogue);
    assert!(
        done.actions
            .iter()
            .any(|action| action.contains("leaves of its map")),
        "{done:?}"
    );
    let pool = world.open().unwrap();
    assert_eq!(pool.names(), ["salvaged-16"]);
    let found = &common::model::read_all(&pool, &pool.names(), "salvaged")["salvaged-16"];
    // All of it is what some moment had: the first noise was never replaced
    // beyond its writes.
    let noise = common::noise(1, 300 << 10);
    assert_eq!(
        found[200 << 10..290 << 10],
        noise[(200 << 10) - 4096..][..90 << 10]
    );
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn without_any_root_a_snapshot_whose_map_is_lost_is_told_and_the_rest_is_kept() {
    let (world, _, mut state) = closed(Level::Single);
    let pool = world.open().unwrap();
    for name in ["lost", "kept"] {
        pool.create_snapshot("a", name).unwrap();
        let now = state["a"].clone();
        state.insert(format!("a@{name}"), now);
        // So that none of the maps has its first page in common with another.
        write(&pool, &mut state, "a", 4096, 40, 200 << 10);
        pool.checkpoint().unwrap();
    }
    pool.close().unwrap();
    drop(pool);
    // The snapshots have the ids 17 and 18, of a leaf that begins with 16.
    let (lost, kept) = (256, 512);
    let pages = pages_like(&world, &[]);
    let mut leaves = pages.iter().map(|(_, page)| page);
    let leaf = leaves.rfind(|page| page[kept + 128..].starts_with(b"kept\0"));
    let leaf = leaf.unwrap();
    assert!(leaf[lost + 128..].starts_with(b"lost\0"));
    let root = named_by(&world, leaf, lost + 24 + 16);
    let done = rootless(&world, &[(root, Vec::new())]);
    let said = "The map of snapshot a@lost is lost, and the snapshot with it";
    assert!(
        done.problems.iter().any(|problem| problem == said),
        "{done:?}"
    );
    state.remove("a@lost");
    let pool = world.open().unwrap();
    assert_holds(&pool, &state, "without a root and a snapshot");
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn a_repair_that_is_cut_short_can_be_done_again() {
    for operations in [1, 2, 3, 5, 8, 12, 20, 30, 45, 60] {
        let (world, older, _) = closed(Level::Single);
        destroy(&world, roots(&world).pop().unwrap().0);
        world.sim.cut_after(operations);
        let open = |read_only| world.array(read_only).map_err(EngineError::from);
        let _cut = simulation::repair(&open, world.options(), RepairMode::Apply, &Quiet);
        world.sim.cut_after(0);
        world.sim.power_on();
        if world.open().is_err() {
            let done = repair(&world, RepairMode::Apply);
            assert!(done.applied, "after {operations}: {done:?}");
        }
        let pool = world.open().unwrap();
        assert_holds(&pool, &older, &format!("cut after {operations}"));
    }
}
