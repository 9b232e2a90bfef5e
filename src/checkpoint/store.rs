//! Checkpoints as files of a folder.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Checkpoint, NEWEST, process_token};
use crate::config;
use crate::faults;

/// First bytes of every checkpoint.
const MAGIC: &[u8; 8] = b"CSTREAM\n";
/// Version of the format. A program reads its own version and refuses others by name.
const FORMAT: u32 = 1;
/// Magic, format version and length of the body.
const HEADER: usize = MAGIC.len() + 4 + 8;
const SUFFIX: &str = ".checkpoint";
/// How long another process may take from saving a checkpoint to committing it.
const OTHERS_STAY: Duration = Duration::from_secs(600);

/// Microseconds by which the clock may have been set back since a checkpoint was made: a century.
const FARTHEST: i64 = 100 * 366 * 86_400_000_000;

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder or a file in it failed.
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: std::io::Error },
    /// A file that does not verify.
    #[error("{path}: corrupt checkpoint: {reason}")]
    Corrupt { path: PathBuf, reason: String },
    /// A file of another version of the format.
    #[error("{path}: checkpoint of format {found}, this program reads format {FORMAT}")]
    Format { path: PathBuf, found: u32 },
    /// The source's committed position names a checkpoint that is not here.
    #[error(
        "{path}: not there, though {lane} was committed with it: restore the folder, or reset the \
         group's offsets to begin anew"
    )]
    Missing { path: PathBuf, lane: String },
    /// The folder of another pipeline.
    #[error(
        "{path}: state of pipeline {found}, this one is {expected}: give each its own \
         checkpoint.store"
    )]
    Foreign { path: PathBuf, found: String, expected: String },
    /// State that cannot be turned into bytes or back.
    #[error("{what}: {reason}")]
    State { what: String, reason: String },
}

impl CheckpointError {
    /// Whether going on from the last commit may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::File { reason, .. } => faults::may_pass(reason.kind()),
            Self::Corrupt { .. }
            | Self::Format { .. }
            | Self::Missing { .. }
            | Self::Foreign { .. }
            | Self::State { .. } => false,
        }
    }
}

/// A folder of checkpoints.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    keep: usize,
}

