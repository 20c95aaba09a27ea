//! The index in RocksDB.
//!
//! There is no write-ahead log and no use of memtables: entries come as sorted
//! files made outside and ingested whole, with the stamp among them, so a file
//! is in the database with its stamp or not at all. Direct I/O keeps the index
//! out of the page cache, where it would compete with nothing but itself;
//! filters and index blocks live in the block cache, inside the budget.
//!
//! Anything wrong with the directory, from damage to another pool's stamp,
//! leads to an empty database (R8): it is a hint and is rebuilt.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, CompactionDecision, DB,
    DBCompactionStyle, DBCompressionType, Direction, Env, ErrorKind, IngestExternalFileOptions,
    IteratorMode, LogLevel, Options, ReadOptions, SstFileWriter, UniversalCompactOptions,
};
use uuid::Uuid;

use super::{
    coverage::Coverage,
    liveness::Liveness,
    store::{KeyStore, Location, StoreError},
};

/// The key of the stamp: one byte longer than any other, and after them all.
const STAMP_KEY: [u8; 9] = [0xff; 9];
/// A file to be ingested, while it is made.
const INGEST_FILE: &str = "ingest.new";
/// Its presence tells the next start to begin afresh.
const DISCARD_FILE: &str = "DISCARD";
/// Sorted runs above which nothing is put in: each one costs every lookup.
const RUNS_MAX: u64 = 20;
/// Runs that compaction waits for; fewer compactions, each of more.
const RUNS_TO_COMPACT: i32 = 6;
const MEMTABLE_BYTES: usize = 256 << 10;
/// What a key may take on disk: about 30 bytes with its share of filters and
/// indexes, once in the oldest run, up to once more in the younger ones
/// ([`UniversalCompactOptions`] below), and once more while they are merged.
const DISK_PER_KEY: u64 = 90;

/// See the module.
pub(crate) struct RocksStore {
    db: DB,
    options: Options,
    cache: Cache,
    dir: PathBuf,
    /// Compaction drops the keys above.
    last_key: Arc<AtomicU64>,
    /// Corruption was met: nothing more is asked of it.
    broken: AtomicBool,
    errors: AtomicU64,
}

fn options(cache: &Cache, direct: bool, liveness: &Liveness, last_key: &Arc<AtomicU64>) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(4096);
    table.set_format_version(5);
    // Ten bits a key, in parts: a whole filter of a big file would not fit.
    table.set_bloom_filter(10.0, false);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_top_level_index_and_filter(true);

    let mut universal = UniversalCompactOptions::default();
    universal.set_min_merge_width(2);
    universal.set_max_size_amplification_percent(100);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    // Prefixes of hashes do not compress.
    options.set_compression_type(DBCompressionType::None);
    // Uniform keys overlap every run, so levels would rewrite everything over
    // and over; tiers rewrite each key a few times.
    options.set_compaction_style(DBCompactionStyle::Universal);
    options.set_universal_compaction_options(&universal);
    options.set_level_zero_file_num_compaction_trigger(RUNS_TO_COMPACT);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_background_jobs(2);
    options.set_max_subcompactions(1);
    options.set_compaction_readahead_size(256 << 10);
    options.set_use_direct_reads(direct);
    options.set_use_direct_io_for_flush_and_compaction(direct);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    let liveness = liveness.clone();
    let last_key = Arc::clone(last_key);
    options.set_compaction_filter("tessera.dead", move |_, key: &[u8], value: &[u8]| {
        // What is longer is the stamp.
        let of_chunk = <[u8; 8]>::try_from(key).map(u64::from_be_bytes);
        let dead = of_chunk.is_ok_and(|prefix| {
            prefix > last_key.load(Ordering::Relaxed)
                || Location::decode(value).is_none_or(|location| liveness.is_dead(&location))
        });
        if dead {
            CompactionDecision::Remove
        } else {
            CompactionDecision::Keep
        }
    });
    if let Ok(mut env) = Env::new() {
        env.set_background_threads(1);
        env.set_high_priority_background_threads(1);
        env.lower_thread_pool_cpu_priority();
        env.lower_thread_pool_io_priority();
        options.set_env(&env);
    }
    options
}

