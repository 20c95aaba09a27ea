//! Making a pool, or importing one from its members alone: nothing is left
//! behind by a refusal.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tessera_raid::{
    Array, CreateSpec, Level, Limits, OpenOptions, PoolFile, Sizes, device::Backend,
};

use super::{EngineOptions, IoChoice, LOCK_PATIENCE, MIN_MEMORY_BYTES, Pool, engine::Engine, open};
use crate::{
    api::{PoolSpec, PoolStatus},
    error::{EngineError, ErrorKind},
};

impl Pool {
    /// Creates a pool. `DIR` is made if it is missing; members are made if the
    /// spec says so. Nothing is left behind by a refusal.
    ///
    /// # Errors
    /// One sentence about the first thing that is wrong.
    pub fn create(
        directory: &Path,
        spec: &PoolSpec,
        io: IoChoice,
    ) -> Result<PoolStatus, EngineError> {
        let backend = io.backend()?;
        let file = PoolFile::new(directory);
        if file.path().exists() {
            let message = format!("There is already a pool in {}", directory.display());
            return Err(EngineError::new(ErrorKind::AlreadyExists, message));
        }
        let mut made = Made::default();
        made.directory(directory)?;
        if let Some(bytes) = spec.create_files_bytes {
            for member in &spec.members {
                backend.create_file(member, bytes).map_err(|error| {
                    let message = format!("Cannot create member {}: {error}", member.display());
                    EngineError::new(ErrorKind::Io, message)
                })?;
                made.files.push(member.clone());
            }
        }
        let members = absolute(&spec.members)?;
        let sizes = sizes_for(backend.as_ref(), spec, &members)?;
        let create = CreateSpec {
            level: spec.level,
            stripe_unit_bytes: spec.stripe_unit_bytes,
            members,
            force: spec.force,
            sizes,
            stall_limit: Limits::default().stall,
        };
        let options = EngineOptions::new(MIN_MEMORY_BYTES);
        let record = open::new_record(&options.epochs).encode();
        made.files.push(file.path());
        let array = Array::create(Arc::clone(&backend), &create, &record, Box::new(file))?;
        let engine = Engine::open(array, &options)?;
        let status = engine.status();
        engine.shut_down()?;
        made.keep();
        Ok(status)
    }

    /// Makes `DIR/pool.toml` anew from members alone, in any order, by any path.
    ///
    /// # Errors
    /// One sentence; an existing `pool.toml` is obeyed, `force` or not.
    pub fn import(
        directory: &Path,
        members: &[PathBuf],
        force: bool,
        io: IoChoice,
    ) -> Result<PoolStatus, EngineError> {
        let backend = io.backend()?;
        if members.is_empty() {
            return Err(EngineError::new(
                ErrorKind::InvalidArgument,
                "Name at least one member",
            ));
        }
        let mut made = Made::default();
        made.directory(directory)?;
        let file = PoolFile::new(directory);
        if !file.path().exists() {
            made.files.push(file.path());
        }
        let options = OpenOptions {
            force,
            lock_patience: LOCK_PATIENCE,
            ..OpenOptions::default()
        };
        let array = Array::open(backend, &absolute(members)?, Box::new(file), &options)?;
        let engine_options = EngineOptions::new(MIN_MEMORY_BYTES);
        let engine = Engine::open(array, &engine_options)?;
        let status = engine.status();
        engine.shut_down()?;
        made.keep();
        Ok(status)
    }
}

/// Segment and journal sizes for members as they are: enough segments for
/// reserves to be small, a journal that holds many stripes.
fn sizes_for(
    backend: &dyn Backend,
    spec: &PoolSpec,
    members: &[PathBuf],
) -> Result<Sizes, EngineError> {
    let data_units = |count: u64| match spec.level {
        Level::Single | Level::Raid1 => 1,
        Level::Raid0 => count,
        Level::Raid5 => count.saturating_sub(1),
        Level::Raid6 => count.saturating_sub(2),
        Level::Raid10 => count / 2,
    };
    let unit = spec.stripe_unit_bytes;
    if !unit.is_power_of_two() || !(4 << 10..=1 << 20).contains(&unit) {
        let message = format!("A stripe unit of {unit} bytes is no power of two between 4K and 1M");
        return Err(EngineError::new(ErrorKind::InvalidArgument, message));
    }
    let units = data_units(members.len() as u64).max(1);
    let stripe = u64::from(spec.stripe_unit_bytes) * units;
    if stripe > STRIPE_BYTES_MAX {
        let message = format!(
            "A stripe of {units} units of {} bytes is too large: use a smaller stripe unit",
            spec.stripe_unit_bytes
        );
        return Err(EngineError::new(ErrorKind::InvalidArgument, message));
    }
    let smallest = match spec.create_files_bytes {
        Some(bytes) => bytes,
        None => smallest_member(backend, members)?,
    };
    let capacity = smallest.saturating_mul(units);
    let target = (capacity / 512).clamp(1 << 20, 8 << 20).max(4 * stripe);
    let journal = (smallest / 64).clamp(4 << 20, 256 << 20).max(32 * stripe);
    Ok(Sizes {
        segment_data_bytes_target: u32::try_from(target).expect("at most 16 MiB"),
        journal_bytes: Some(journal.next_multiple_of(4096)),
    })
}

/// Four stripes must fit a segment of 16 MiB.
const STRIPE_BYTES_MAX: u64 = 4 << 20;

fn smallest_member(backend: &dyn Backend, members: &[PathBuf]) -> Result<u64, EngineError> {
    let size = |path: &PathBuf| {
        let mode = tessera_raid::device::OpenMode {
            writable: false,
            lock_patience: Duration::ZERO,
        };
        let handle = backend.open(path, mode).map_err(|error| {
            let message = format!("Cannot open member {}: {error}", path.display());
            EngineError::new(ErrorKind::Io, message)
        })?;
        let size = backend.facts(handle).size_bytes;
        backend.close(handle);
        Ok(size)
    };
    let sizes = members
        .iter()
        .map(size)
        .collect::<Result<Vec<u64>, EngineError>>()?;
    Ok(sizes.into_iter().min().unwrap_or(0))
}

fn absolute(members: &[PathBuf]) -> Result<Vec<PathBuf>, EngineError> {
    let one = |path: &PathBuf| {
        std::path::absolute(path).map_err(|error| {
            let message = format!("The path {} cannot be used", path.display());
            EngineError::new(ErrorKind::InvalidArgument, message).caused_by(error)
        })
    };
    members.iter().map(one).collect()
}

/// What a failed operation has to take back.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    directory: Option<PathBuf>,
}

impl Made {
    fn directory(&mut self, path: &Path) -> Result<(), EngineError> {
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path).map_err(|error| {
            let message = format!("Cannot make the directory {}: {error}", path.display());
            EngineError::new(ErrorKind::Io, message)
        })?;
        self.directory = Some(path.to_owned());
        Ok(())
    }

    fn keep(mut self) {
        self.files.clear();
        self.directory = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.files {
            let _gone_or_never_made = fs::remove_file(file);
        }
        if let Some(directory) = &self.directory {
            let _not_empty = fs::remove_dir(directory);
        }
    }
}
