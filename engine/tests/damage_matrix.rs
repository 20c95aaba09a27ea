//! Action x place x level, on real files: what a member holds is flipped,
//! zeroed, cut off, exchanged, replaced by what was there before, or deleted.
//!
//! Where the level has redundancy, everything is read right afterwards, or the
//! open says in one sentence which file to leave out, and without that file
//! everything is read right. Without redundancy every answer is right or an
//! error.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use tessera_engine::{
    api::{Compression, DedupMode, PoolSpec, VolumeSpec},
    disk::{Disk, DiskError, Operation, Request},
    pool::{IoChoice, Pool, PoolOptions},
};
use tessera_raid::{
    Array, Column, Level, OpenOptions, PoolFile, device::ThreadBackend, layout::Role,
};

const MEMBER_BYTES: u64 = 24 << 20;
const UNIT: u32 = 16 << 10;
const BLOCK: usize = 4096;
const VOLUME_BYTES: usize = 2 << 20;
/// Superblocks, at each end of a member.
const ENDS: u64 = 16 << 10;

const SHAPES: [(Level, usize); 6] = [
    (Level::Single, 1),
    (Level::Raid0, 3),
    (Level::Raid1, 2),
    (Level::Raid5, 3),
    (Level::Raid6, 4),
    (Level::Raid10, 4),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Superblock,
    Journal,
    MapPage,
    Summary,
    Data,
    Parity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    FlipBits,
    Zero,
    Truncate,
    SwapBlocks,
    SwapMembers,
    OldCopy,
    Delete,
}

const ACTIONS: [Action; 7] = [
    Action::FlipBits,
    Action::Zero,
    Action::Truncate,
    Action::SwapBlocks,
    Action::SwapMembers,
    Action::OldCopy,
    Action::Delete,
];

/// The blocks of a member that are not zero.
type Image = BTreeMap<u64, Vec<u8>>;

struct Bench {
    _directory: tempfile::TempDir,
    pool: PathBuf,
    members: Vec<PathBuf>,
    witness: Vec<u8>,
    /// As a crash left them, and some time before.
    images: Vec<Image>,
    earlier: Vec<Image>,
    /// What the volume holds.
    contents: Vec<u8>,
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn image(path: &Path) -> Image {
    let bytes = fs::read(path).unwrap();
    let blocks = (0u64..).step_by(BLOCK).zip(bytes.chunks(BLOCK));
    blocks
        .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
        .map(|(at, block)| (at, block.to_vec()))
        .collect()
}

fn put_back(path: &Path, image: &Image) {
    let file = fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)
        .unwrap();
    file.set_len(MEMBER_BYTES).unwrap();
    for (at, block) in image {
        file.write_all_at(block, *at).unwrap();
    }
}

fn write(disk: &Arc<dyn Disk>, contents: &mut [u8], at: usize, data: &[u8]) {
    contents[at..at + data.len()].copy_from_slice(data);
    let offset = at as u64;
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
}

fn flush(disk: &Arc<dyn Disk>) {
    let (sender, receiver) = mpsc::channel();
    disk.flush(Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap(), Ok(()));
}

fn options() -> PoolOptions {
    PoolOptions {
        memory_bytes: 64 << 20,
        io: IoChoice::Threads,
        ..PoolOptions::default()
    }
}

