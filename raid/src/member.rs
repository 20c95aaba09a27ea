//! One member: opening it and reading what it says about itself.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    Kind, Level, MemberIndex, RaidError,
    device::{AlignedBuf, Backend, Deadline, DeviceFacts, DeviceHandle, Io, IoOp, OpenMode},
    superblock::{
        Absence, SUPERBLOCK_AREA_BYTES, SUPERBLOCK_BYTES, Superblock, copy_offsets, decode,
    },
};

/// Open devices that are closed again unless somebody takes them over.
pub(crate) struct Devices {
    backend: Arc<dyn Backend>,
    open: Vec<DeviceHandle>,
}

impl Devices {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            open: Vec::new(),
        }
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<(DeviceHandle, DeviceFacts)> {
        let device = self.backend.open(path, mode)?;
        self.open.push(device);
        Ok((device, self.backend.facts(device)))
    }

    pub(crate) fn close(&mut self, device: DeviceHandle) {
        self.open.retain(|open| *open != device);
        self.backend.close(device);
    }

    /// The devices stay open; closing them is up to the caller.
    pub(crate) fn keep(mut self) {
        self.open.clear();
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for device in self.open.drain(..) {
            self.backend.close(device);
        }
    }
}

/// A member's file or device, open.
#[derive(Debug, Clone)]
pub(crate) struct OpenMember {
    pub(crate) path: PathBuf,
    pub(crate) device: DeviceHandle,
    pub(crate) facts: DeviceFacts,
}

/// Opens the members that are there. Those that are not are left out; every
/// other difficulty refuses the whole, because a pool must not be degraded by
/// a lock or a permission.
pub(crate) fn open_members(
    devices: &mut Devices,
    paths: &[PathBuf],
    mode: OpenMode,
    must_exist: bool,
) -> Result<Vec<OpenMember>, RaidError> {
    // The witness has no path for a member that it never saw.
    let known = || paths.iter().filter(|path| !path.as_os_str().is_empty());
    refuse_same_files(known())?;
    let mut opened: Vec<OpenMember> = Vec::with_capacity(paths.len());
    for path in known() {
        let (device, facts) = match devices.open(path, mode) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let message = format!(
                    "{} is in use by another process, which holds its lock",
                    path.display()
                );
                return Err(RaidError::new(Kind::Locked, message));
            }
            Err(error) if is_absence(&error) && !must_exist => {
                tracing::warn!(path = %path.display(), %error, "member not found");
                continue;
            }
            Err(error) => {
                return Err(RaidError::io(
                    format!("Cannot open {}", path.display()),
                    error,
                ));
            }
        };
        if let Some(twin) = opened
            .iter()
            .find(|other| other.facts.identity == facts.identity)
        {
            return Err(same_file(&twin.path, path));
        }
        opened.push(OpenMember {
            path: path.clone(),
            device,
            facts,
        });
    }
    Ok(opened)
}

/// Finds a file given twice before its lock is met a second time.
fn refuse_same_files<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<(), RaidError> {
    let mut by_path: HashMap<&Path, &Path> = HashMap::new();
    let mut by_inode: HashMap<(u64, u64), &Path> = HashMap::new();
    for path in paths {
        if let Some(twin) = by_path.insert(path, path) {
            return Err(same_file(twin, path));
        }
        // Simulated devices are in no file system: they have their paths.
        if let Some(inode) = inode_of(path)
            && let Some(twin) = by_inode.insert(inode, path)
        {
            return Err(same_file(twin, path));
        }
    }
    Ok(())
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let facts = std::fs::metadata(path).ok()?;
    if facts.file_type().is_block_device() {
        return Some((u64::MAX, facts.rdev()));
    }
    Some((facts.dev(), facts.ino()))
}

fn same_file(one: &Path, other: &Path) -> RaidError {
    let message = if one == other {
        format!("{} is given twice", one.display())
    } else {
        format!(
            "{} and {} are the same file or device",
            one.display(),
            other.display()
        )
    };
    RaidError::new(Kind::DuplicateMember, message)
}

/// Whether an error says that the device is not there (any more).
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENXIO | libc::EIO)
    )
}

/// What is in one of a member's four superblock places.
#[derive(Debug)]
pub(crate) enum Copy {
    Whole(Box<Superblock>),
    Bad(Absence),
    Unreadable(io::Error),
}

impl Copy {
    pub(crate) fn superblock(&self) -> Option<&Superblock> {
        match self {
            Copy::Whole(superblock) => Some(superblock),
            _ => None,
        }
    }
}

/// A member's superblock copies: A, B, A', B'.
#[derive(Debug)]
pub(crate) struct Copies(pub(crate) [Copy; 4]);

