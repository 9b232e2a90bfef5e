//! Checkpoints and their parts as objects.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::part::{self, Part};
use super::{Checkpoint, NEWEST, process_token};
use crate::config;
use crate::faults::{self, step};
use crate::objects::{ObjectError, ObjectErrorKind, Objects};
use crate::sink::StagedFile;

/// First bytes of every checkpoint.
const MAGIC: &[u8; 8] = b"CSTREAM\n";
/// Version of the format. A program reads its own version and refuses others by name.
const FORMAT: u32 = 14;
/// Magic, format version, length of the manifest, length of the core.
const HEADER: usize = MAGIC.len() + 4 + 8 + 8;
/// Length of a CRC-32.
const SUM: usize = 4;
const CHECKPOINT: &str = ".checkpoint";
const PART: &str = ".part";
/// How long another process may take from saving a checkpoint to committing it.
const OTHERS_STAY: Duration = Duration::from_secs(600);

/// Microseconds by which the clock may have been set back since a checkpoint was made: a century.
const FARTHEST: i64 = 100 * 366 * 86_400_000_000;

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A step was made to fail.
    #[error("{0}")]
    Step(#[from] std::io::Error),
    /// An object that does not verify.
    #[error("{object}: corrupt checkpoint: {reason}")]
    Corrupt { object: String, reason: String },
    /// A checkpoint of another version of the format.
    #[error("{object}: checkpoint of format {found}, this program reads format {FORMAT}")]
    Format { object: String, found: u32 },
    /// The source's committed position names a checkpoint that is not here.
    #[error(
        "{object}: not there, though {lane} was committed with it: restore the store, or reset the \
         group's offsets to begin anew"
    )]
    Missing { object: String, lane: String },
    /// The store of another pipeline.
    #[error(
        "{object}: state of pipeline {found}, this one is {expected}: give each its own \
         checkpoint.store"
    )]
    Foreign { object: String, found: String, expected: String },
    /// State that cannot be turned into bytes or back.
    #[error("{what}: {reason}")]
    State { what: String, reason: String },
}

impl CheckpointError {
    /// Whether going on from the last commit may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Object(error) => error.is_retryable(),
            Self::Step(error) => faults::may_pass(error.kind()),
            Self::Corrupt { .. }
            | Self::Format { .. }
            | Self::Missing { .. }
            | Self::Foreign { .. }
            | Self::State { .. } => false,
        }
    }
}

/// A place that holds checkpoints. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Objects,
    keep: usize,
    /// What the checkpoints seen so far need: they never change.
    needs: Arc<Mutex<BTreeMap<String, Needs>>>,
}

/// What pruning must know of a checkpoint.
#[derive(Clone, Debug)]
struct Needs {
    pipeline: String,
    parts: BTreeSet<String>,
}

impl Store {
    /// Opens the store of `[checkpoint]`, making its folder if need be; `None` where it names none.
    ///
    /// # Errors
    /// If the store cannot be made or listed.
    pub fn open(config: &config::Checkpoint) -> Result<Option<Self>, CheckpointError> {
        let Some(location) = &config.store else { return Ok(None) };
        let objects = Objects::open(location)?;
        let store = Self { objects, keep: config.keep.max(1), needs: Arc::default() };
        // A stray name must not use the numbers up.
        let latest = chrono::Utc::now().timestamp_micros().saturating_add(FARTHEST);
        let newest = store.ids()?.iter().filter_map(|id| made(id)).max();
        if let Some(newest) = newest.filter(|newest| *newest < latest) {
            NEWEST.fetch_max(newest, Ordering::Relaxed);
        }
        Ok(Some(store))
    }

    /// Writes a checkpoint, after the part that it adds; on return both are durable. Returns their
    /// size in bytes.
    ///
    /// # Errors
    /// If they cannot be written: a full disk, a lack of rights.
    pub fn save(&self, checkpoint: &Checkpoint, part: &Part) -> Result<usize, CheckpointError> {
        step("checkpoint.part")?;
        let added = self.save_part(part)?;
        step("checkpoint.manifest")?;
        let manifest = postcard::to_stdvec(checkpoint).map_err(|error| CheckpointError::State {
            what: format!("checkpoint {}", checkpoint.id),
            reason: error.to_string(),
        })?;
        let core = &checkpoint.core;
        let mut bytes = Vec::with_capacity(HEADER + manifest.len() + core.len() + 2 * SUM);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(manifest.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(core.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&manifest);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.extend_from_slice(core);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let size = bytes.len();
        self.objects.put(&name_of(&checkpoint.id), bytes.into())?;
        step("checkpoint.saved")?;
        Ok(added + size)
    }

    /// Writes a part, unless it is empty or written already. Returns its size in bytes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_part(&self, part: &Part) -> Result<usize, CheckpointError> {
        let Some(chunks) = part.object() else { return Ok(0) };
        let size = chunks.iter().map(Bytes::len).sum();
        self.objects.put_chunks(&part_name(part.id()), chunks)?;
        part.settle();
        Ok(size)
    }