/// The files RocksDB makes. Others are not ours to delete.
fn is_database_file(name: &str) -> bool {
    let fixed = [
        "CURRENT",
        "LOCK",
        "LOG",
        "IDENTITY",
        INGEST_FILE,
        DISCARD_FILE,
    ];
    let starts = ["MANIFEST-", "OPTIONS-", "LOG.old."];
    let ends = [".sst", ".log", ".dbtmp"];
    fixed.contains(&name)
        || starts.iter().any(|start| name.starts_with(start))
        || ends.iter().any(|end| name.ends_with(end))
}

/// Deletes the database in a directory that nobody has open.
pub(crate) fn discard(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let ours = entry.file_name().to_str().is_some_and(is_database_file);
        if ours && !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

enum Opened {
    Usable(Box<RocksStore>, Coverage),
    /// Why it has to be discarded.
    Useless(String),
}

impl RocksStore {
    /// Opens the database of this pool, or an empty one in its place.
    pub(crate) fn open(
        dir: &Path,
        pool: Uuid,
        cache_bytes: usize,
        liveness: &Liveness,
    ) -> Result<(Self, Coverage), StoreError> {
        fs::create_dir_all(dir)?;
        let opened = if dir.join(DISCARD_FILE).exists() {
            Opened::Useless("it was found damaged while in use".into())
        } else {
            Self::try_open(dir, pool, cache_bytes, liveness)?
        };
        match opened {
            Opened::Usable(store, coverage) => Ok((*store, coverage)),
            Opened::Useless(reason) => {
                tracing::warn!(dir = %dir.display(), reason, "fingerprint index starts afresh");
                discard(dir)?;
                match Self::try_open(dir, pool, cache_bytes, liveness)? {
                    Opened::Usable(store, coverage) => Ok((*store, coverage)),
                    Opened::Useless(reason) => Err(StoreError::Directory(io::Error::other(reason))),
                }
            }
        }
    }

    fn try_open(
        dir: &Path,
        pool: Uuid,
        cache_bytes: usize,
        liveness: &Liveness,
    ) -> Result<Opened, StoreError> {
        let _ = fs::remove_file(dir.join(INGEST_FILE));
        let cache = Cache::new_lru_cache(cache_bytes);
        let last_key = Arc::new(AtomicU64::new(u64::MAX));
        let mut failure = String::new();
        // Some file systems have no direct I/O.
        for direct in [true, false] {
            let last_key = Arc::clone(&last_key);
            let options = options(&cache, direct, liveness, &last_key);
            let families = [("default", options.clone())];
            match DB::open_cf_with_opts(&options, dir, families) {
                Ok(db) => {
                    let store = Self {
                        db,
                        options,
                        cache,
                        dir: dir.to_path_buf(),
                        last_key,
                        broken: AtomicBool::new(false),
                        errors: AtomicU64::new(0),
                    };
                    return Ok(store.check(pool));
                }
                Err(error) => {
                    failure = error.to_string();
                    let io = error.kind() == ErrorKind::IOError;
                    if io && failure.contains("lock") {
                        return Err(StoreError::Locked);
                    }
                    // A full disk or a lack of rights is no reason to discard.
                    if io && !failure.contains("No such file") {
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(Opened::Useless(failure))
    }

    fn check(self, pool: Uuid) -> Opened {
        let stamp = match self.db.get(STAMP_KEY) {
            Ok(stamp) => stamp,
            Err(error) => return Opened::Useless(error.to_string()),
        };
        match stamp.as_deref().map(Coverage::decode) {
            Some(Some((found, coverage))) if found == pool => {
                let last = coverage.rate.last();
                self.last_key.store(last, Ordering::Relaxed);
                Opened::Usable(Box::new(self), coverage)
            }
            Some(Some((found, _))) => Opened::Useless(format!("it belongs to pool {found}")),
            Some(None) => Opened::Useless("its stamp is malformed".into()),
            None if self.db.iterator(IteratorMode::Start).next().is_none() => {
                Opened::Usable(Box::new(self), Coverage::default())
            }
            None => Opened::Useless("it has no stamp".into()),
        }
    }

    fn family(&self) -> &ColumnFamily {
        self.db
            .cf_handle("default")
            .expect("every database has the default column family")
    }

    /// Remembers an error; corruption ends the use of the database.
    fn failed(&self, what: &str, error: &rocksdb::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let corrupt = error.kind() == ErrorKind::Corruption;
        if corrupt && !self.broken.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "fingerprint index is damaged; rebuilt at the next start");
            if let Err(error) = fs::write(self.dir.join(DISCARD_FILE), b"") {
                tracing::warn!(%error, "cannot mark the fingerprint index");
            }
        } else {
            tracing::debug!(%error, what, "fingerprint index");
        }
    }

    fn write_file(
        &self,
        path: &Path,
        entries: &[(u64, Location)],
        stamp: &[u8],
    ) -> Result<(), rocksdb::Error> {
        let mut writer = SstFileWriter::create(&self.options);
        writer.open(path)?;
        for (key, location) in entries {
            writer.put(key.to_be_bytes(), location.encode())?;
        }
        writer.put(STAMP_KEY, stamp)?;
        writer.finish()
    }

    fn property(&self, name: &str) -> u64 {
        let value = self.db.property_int_value(name);
        value.ok().flatten().unwrap_or(0)
    }
}

impl KeyStore for RocksStore {
    fn lookup(&self, keys: &[u64], out: &mut [Option<Location>]) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        let keys: Vec<[u8; 8]> = keys.iter().map(|key| key.to_be_bytes()).collect();
        let found = self
            .db
            .batched_multi_get_cf(self.family(), keys.iter(), true);
        for (value, out) in found.into_iter().zip(out) {
            match value {
                Ok(value) => *out = value.and_then(|value| Location::decode(&value)),
                Err(error) => self.failed("lookup", &error),
            }
        }
    }

    fn ingest(&self, entries: &[(u64, Location)], stamp: &[u8]) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Full);
        }
        let path = self.dir.join(INGEST_FILE);
        let mut ingest = IngestExternalFileOptions::default();
        ingest.set_move_files(true);
        let result = self
            .write_file(&path, entries, stamp)
            .and_then(|()| self.db.ingest_external_file_opts(&ingest, vec![&path]));
        if let Err(error) = &result {
            self.failed("ingest", error);
            let _ = fs::remove_file(&path);
        }
        Ok(result?)
    }

    fn scan(
        &self,
        from: u64,
        limit: usize,
        visit: &mut dyn FnMut(u64),
    ) -> Result<Option<u64>, StoreError> {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_readahead_size(256 << 10);
        let start = from.to_be_bytes();
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut visited = 0;
        for item in self.db.iterator_opt(mode, read) {
            let (key, _) = item.inspect_err(|error| self.failed("scan", error))?;
            let Ok(key) = <[u8; 8]>::try_from(key.as_ref()) else {
                continue;
            };
            let key = u64::from_be_bytes(key);
            if visited == limit {
                return Ok(Some(key));
            }
            visit(key);
            visited += 1;
        }
        Ok(None)
    }

    fn crowded(&self) -> bool {
        self.property("rocksdb.num-files-at-level0") > RUNS_MAX
    }

    fn keys_max(&self, disk_bytes: u64) -> u64 {
        match disk_bytes {
            0 => u64::MAX,
            bytes => bytes / DISK_PER_KEY,
        }
    }

    fn thin(&self, last: u64) {
        self.last_key.store(last, Ordering::Relaxed);
        let Some(first) = last.checked_add(1) else {
            return;
        };
        // Merged runs are cut into files by key: those wholly above go at once,
        // at the cost of a line in the manifest. Compaction drops the rest. The
        // file with the stamp, which is above all keys, is never among them.
        let above = [0xff; 8];
        if let Err(error) = self.db.delete_file_in_range(first.to_be_bytes(), above) {
            self.failed("thin", &error);
        }
    }

    fn compact(&self) {
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
    }

    fn disk_bytes(&self) -> u64 {
        self.property("rocksdb.total-sst-files-size")
    }

    fn entries(&self) -> u64 {
        self.property("rocksdb.estimate-num-keys")
    }

    fn memory_bytes(&self) -> usize {
        let readers = self.property("rocksdb.estimate-table-readers-mem");
        self.cache.get_usage() + usize::try_from(readers).unwrap_or(usize::MAX) + MEMTABLE_BYTES
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        // A compaction under way would hold up a clean stop.
        self.db.cancel_all_background_work(true);
    }
}