impl Copies {
    /// The newest whole superblock.
    pub(crate) fn newest(&self) -> Option<&Superblock> {
        self.0
            .iter()
            .filter_map(Copy::superblock)
            .max_by_key(|copy| copy.record.sequence)
    }

    /// Which of the two places of superblock `wanted` hold it.
    pub(crate) fn holds(&self, wanted: &Superblock) -> [bool; 2] {
        let slot = usize::from(wanted.record.sequence % 2 == 1);
        [slot, slot + 2].map(|place| self.0[place].superblock() == Some(wanted))
    }
}

/// Reads a member's superblock copies. Those at the end lie where the front
/// says the member ends, or at its present end if the front is lost.
pub(crate) fn read_copies(
    backend: &dyn Backend,
    device: DeviceHandle,
    facts: &DeviceFacts,
    writable: bool,
    patience: Duration,
) -> Copies {
    let read = |offset| read_at(backend, device, offset, SUPERBLOCK_BYTES, patience);
    read_copies_by(&read, facts, writable)
}

/// The same, each copy read by `read` from its offset.
pub(crate) fn read_copies_by(
    read: &dyn Fn(u64) -> io::Result<AlignedBuf>,
    facts: &DeviceFacts,
    writable: bool,
) -> Copies {
    let pair = |start: Option<u64>| {
        [0, SUPERBLOCK_BYTES].map(|offset| {
            let offset = start.map(|start| start + offset);
            match offset.filter(|offset| offset + SUPERBLOCK_BYTES <= facts.size_bytes) {
                None => Copy::Bad(Absence::NoMagic),
                Some(offset) => match read(offset) {
                    Err(error) => Copy::Unreadable(error),
                    Ok(bytes) => match decode(&bytes, writable) {
                        Ok(superblock) => Copy::Whole(Box::new(superblock)),
                        Err(absence) => Copy::Bad(absence),
                    },
                },
            }
        })
    };
    let [a, b] = pair(Some(0));
    let newest = [&a, &b]
        .into_iter()
        .filter_map(|copy| copy.superblock())
        .max_by_key(|copy| copy.record.sequence);
    let size = newest.map_or(facts.size_bytes, |superblock| superblock.own().size_bytes);
    let [c, d] = pair(size.checked_sub(SUPERBLOCK_AREA_BYTES));
    Copies([a, b, c, d])
}

/// Reads a range of a device; `TimedOut` where it does not answer in time.
pub(crate) fn read_at(
    backend: &dyn Backend,
    device: DeviceHandle,
    offset: u64,
    length: u64,
    patience: Duration,
) -> io::Result<AlignedBuf> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let op = IoOp::Read(AlignedBuf::zeroed(length));
    let mut batch = [Io {
        device,
        offset,
        op,
        outcome: None,
    }];
    backend.run(&mut batch, &Deadline::after(patience));
    let [Io { op, outcome, .. }] = batch;
    outcome.unwrap_or(Ok(()))?;
    match op {
        IoOp::Read(buffer) => Ok(buffer),
        _ => unreachable!("a read stays a read"),
    }
}

/// The member's newest superblock, `None` if the device does not answer, or
/// why it is no member.
pub(crate) fn identify<'a>(
    path: &Path,
    copies: &'a Copies,
) -> Result<Option<&'a Superblock>, RaidError> {
    // A newer program may have written only one of them yet.
    for copy in &copies.0 {
        if let Copy::Bad(Absence::Newer { readable }) = copy {
            let hint = if *readable {
                "; it can be opened read-only"
            } else {
                ""
            };
            let message = format!(
                "{} has a format that is newer than this program understands{hint}",
                path.display()
            );
            return Err(RaidError::new(Kind::NewerFormat, message));
        }
    }
    // A pool must not be degraded because a member takes its time.
    if copies.0.iter().any(
        |copy| matches!(copy, Copy::Unreadable(error) if error.kind() == io::ErrorKind::TimedOut),
    ) {
        return Err(stalled(path));
    }
    if let Some(newest) = copies.newest() {
        return Ok(Some(newest));
    }
    if copies
        .0
        .iter()
        .any(|copy| matches!(copy, Copy::Unreadable(_)))
    {
        tracing::warn!(path = %path.display(), "no superblock of the member can be read");
        return Ok(None);
    }
    let damage = copies.0.iter().find_map(|copy| match copy {
        Copy::Bad(Absence::Damaged(reason)) => Some(*reason),
        _ => None,
    });
    let message = match damage {
        Some(reason) => format!(
            "{} has no whole superblock ({reason}); leave it out to open the pool without it",
            path.display()
        ),
        None => format!(
            "{} is not a member of a pool: it has no superblock",
            path.display()
        ),
    };
    Err(RaidError::new(Kind::NotAMember, message))
}