    /// The bytes of ranges of a part.
    ///
    /// # Errors
    /// If it is not there, is shorter than a range says, or cannot be read.
    pub fn read(&self, part: &Part, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, CheckpointError> {
        match part.waiting(ranges) {
            Some(found) => found.map_err(|reason| self.corrupt(part.id(), reason)),
            None => match self.objects.get_ranges(&part_name(part.id()), ranges) {
                Err(error) if error.kind == ObjectErrorKind::Invalid => {
                    Err(self.corrupt(part.id(), error.reason))
                }
                found => Ok(found?),
            },
        }
    }

    /// Reads a range of a part of the store, and checks that the object is a part.
    ///
    /// # Errors
    /// As [`Store::read`], and if it is no part.
    pub fn read_first(&self, part: &Part, range: Range<u64>) -> Result<Bytes, CheckpointError> {
        let beginning = 0..part::HEADER.len() as u64;
        match &self.read(part, &[beginning, range])?[..] {
            [beginning, bytes] if **beginning == part::HEADER => Ok(bytes.clone()),
            _ => Err(self.corrupt(part.id(), "not a part of this format".to_owned())),
        }
    }

    /// The error that a part does not verify.
    pub fn corrupt(&self, part: &str, reason: String) -> CheckpointError {
        CheckpointError::Corrupt { object: self.place(&part_name(part)), reason }
    }

    /// Reads the checkpoint `id`, which `lane` was committed with.
    ///
    /// # Errors
    /// If it is not there, does not verify, or has another format.
    pub fn load(&self, id: &str, lane: &str) -> Result<Checkpoint, CheckpointError> {
        match self.load_one(id) {
            Err(CheckpointError::Object(error)) if error.kind == ObjectErrorKind::NotFound => {
                let object = self.place(&name_of(id));
                Err(CheckpointError::Missing { object, lane: lane.to_owned() })
            }
            outcome => outcome,
        }
    }

    /// The newest checkpoint: for sources that keep no positions themselves. Where results may come
    /// twice (`repeats`), one that does not verify is passed over with a warning, for positions go
    /// back with the state; where they may not, what it had published would be repeated.
    ///
    /// # Errors
    /// If the store cannot be read, or a checkpoint has another format or is not of `pipeline`, or,
    /// unless `repeats`, does not verify.
    pub fn latest(
        &self,
        pipeline: &str,
        repeats: bool,
    ) -> Result<Option<Checkpoint>, CheckpointError> {
        for id in self.ids()?.iter().rev() {
            match self.load_one(id) {
                Ok(checkpoint) if checkpoint.pipeline == pipeline => return Ok(Some(checkpoint)),
                Ok(Checkpoint { pipeline: found, .. }) => {
                    let (object, expected) = (self.place(&name_of(id)), pipeline.to_owned());
                    return Err(CheckpointError::Foreign { object, found, expected });
                }
                Err(error @ CheckpointError::Corrupt { .. }) if repeats => {
                    tracing::warn!(%error, "going back to the checkpoint before");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Drops old checkpoints of `pipeline`, once a newer one is committed: not the newest few, not
    /// those of the ids `in_use`, and of other processes only what has been there for long, for
    /// they may be about to commit it. Parts go with the last checkpoint that needs them.
    ///
    /// `in_use` must be at least as old as this call: a lane that another process took over since
    /// is committed with a checkpoint that is found now.
    ///
    /// # Errors
    /// If the store cannot be listed or read, or something not be deleted.
    pub fn prune(&self, pipeline: &str, in_use: &BTreeSet<String>) -> Result<(), CheckpointError> {
        step("prune.before")?;
        let names: Vec<String> =
            self.objects.list("")?.into_iter().map(|object| object.name).collect();
        let mut kept = self.needs(names.iter().filter_map(|name| id_of(name, CHECKPOINT)))?;
        let own = format!("-{:016x}", process_token());
        let others_until = chrono::Utc::now().timestamp_micros() - OTHERS_STAY.as_micros() as i64;
        let is_old = |id: &str| made(id).is_none_or(|made| made < others_until);

        let of_pipeline: Vec<String> = kept
            .iter()
            .filter(|(_, needs)| needs.pipeline == pipeline)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &of_pipeline[..of_pipeline.len().saturating_sub(self.keep)] {
            if in_use.contains(id) || !(id.ends_with(&own) || is_old(id)) {
                continue;
            }
            self.objects.delete(&name_of(id))?;
            kept.remove(id);
            step("prune.between")?;
        }

        // What this process wrote since belongs to a checkpoint that is still to come.
        let last = of_pipeline.iter().rfind(|id| id.ends_with(&own));
        let needed: BTreeSet<&String> = kept.values().flat_map(|needs| &needs.parts).collect();
        for id in names.iter().filter_map(|name| id_of(name, PART)) {
            let droppable = match id.ends_with(&own) {
                true => last.is_some_and(|last| id < last.as_str()),
                false => is_old(id),
            };
            if droppable && !needed.contains(&id.to_owned()) {
                self.objects.delete(&part_name(id))?;
            }
        }
        *self.needs.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        Ok(())
    }

    /// What the checkpoints `ids` need, without those that do not verify or are gone by now.
    fn needs<'i>(
        &self,
        ids: impl Iterator<Item = &'i str>,
    ) -> Result<BTreeMap<String, Needs>, CheckpointError> {
        let known = self.needs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = BTreeMap::new();
        for id in ids {
            let needs = match known.get(id) {
                Some(needs) => needs.clone(),
                None => match self.manifest(id) {
                    Ok(checkpoint) => Needs {
                        parts: checkpoint.parts().into_iter().map(str::to_owned).collect(),
                        pipeline: checkpoint.pipeline,
                    },
                    Err(CheckpointError::Corrupt { .. } | CheckpointError::Format { .. }) => {
                        continue;
                    }
                    Err(CheckpointError::Object(error))
                        if error.kind == ObjectErrorKind::NotFound =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            found.insert(id.to_owned(), needs);
        }
        Ok(found)
    }

    /// The files of results that the checkpoint `id` names; `None` if it is not there.
    ///
    /// # Errors
    /// If it does not verify, or has another format.
    pub fn staged(&self, id: &str) -> Result<Option<Vec<StagedFile>>, CheckpointError> {
        match self.manifest(id) {
            Ok(checkpoint) => Ok(Some(checkpoint.staged)),
            Err(CheckpointError::Object(error)) if error.kind == ObjectErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A checkpoint without its core, which is most of it.
    fn manifest(&self, id: &str) -> Result<Checkpoint, CheckpointError> {
        let name = name_of(id);
        let corrupt =
            |reason: String| CheckpointError::Corrupt { object: self.place(&name), reason };
        let range = |range: Range<u64>| match self
            .objects
            .get_ranges(&name, std::slice::from_ref(&range))
        {
            Ok(found) => Ok(found.into_iter().next().unwrap_or_default()),
            Err(error) if error.kind == ObjectErrorKind::Invalid => Err(corrupt(error.reason)),
            Err(error) => Err(error.into()),
        };
        let header = range(0..HEADER as u64)?;
        let (format, length, _) = lengths(&header).ok_or_else(|| corrupt(NO_CHECKPOINT.into()))?;
        if format != FORMAT {
            return Err(CheckpointError::Format { object: self.place(&name), found: format });
        }
        let end = (HEADER as u64).checked_add(length).and_then(|end| end.checked_add(SUM as u64));
        let end = end.ok_or_else(|| corrupt(WRONG_SUM.to_owned()))?;
        let beginning = range(0..end)?;
        let manifest = verified(&beginning).ok_or_else(|| corrupt(WRONG_SUM.to_owned()))?;
        postcard::from_bytes(&manifest[HEADER..]).map_err(|error| corrupt(error.to_string()))
    }

    fn load_one(&self, id: &str) -> Result<Checkpoint, CheckpointError> {
        let name = name_of(id);
        let bytes = self.objects.get(&name)?;
        let corrupt = |reason: &str| CheckpointError::Corrupt {
            object: self.place(&name),
            reason: reason.to_owned(),
        };
        let (format, manifest, core) = lengths(&bytes).ok_or_else(|| corrupt(NO_CHECKPOINT))?;
        // In every format, the last bytes are the sum of all before them.
        let body = verified(&bytes).ok_or_else(|| corrupt(WRONG_SUM))?;
        if format != FORMAT {
            return Err(CheckpointError::Format { object: self.place(&name), found: format });
        }
        let (manifest, core) = usize::try_from(manifest)
            .ok()
            .and_then(|length| length.checked_add(HEADER + SUM))
            .and_then(|end| body.split_at_checked(end))
            .filter(|(_, rest)| rest.len() as u64 == core)
            .ok_or_else(|| corrupt("its lengths do not match"))?;
        let manifest = verified(manifest).ok_or_else(|| corrupt(WRONG_SUM))?;
        let checkpoint: Checkpoint = postcard::from_bytes(&manifest[HEADER..])
            .map_err(|error| corrupt(&error.to_string()))?;
        Ok(Checkpoint { core: core.to_vec(), ..checkpoint })
    }

    /// Ids of all checkpoints, the oldest first.
    fn ids(&self) -> Result<Vec<String>, CheckpointError> {
        let objects = self.objects.list("")?;
        let ids = objects.iter().filter_map(|object| id_of(&object.name, CHECKPOINT));
        Ok(ids.map(str::to_owned).collect())
    }

    /// An object, for people.
    fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.objects.location())
    }
}

const NO_CHECKPOINT: &str = "not a checkpoint";
const WRONG_SUM: &str = "its checksum does not match";

fn name_of(id: &str) -> String {
    format!("{id}{CHECKPOINT}")
}

fn part_name(id: &str) -> String {
    format!("{id}{PART}")
}

/// The id that an object's name tells, if it is of that kind and of the store itself.
fn id_of<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    name.strip_suffix(suffix).filter(|id| !id.contains('/'))
}

/// When a checkpoint was made, microseconds since the epoch.
fn made(id: &str) -> Option<i64> {
    id.split_once('-')?.0.parse().ok()
}

/// Format version, length of the manifest and of the core, from the beginning of a checkpoint.
fn lengths(bytes: &[u8]) -> Option<(u32, u64, u64)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (format, rest) = rest.split_first_chunk()?;
    let (manifest, rest) = rest.split_first_chunk()?;
    let (core, _) = rest.split_first_chunk()?;
    Some((u32::from_le_bytes(*format), u64::from_le_bytes(*manifest), u64::from_le_bytes(*core)))
}

/// The bytes before the last four, if those are their sum.
fn verified(bytes: &[u8]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_last_chunk::<SUM>()?;
    (crc32fast::hash(body).to_le_bytes() == *sum).then_some(body)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::checkpoint::{SavedIndex, SavedKeys, SavedWindows};
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
            windows: vec![(Lane::new("sensors", 3), SavedWindows::default())],
            keys: Vec::new(),
            staged: Vec::new(),
            core: vec![9; 100],
        }
    }

    /// Saves a checkpoint that adds nothing.
    fn save(store: &Store, checkpoint: &Checkpoint) {
        store.save(checkpoint, &Part::new(checkpoint.id.clone())).expect("saved");
    }

    /// The file of an object.
    fn path(folder: &Path, name: &str) -> PathBuf {
        folder.join("state").join(name)
    }

    fn names(store: &Store) -> Vec<String> {
        let objects = store.objects.list("").expect("listed");
        objects.into_iter().map(|object| object.name).collect()
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        let saved = checkpoint("1");
        save(&store, &saved);
        assert_eq!(store.load("1", "sensors[3]").expect("loaded"), saved);
        assert_eq!(store.latest("plant", true).expect("found"), Some(saved));
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_is_detected() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        save(&store, &checkpoint("1"));
        let path = path(folder.path(), "1.checkpoint");
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
    fn a_corrupt_latest_falls_back_to_the_one_before_where_results_may_repeat() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        save(&store, &checkpoint("1"));
        save(&store, &checkpoint("2"));
        fs::write(path(folder.path(), "2.checkpoint"), b"CSTREAM\nrubbish").expect("writable");
        assert_eq!(
            store.latest("plant", true).expect("found").map(|found| found.id),
            Some("1".to_owned())
        );
        let error = store.latest("plant", false).expect_err("refused").to_string();
        assert!(error.contains("2.checkpoint: corrupt checkpoint"), "{error}");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 2);
        for id in ["1", "2", "3", "4"] {
            save(&store, &checkpoint(id));
            store.prune("plant", &BTreeSet::new()).expect("pruned");
        }
        assert_eq!(store.ids().expect("listed").len(), 2);
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
            save(&store, &checkpoint(id));
        }

        store.prune("plant", &BTreeSet::from([in_use.clone()])).expect("pruned");

        let left = store.ids().expect("listed");
        assert_eq!(left, [in_use, about_to_commit, own[2].clone()]);
    }