impl Store {
    /// Opens the folder of `[checkpoint]`, creating it if need be; `None` where it names none.
    ///
    /// # Errors
    /// If the folder cannot be created or read.
    pub fn open(config: &config::Checkpoint) -> Result<Option<Self>, CheckpointError> {
        let Some(location) = &config.store else { return Ok(None) };
        let Some(folder) = location.folder().map(Path::to_owned) else {
            let reason = std::io::Error::from(ErrorKind::Unsupported);
            return Err(CheckpointError::File { path: location.to_string().into(), reason });
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let store = Self { folder, keep: config.keep.max(1) };
        // A stray name must not use the numbers up.
        let latest = chrono::Utc::now().timestamp_micros().saturating_add(FARTHEST);
        let newest = store.paths()?.iter().filter_map(|path| made(&id_of(path))).max();
        if let Some(newest) = newest.filter(|newest| *newest < latest) {
            NEWEST.fetch_max(newest, Ordering::Relaxed);
        }
        Ok(Some(store))
    }

    /// Writes a checkpoint; on return it is on disk. Returns its size in bytes.
    ///
    /// # Errors
    /// If it cannot be written: a full disk, a lack of rights.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<usize, CheckpointError> {
        let body = postcard::to_stdvec(checkpoint).map_err(|error| CheckpointError::State {
            what: format!("checkpoint {}", checkpoint.id),
            reason: error.to_string(),
        })?;
        let mut bytes = Vec::with_capacity(HEADER + body.len() + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());

        let path = self.path(&checkpoint.id);
        let unfinished = path.with_extension("unfinished");
        let mut file = File::create(&unfinished).map_err(failed(&unfinished))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed(&unfinished))?;
        fs::rename(&unfinished, &path).map_err(failed(&path))?;
        // The name itself must survive a power cut too.
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed(&path))?;
        Ok(bytes.len())
    }

    /// Reads the checkpoint `id`, which `lane` was committed with.
    ///
    /// # Errors
    /// If it is not there, does not verify, or has another format.
    pub fn load(&self, id: &str, lane: &str) -> Result<Checkpoint, CheckpointError> {
        let path = self.path(id);
        if !path.exists() {
            return Err(CheckpointError::Missing { path, lane: lane.to_owned() });
        }
        read(&path)
    }

    /// The newest checkpoint that verifies: for sources that keep no positions themselves. One
    /// that does not verify is passed over with a warning, for positions go back with the state.
    ///
    /// # Errors
    /// If the folder cannot be read, or a checkpoint has another format or is not of `pipeline`.
    pub fn latest(&self, pipeline: &str) -> Result<Option<Checkpoint>, CheckpointError> {
        for path in self.paths()?.iter().rev() {
            match read(path) {
                Ok(checkpoint) if checkpoint.pipeline == pipeline => return Ok(Some(checkpoint)),
                Ok(Checkpoint { pipeline: found, .. }) => {
                    let (path, expected) = (path.clone(), pipeline.to_owned());
                    return Err(CheckpointError::Foreign { path, found, expected });
                }
                Err(error @ CheckpointError::Corrupt { .. }) => {
                    tracing::warn!(%error, "going back to the checkpoint before");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Drops old checkpoints of `pipeline`, once a newer one is committed: not the newest few, not
    /// those of the ids `in_use`, and of other processes only what has been there for long, for
    /// they may be about to commit it.
    ///
    /// # Errors
    /// If the folder cannot be read or a file not be removed.
    pub fn prune(&self, pipeline: &str, in_use: &BTreeSet<String>) -> Result<(), CheckpointError> {
        let mut paths = self.paths()?;
        paths.retain(|path| owner(path).is_some_and(|owner| owner == pipeline));
        let own = format!("-{:016x}", process_token());
        let others_until = chrono::Utc::now().timestamp_micros() - OTHERS_STAY.as_micros() as i64;
        for path in &paths[..paths.len().saturating_sub(self.keep)] {
            let id = id_of(path);
            let droppable = id.ends_with(&own) || made(&id).is_none_or(|made| made < others_until);
            if in_use.contains(&id) || !droppable {
                continue;
            }
            match fs::remove_file(path) {
                // Another process was faster.
                Err(reason) if reason.kind() == ErrorKind::NotFound => {}
                outcome => outcome.map_err(failed(path))?,
            }
        }
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}{SUFFIX}"))
    }

    /// All checkpoints, the oldest first.
    fn paths(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed(&self.folder))? {
            let path = entry.map_err(failed(&self.folder))?.path();
            if path.to_string_lossy().ends_with(SUFFIX) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// The id that a file's name tells.
fn id_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(SUFFIX).to_owned()
}

/// When a checkpoint was made, microseconds since the epoch.
fn made(id: &str) -> Option<i64> {
    id.split_once('-')?.0.parse().ok()
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |reason| CheckpointError::File { path, reason }
}

/// The pipeline that a checkpoint is of, from the beginning of its file; `None` where that cannot
/// be told.
fn owner(path: &Path) -> Option<String> {
    /// Enough for an id and the longest name that topics can begin with.
    const BEGINNING: u64 = 4096;
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(BEGINNING).read_to_end(&mut bytes)).ok()?;
    // The first fields of `Checkpoint`.
    let ((_, pipeline), _) =
        postcard::take_from_bytes::<(String, String)>(bytes.get(HEADER..)?).ok()?;
    Some(pipeline)
}

fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let bytes = fs::read(path).map_err(failed(path))?;
    let corrupt = |reason: &str| CheckpointError::Corrupt {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let (header, rest) =
        bytes.split_at_checked(HEADER).ok_or_else(|| corrupt("shorter than its header"))?;
    let (body, sum) = rest
        .split_at_checked(rest.len().wrapping_sub(4))
        .ok_or_else(|| corrupt("no room for its checksum"))?;
    if header[..MAGIC.len()] != *MAGIC {
        return Err(corrupt("not a checkpoint"));
    }
    if crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes() != *sum {
        return Err(corrupt("its checksum does not match"));
    }
    let format = header[MAGIC.len()..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    match format {
        Some(FORMAT) => {}
        found => {
            let found = found.unwrap_or_default();
            return Err(CheckpointError::Format { path: path.to_owned(), found });
        }
    }
    if header[MAGIC.len() + 4..] != (body.len() as u64).to_le_bytes() {
        return Err(corrupt("its length does not match"));
    }
    postcard::from_bytes(body).map_err(|error| corrupt(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Lane;

    fn store(folder: &Path, keep: usize) -> Store {
        let config = config::Checkpoint {
            store: Some(folder.join("state").into()),
            keep,
            ..config::Checkpoint::default()
        };
        Store::open(&config).expect("a folder can be made").expect("a folder is named")
    }

    fn checkpoint(id: &str) -> Checkpoint {
        Checkpoint {
            id: id.to_owned(),
            pipeline: "plant".to_owned(),
            positions: vec![(Lane::new("sensors", 3), 42)],
            windows: vec![(Lane::new("sensors", 3), vec![1, 2, 3])],
            core: vec![9; 100],
            staged: Vec::new(),
        }
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        let saved = checkpoint("1");
        store.save(&saved).expect("saved");
        assert_eq!(store.load("1", "sensors[3]").expect("loaded"), saved);
        assert_eq!(store.latest("plant").expect("found"), Some(saved));
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_detected() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        store.save(&checkpoint("1")).expect("saved");
        let path = store.path("1");
        let whole = fs::read(&path).expect("readable");
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, flipped).expect("writable");
            assert!(store.load("1", "").is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).expect("writable");
            assert!(store.load("1", "").is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_corrupt_latest_falls_back_to_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        store.save(&checkpoint("1")).expect("saved");
        store.save(&checkpoint("2")).expect("saved");
        fs::write(store.path("2"), b"CSTREAM\nrubbish").expect("writable");
        assert_eq!(
            store.latest("plant").expect("found").map(|found| found.id),
            Some("1".to_owned())
        );
    }

    #[test]
    fn only_the_newest_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 2);
        for id in ["1", "2", "3", "4"] {
            store.save(&checkpoint(id)).expect("saved");
            store.prune("plant", &BTreeSet::new()).expect("pruned");
        }
        assert_eq!(store.paths().expect("listed").len(), 2);
        let error = store.load("2", "sensors[3]").expect_err("pruned");
        assert!(error.to_string().contains("sensors[3] was committed with it"), "{error}");
    }

    #[test]
    fn what_others_may_need_outlives_newer_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 1);
        let now = chrono::Utc::now().timestamp_micros();
        let in_use = format!("{:020}-{:016x}", now - 3_600_000_000, 1);
        let abandoned = format!("{:020}-{:016x}", now - 3_600_000_001, 1);
        let about_to_commit = format!("{:020}-{:016x}", now - 1_000_000, 1);
        let own: Vec<String> = (0..3).map(|_| Checkpoint::new_id()).collect();
        for id in [&in_use, &abandoned, &about_to_commit].into_iter().chain(&own) {
            store.save(&checkpoint(id)).expect("saved");
        }

        store.prune("plant", &BTreeSet::from([in_use.clone()])).expect("pruned");

        let left = store.paths().expect("listed");
        assert_eq!(left, [in_use, about_to_commit, own[2].clone()].map(|id| store.path(&id)));
    }

    #[test]
    fn a_new_id_is_the_newest_even_where_the_clock_was_set_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let ahead = chrono::Utc::now().timestamp_micros() + 3_600_000_000;
        let earlier = format!("{ahead:020}-{:016x}", 1);
        store(folder.path(), 1).save(&checkpoint(&earlier)).expect("saved");

        let store = store(folder.path(), 1);
        let ids: Vec<String> = (0..100).map(|_| Checkpoint::new_id()).collect();
        assert!(earlier < ids[0] && ids.is_sorted_by(|one, next| one < next));
        store.save(&checkpoint(&ids[0])).expect("saved");
        store.prune("plant", &BTreeSet::new()).expect("pruned");
        assert_eq!(
            store.latest("plant").expect("found").map(|found| found.id),
            Some(ids[0].clone())
        );
    }

    #[test]
    fn the_state_of_another_pipeline_is_not_gone_on_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 2);
        store.save(&checkpoint("1")).expect("saved");
        let error = store.latest("wards").expect_err("refused").to_string();
        assert!(error.contains("state of pipeline plant, this one is wards"), "{error}");
    }

    #[test]
    fn another_pipeline_of_the_same_folder_keeps_its_checkpoints() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 1);
        let other = Checkpoint { pipeline: "other".to_owned(), ..checkpoint("1") };
        store.save(&other).expect("saved");
        for id in ["2", "3"] {
            store.save(&checkpoint(id)).expect("saved");
        }

        store.prune("plant", &BTreeSet::new()).expect("pruned");

        let left = store.paths().expect("listed");
        assert_eq!(left, ["1", "3"].map(|id| store.path(id)));
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 2);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&7_u32.to_le_bytes());
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        fs::write(store.path("1"), bytes).expect("writable");
        let error = store.latest("plant").expect_err("refused").to_string();
        assert!(error.contains("format 7, this program reads format 1"), "{error}");
    }
}