/// A device that does not answer in time.
pub(crate) fn stalled(path: &Path) -> RaidError {
    let message = format!(
        "{} does not answer; try again when it does, or leave it out",
        path.display()
    );
    RaidError::new(Kind::Stalled, message)
}

/// What a member's superblock says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// The pool it belongs to.
    pub pool: uuid::Uuid,
    /// Its identity.
    pub member: uuid::Uuid,
    /// Its position.
    pub index: MemberIndex,
    /// How many members the pool has, without spares and targets.
    pub member_count: usize,
    /// The pool's level.
    pub level: Level,
    /// The pool's sequence as this member knows it.
    pub sequence: u64,
}

/// Reads a member's superblock, for `import`. Writes nothing.
pub fn describe_member(
    backend: &Arc<dyn Backend>,
    path: &Path,
) -> Result<MemberDescription, RaidError> {
    let mode = OpenMode {
        writable: false,
        lock_patience: std::time::Duration::ZERO,
    };
    let mut devices = Devices::new(Arc::clone(backend));
    let members = open_members(&mut devices, &[path.to_owned()], mode, true)?;
    let member = &members[0];
    let patience = crate::OpenOptions::default().answer_patience;
    let copies = read_copies(
        backend.as_ref(),
        member.device,
        &member.facts,
        false,
        patience,
    );
    let Some(superblock) = identify(path, &copies)? else {
        return Err(RaidError::new(
            Kind::Io,
            format!("No superblock of {} can be read", path.display()),
        ));
    };
    Ok(MemberDescription {
        pool: superblock.record.pool,
        member: superblock.own().uuid,
        index: superblock.member,
        member_count: superblock.record.layout_members().len(),
        level: superblock.record.layout().level,
        sequence: superblock.record.sequence,
    })
}

/// Refuses a file or device that holds something already.
pub(crate) fn refuse_used(
    backend: &dyn Backend,
    member: &OpenMember,
    patience: Duration,
) -> Result<(), RaidError> {
    /// Past the superblocks of btrfs (64 KiB) and everything before it.
    const FRONT_BYTES: u64 = 72 << 10;
    let path = member.path.display();
    let size = member.facts.size_bytes;
    let copies = read_copies(backend, member.device, &member.facts, false, patience);
    if let Some(newest) = copies.newest() {
        let pool = newest.record.pool;
        let message =
            format!("{path} is a member of pool {pool} already; use --force to overwrite it");
        return Err(RaidError::new(Kind::AlreadyUsed, message));
    }
    let unreadable = |error: io::Error| {
        if error.kind() == io::ErrorKind::TimedOut {
            return stalled(&member.path);
        }
        RaidError::io(
            format!("Cannot read {path} to see whether it is used"),
            error,
        )
    };
    let front =
        read_at(backend, member.device, 0, size.min(FRONT_BYTES), patience).map_err(unreadable)?;
    let end_length = size.min(SUPERBLOCK_AREA_BYTES);
    let end_start = size - end_length;
    let end = read_at(backend, member.device, end_start, end_length, patience);
    let end = end.map_err(unreadable)?;
    let signature = signature(&front);
    if signature.is_none() && front.iter().chain(end.iter()).all(|byte| *byte == 0) {
        return Ok(());
    }
    let what = signature.unwrap_or("data that is not zero");
    let message = format!("{path} holds {what}; use --force to overwrite it");
    Err(RaidError::new(Kind::AlreadyUsed, message))
}

/// Names what a device starts with, where that is well known.
fn signature(front: &[u8]) -> Option<&'static str> {
    const KNOWN: [(usize, &[u8], &str); 12] = [
        (0, b"TESSERA\x1a", "a damaged superblock of a pool"),
        (0, b"XFSB", "an XFS file system"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"KDMV", "a VMDK image"),
        (512, b"EFI PART", "a partition table (GPT)"),
        (512, b"LABELONE", "an LVM physical volume"),
        (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
        (4086, b"SWAPSPACE2", "swap space"),
        (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member (md)"),
        (0x10040, b"_BHRfS_M", "a btrfs file system"),
        (510, b"\x55\xaa", "a partition table or boot sector"),
    ];
    KNOWN
        .iter()
        .find(|(at, magic, _)| front.get(*at..at + magic.len()) == Some(*magic))
        .map(|(_, _, name)| *name)
}

/// The two places of superblock `sequence` on a member.
pub(crate) fn places(sequence: u64, size_bytes: u64) -> [u64; 2] {
    copy_offsets(sequence, size_bytes)
}