    #[test]
    fn a_new_id_is_the_newest_even_where_the_clock_was_set_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let ahead = chrono::Utc::now().timestamp_micros() + 3_600_000_000;
        let earlier = format!("{ahead:020}-{:016x}", 1);
        save(&store(folder.path(), 1), &checkpoint(&earlier));

        let store = store(folder.path(), 1);
        let ids: Vec<String> = (0..100).map(|_| Checkpoint::new_id()).collect();
        assert!(earlier < ids[0] && ids.is_sorted_by(|one, next| one < next));
        save(&store, &checkpoint(&ids[0]));
        store.prune("plant", &BTreeSet::new()).expect("pruned");
        assert_eq!(
            store.latest("plant", true).expect("found").map(|found| found.id),
            Some(ids[0].clone())
        );
    }

    #[test]
    fn the_state_of_another_pipeline_is_not_gone_on_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 2);
        save(&store, &checkpoint("1"));
        let error = store.latest("wards", true).expect_err("refused").to_string();
        assert!(error.contains("state of pipeline plant, this one is wards"), "{error}");
    }

    #[test]
    fn another_pipeline_of_the_same_folder_keeps_its_checkpoints() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 1);
        let other = Checkpoint { pipeline: "other".to_owned(), ..checkpoint("1") };
        save(&store, &other);
        for id in ["2", "3"] {
            save(&store, &checkpoint(id));
        }

        store.prune("plant", &BTreeSet::new()).expect("pruned");

        assert_eq!(store.ids().expect("listed"), ["1", "3"]);
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 2);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(FORMAT + 1).to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        fs::write(path(folder.path(), "1.checkpoint"), bytes).expect("writable");
        let error = store.latest("plant", true).expect_err("refused").to_string();
        let expected = format!("format {}, this program reads format {FORMAT}", FORMAT + 1);
        assert!(error.contains(&expected), "{error}");
    }

    #[test]
    fn a_manifest_is_read_without_the_core_and_verified_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 3);
        let saved = checkpoint("1");
        save(&store, &saved);
        let manifest = Checkpoint { core: Vec::new(), ..saved };
        assert_eq!(store.staged("1").expect("read"), Some(manifest.staged.clone()));
        assert_eq!(store.staged("2").expect("looked for"), None);
        assert_eq!(store.manifest("1").expect("read"), manifest);

        let path = path(folder.path(), "1.checkpoint");
        let whole = fs::read(&path).expect("readable");
        for at in 0..whole.len() - 100 - SUM {
            // The length of the core is not used here, yet part of what is summed.
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, flipped).expect("writable");
            assert!(store.manifest("1").is_err(), "byte {at}");
        }
    }

    #[test]
    fn parts_go_with_the_last_checkpoint_that_needs_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), 1);
        let mut ids = Vec::new();
        let mut indices = Vec::new();
        for number in 0..4_u8 {
            let part = Part::new(Checkpoint::new_id());
            let offset = part.append(vec![number]).expect("appended");
            let range = offset..offset + 1;
            let read = || store.read(&part, std::slice::from_ref(&range)).expect("read");
            assert_eq!(read(), [vec![number]]);
            let part_id = part.id().to_owned();
            let index = SavedIndex {
                part: part_id.clone(),
                base: 0,
                offset,
                length: 1,
                crc: 0,
                foreign: false,
            };
            // Each needs the last two.
            indices.push(index);
            let recent = indices[indices.len().saturating_sub(2)..].to_vec();
            let keys = vec![(Lane::new("sensors", 3), SavedKeys { seen: 1, indices: recent })];
            let saved = Checkpoint { keys, ..checkpoint(&part_id) };
            store.save(&saved, &part).expect("saved");
            assert_eq!(read(), [vec![number]]);
            ids.push(part_id);
        }
        let orphan = format!("{:020}-{:016x}", 1, 1);
        let others = format!("{}-{:016x}", &Checkpoint::new_id()[..20], 1);
        let later = Checkpoint::new_id();
        for id in [&orphan, &others, &later] {
            let part = Part::new(id.clone());
            part.append(vec![0]).expect("appended");
            store.save_part(&part).expect("saved");
        }

        store.prune("plant", &BTreeSet::from([ids[1].clone()])).expect("pruned");

        let mut expected: Vec<String> = [&ids[1], &ids[3]].map(|id| name_of(id)).into();
        let parts = [&ids[0], &ids[1], &ids[2], &ids[3], &others, &later];
        expected.extend(parts.map(|id| part_name(id)));
        expected.sort();
        assert_eq!(names(&store), expected);

        store.prune("plant", &BTreeSet::new()).expect("pruned");
        let mut expected = vec![name_of(&ids[3])];
        expected.extend([&ids[2], &ids[3], &others, &later].map(|id| part_name(id)));
        expected.sort();
        assert_eq!(names(&store), expected);
    }
}