impl Bench {
    fn new(level: Level, width: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = directory.path().join("pool");
        let members: Vec<PathBuf> = (0..width)
            .map(|n| pool.join(format!("disk{n}.img")))
            .collect();
        let spec = PoolSpec {
            level,
            stripe_unit_bytes: UNIT,
            members: members.clone(),
            create_files_bytes: Some(MEMBER_BYTES),
            force: false,
        };
        Pool::create(&pool, &spec, IoChoice::Threads).unwrap();
        let mut contents = vec![0; VOLUME_BYTES];
        let volume = VolumeSpec {
            name: "a".to_owned(),
            size_bytes: VOLUME_BYTES as u64,
            chunk_bytes: 4096,
            dedup: DedupMode::Inline,
            compression: Compression::Lz4,
        };
        {
            let open = Pool::open(&pool, &options()).unwrap();
            open.create_volume(&volume).unwrap();
            let disk = open.catalog().open("a").unwrap();
            write(&disk, &mut contents, 0, &noise(1, 1200 << 10));
            flush(&disk);
            drop(disk);
            open.close().unwrap();
        }
        let open = Pool::open(&pool, &options()).unwrap();
        let disk = open.catalog().open("a").unwrap();
        write(&disk, &mut contents, 64 << 10, &noise(2, 64 << 10));
        flush(&disk);
        let earlier = members.iter().map(|path| image(path)).collect();
        write(&disk, &mut contents, 128 << 10, &noise(3, 900 << 10));
        // What packs, and what is there already.
        write(&disk, &mut contents, 1400 << 10, &[7; 64 << 10]);
        let again = contents[..64 << 10].to_vec();
        write(&disk, &mut contents, 1500 << 10, &again);
        flush(&disk);
        let images = members.iter().map(|path| image(path)).collect();
        drop(disk);
        drop(open);
        let witness = fs::read(pool.join("pool.toml")).unwrap();
        Self {
            _directory: directory,
            pool,
            members,
            witness,
            images,
            earlier,
            contents,
        }
    }

    fn restore(&self) {
        for (path, image) in self.members.iter().zip(&self.images) {
            put_back(path, image);
        }
        fs::write(self.pool.join("pool.toml"), &self.witness).unwrap();
        let _was_not_there = fs::remove_dir_all(self.pool.join("index"));
    }

    /// The blocks of a member by what they hold.
    fn places(&self, member: usize) -> BTreeMap<Place, Vec<u64>> {
        self.restore();
        let witness = Box::new(PoolFile::new(&self.pool));
        let read_only = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        let backend = Arc::new(ThreadBackend::new());
        let array = Array::open(backend, &self.members, witness, &read_only).unwrap();
        let journal_end = ENDS + array.journal_bytes();
        let slots_offset = journal_end.next_multiple_of(1 << 20);
        let slot_bytes = u64::from(array.stripes_per_segment() * UNIT);
        let layout = array.current_layout().clone();
        drop(array);
        let chunks: Vec<&[u8]> = self.contents.chunks(BLOCK).collect();
        let mut places: BTreeMap<Place, Vec<u64>> = BTreeMap::new();
        for (at, block) in &self.images[member] {
            let place = if *at < ENDS || *at >= MEMBER_BYTES - ENDS {
                Place::Superblock
            } else if *at < journal_end {
                Place::Journal
            } else {
                let within = at.checked_sub(slots_offset).unwrap() % slot_bytes;
                let stripe = u32::try_from(within / u64::from(UNIT)).unwrap();
                let column = Column(u8::try_from(member).unwrap());
                match layout.role(stripe, column) {
                    Role::P | Role::Q => Place::Parity,
                    _ if block.starts_with(b"TSSUMRY1") => Place::Summary,
                    _ if chunks.contains(&block.as_slice()) => Place::Data,
                    _ => Place::MapPage,
                }
            };
            places.entry(place).or_default().push(*at);
        }
        places
    }

    /// Journal blocks without the newest batch of each epoch: as long as that
    /// can be read, it proves that the others were there (R15). When nothing is
    /// left of the only copy of the journal, nothing can tell that it held more.
    fn without_the_newest_batches(&self, member: usize, blocks: &[u64]) -> Vec<u64> {
        let image = &self.images[member];
        let mut newest: BTreeMap<&[u8], (u64, u64)> = BTreeMap::new();
        for at in blocks {
            let block = &image[at];
            if block.starts_with(b"TSRBATCH") {
                let number = u64::from_le_bytes(block[24..32].try_into().unwrap());
                let entry = newest.entry(&block[8..24]).or_insert((number, *at));
                *entry = (*entry).max((number, *at));
            }
        }
        let mut kept = false;
        let mut others = Vec::new();
        for at in blocks {
            if image[at].starts_with(b"TSRBATCH") {
                kept = newest.values().any(|(_, newest)| newest == at);
            }
            if !kept {
                others.push(*at);
            }
        }
        others
    }

    fn damage(&self, action: Action, victim: usize, blocks: &[u64]) {
        let path = &self.members[victim];
        let mut image = self.images[victim].clone();
        match action {
            Action::FlipBits => {
                for at in blocks {
                    image.get_mut(at).unwrap()[(*at as usize / BLOCK * 37) % BLOCK] ^= 0x20;
                }
            }
            Action::Zero => image.retain(|at, _| !blocks.contains(at)),
            Action::SwapBlocks => {
                for pair in blocks.chunks_exact(2) {
                    let one = image.remove(&pair[0]).unwrap();
                    let other = image.insert(pair[1], one).unwrap();
                    image.insert(pair[0], other);
                }
            }
            Action::OldCopy => {
                for at in blocks {
                    match self.earlier[victim].get(at) {
                        Some(old) => image.insert(*at, old.clone()),
                        None => image.remove(at),
                    };
                }
            }
            Action::Truncate => {
                let file = fs::File::options().write(true).open(path).unwrap();
                return file.set_len(blocks[0]).unwrap();
            }
            Action::SwapMembers => {
                let other = &self.members[(victim + 1) % self.members.len()];
                let aside = self.pool.join("aside");
                fs::rename(path, &aside).unwrap();
                fs::rename(other, path).unwrap();
                return fs::rename(&aside, other).unwrap();
            }
            Action::Delete => return fs::remove_file(path).unwrap(),
        }
        put_back(path, &image);
    }

    /// Opens and compares. `Err` with what was said when it does not open.
    fn look(&self, all_must_be_read: bool, context: &str) -> Result<u64, String> {
        let pool = Pool::open(&self.pool, &options()).map_err(|error| error.to_string())?;
        let Some(disk) = pool.catalog().open("a") else {
            panic!("{context}: the volume is gone");
        };
        let mut errors = 0;
        let mut block = vec![0; BLOCK];
        for (number, expected) in self.contents.chunks(BLOCK).enumerate() {
            let offset = (number * BLOCK) as u64;
            let mut batch = [Request::new(Operation::Read {
                offset,
                buffer: &mut block,
            })];
            disk.execute(&mut batch);
            match &batch[0].result {
                Ok(()) => assert!(block == expected, "{context}: a lie at {offset}"),
                Err(DiskError::Io(_)) if !all_must_be_read => errors += 1,
                Err(error) => panic!("{context}: {error} at {offset}"),
            }
        }
        Ok(errors)
    }
}

fn matrix(level: Level, width: usize) {
    let bench = Bench::new(level, width);
    let redundant = !matches!(level, Level::Single | Level::Raid0);
    let (mut cases, mut refused, mut errors) = (0, 0, 0);
    let victims = if redundant {
        vec![0, width - 1]
    } else {
        vec![0]
    };
    for victim in victims {
        for (place, mut blocks) in bench.places(victim) {
            if place == Place::Journal && !redundant {
                blocks = bench.without_the_newest_batches(victim, &blocks);
            }
            for action in ACTIONS {
                let whole = matches!(action, Action::SwapMembers | Action::Delete);
                if whole && (place != Place::Data || width == 1 && action == Action::SwapMembers) {
                    continue;
                }
                let context = format!("{level}: {action:?} of {place:?} on member {victim}");
                cases += 1;
                bench.restore();
                bench.damage(action, victim, &blocks);
                match bench.look(redundant || action == Action::SwapMembers, &context) {
                    Ok(found) => errors += found,
                    Err(said) => {
                        refused += 1;
                        assert!(!said.contains('\n') && said.len() > 20, "{context}: {said}");
                        if redundant {
                            let name = bench.members[victim].display().to_string();
                            assert!(said.contains(&name), "{context}: {said}");
                            let _may_be_gone = fs::remove_file(&bench.members[victim]);
                            bench.look(true, &context).unwrap();
                        }
                    }
                }
            }
        }
    }
    println!("{level}: {cases} cases, {refused} refused, {errors} blocks unreadable");
    assert!(cases > 15);
}

#[test]
fn damage_to_one_member_is_mended_or_named() {
    for (level, width) in SHAPES.into_iter().skip(2) {
        matrix(level, width);
    }
}

#[test]
fn damage_without_redundancy_is_never_passed_on() {
    for (level, width) in SHAPES.into_iter().take(2) {
        matrix(level, width);
    }
}
