//! Files that readers see only once their epoch is committed.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::super::{SinkError, StagedFile};
use super::failed_at;
use crate::config::Location;
use crate::faults::step;
use crate::objects::{ObjectError, Objects, Renamed, make_folder, sync_folder};

/// Folder of staged files; a leading underscore hides it from readers of data sets.
const STAGING: &str = "_staging";
/// File of a process's staging folder, locked as long as that process lives.
const LOCK: &str = "lock";
/// Suffix of staged files.
const SUFFIX: &str = ".inprogress";
/// Tries to make a staging folder while other processes tidy up.
const TRIES: usize = 8;
/// How long another process may take from staging in a bucket to publishing: no lock there tells
/// whether it lives.
const OTHERS_STAY: Duration = Duration::from_secs(600);

/// The files of one sink that are not visible yet, under `_staging/<owner>/<16 hexadecimal digits>`
/// of the place where results go.
pub(super) struct Staging {
    objects: Objects,
    /// Folder of the staged files of all whose commits decide about each other's.
    owners: String,
    /// The place, for errors.
    root: PathBuf,
    token: String,
    scratch: Scratch,
    created: u64,
    /// Whole, but not durable under their staged names yet.
    finished: Vec<Staged>,
    /// Durable under their staged names.
    prepared: Vec<StagedFile>,
}

/// Where files are written before they are whole.
enum Scratch {
    /// Where they are staged.
    InPlace(Claim),
    /// In a folder of this machine, for a bucket takes whole objects only.
    Apart(TempDir),
}

/// A file that is being written, or is whole and not durable yet.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    names: StagedFile,
}

impl Staged {
    /// Its present path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Staging {
    /// Makes the folders. What other processes of `owner` left behind stays until
    /// [`Staging::discard`].
    pub(super) fn open(location: &Location, owner: &str) -> Result<Self, SinkError> {
        let objects = Objects::open(location)?;
        let owners = format!("{STAGING}/{owner}");
        let (token, scratch) = match location {
            Location::Folder(root) => {
                let claim = Claim::open(&root.join(&owners))?;
                (claim.token.clone(), Scratch::InPlace(claim))
            }
            Location::S3 { .. } => {
                let folder = tempfile::Builder::new()
                    .prefix("contrastream-")
                    .tempdir()
                    .map_err(failed_at(&std::env::temp_dir()))?;
                (new_token(), Scratch::Apart(folder))
            }
        };
        let root = location.to_string().into();
        let (finished, prepared) = (Vec::new(), Vec::new());
        Ok(Self { objects, owners, root, token, scratch, created: 0, finished, prepared })
    }

    /// The place where results go.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A new file that will be `<folder>/<stem>-<microseconds>-<token>-<number>.<extension>`
    /// below the root: unique across processes and restarts, and sorted by time of opening.
    pub(super) fn create(
        &mut self,
        folder: &str,
        stem: &str,
        extension: &str,
    ) -> Result<(File, Staged), SinkError> {
        let opened = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let (owners, token) = (&self.owners, &self.token);
        let number = self.created;
        let name = format!("{stem}-{opened:016}-{token}-{number:06}.{extension}");
        let file_name = format!("{name}{SUFFIX}");
        let scratch = match &self.scratch {
            Scratch::InPlace(claim) => &claim.folder,
            Scratch::Apart(folder) => folder.path(),
        };
        let path = scratch.join(&file_name);
        let file = File::create_new(&path).map_err(failed_at(&path))?;
        self.created += 1;
        let target = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let staged = format!("{owners}/{token}/{file_name}");
        Ok((file, Staged { path, names: StagedFile { staged, target } }))
    }

    /// Takes a file that is whole and synced.
    pub(super) fn keep(&mut self, staged: Staged) {
        self.finished.push(staged);
    }

    /// Makes the finished files durable under their staged names. Returns all that are, and are
    /// not published.
    pub(super) fn prepare(&mut self) -> Result<Vec<StagedFile>, SinkError> {
        if !self.finished.is_empty() {
            match &self.scratch {
                Scratch::InPlace(claim) => {
                    sync_folder(&claim.folder).map_err(failed_at(&claim.folder))?;
                }
                Scratch::Apart(_) => {
                    let staged = |file: &Staged| (file.names.staged.clone(), file.path.clone());
                    let files: Vec<_> = self.finished.iter().map(staged).collect();
                    self.objects.put_files(&files)?;
                    for (_, path) in &files {
                        fs::remove_file(path).map_err(failed_at(path))?;
                    }
                }
            }
        }
        self.prepared.extend(self.finished.drain(..).map(|file| file.names));
        Ok(self.prepared.clone())
    }

    /// Gives all prepared files their final names.
    pub(super) fn publish(&mut self) -> Result<(), SinkError> {
        let names = names(&self.prepared);
        let Some((first, rest)) = names.split_first() else { return Ok(()) };
        self.come_to("publish.before")?;
        self.rename(&[*first])?;
        if !rest.is_empty() {
            self.come_to("publish.between")?;
            self.rename(rest)?;
        }
        self.come_to("publish.after")?;
        self.prepared.clear();
        Ok(())
    }

    /// Gives files that a committed epoch of another sink prepared their final names, unless they
    /// have them.
    pub(super) fn recover(&self, committed: &[StagedFile]) -> Result<(), SinkError> {
        let renamed = self.objects.rename_all(&names(committed))?;
        for (file, renamed) in committed.iter().zip(renamed) {
            let StagedFile { staged, target } = file;
            match renamed {
                Renamed::Now => tracing::info!(target, "published what was committed before"),
                Renamed::Before => {}
                // Readers may have moved it on since.
                Renamed::Gone => {
                    tracing::warn!(target, staged, "a committed file is no longer there");
                }
            }
        }
        Ok(())
    }

    /// Deletes files of processes that were dead when this sink was opened, or, in a bucket, seem
    /// to be. What committed epochs had staged is out of the way by then.
    pub(super) fn discard(&mut self) -> Result<(), SinkError> {
        let discarded = match &mut self.scratch {
            Scratch::InPlace(claim) => claim.discard()?,
            Scratch::Apart(_) => self.discard_objects()?,
        };
        if discarded > 0 {
            tracing::warn!(
                place = %self.root.display(), files = discarded,
                "deleted files of epochs that were never committed"
            );
        }
        Ok(())
    }

    fn discard_objects(&self) -> Result<usize, SinkError> {
        let stay = i64::try_from(OTHERS_STAY.as_micros()).unwrap_or(i64::MAX);
        let until = chrono::Utc::now().timestamp_micros() - stay;
        let own = format!("{}/{}/", self.owners, self.token);
        let mut staged = self.objects.list(&self.owners)?;
        staged.retain(|object| object.modified_micros < until && !object.name.starts_with(&own));
        for object in &staged {
            self.objects.delete(&object.name)?;
        }
        Ok(staged.len())
    }

    fn rename(&self, names: &[(&str, &str)]) -> Result<(), SinkError> {
        let renamed = self.objects.rename_all(names)?;
        match names.iter().zip(renamed).find(|(_, renamed)| *renamed == Renamed::Gone) {
            None => Ok(()),
            Some(((staged, _), _)) => {
                let error = io::Error::from(ErrorKind::NotFound);
                Err(self.failed(staged, &error))
            }
        }
    }

    fn come_to(&self, named: &'static str) -> Result<(), SinkError> {
        step(named).map_err(|error| self.failed("", &error))
    }

    fn failed(&self, name: &str, error: &io::Error) -> SinkError {
        ObjectError::of_io(self.objects.location().to_string(), name, error).into()
    }
}

fn names(files: &[StagedFile]) -> Vec<(&str, &str)> {
    files.iter().map(|file| (file.staged.as_str(), file.target.as_str())).collect()
}

fn new_token() -> String {
    format!("{:016x}", RandomState::new().hash_one(STAGING))
}

/// A folder in `_staging` that is this sink's as long as it holds the lock in it.
struct Claim {
    folder: PathBuf,
    token: String,
    _lock: File,
    leftovers: Vec<Leftover>,
}

/// A folder of a dead process, with the files that were in it when it was found.
struct Leftover {
    folder: PathBuf,
    files: Vec<PathBuf>,
}

impl Claim {
    /// Looks what the dead left in `all`, and makes a folder with a locked file in it.
    ///
    /// A process may commit an epoch and die after the commits were looked up for recovery: only
    /// what was already a dead one's before can be told to be of no commit.
    fn open(all: &Path) -> Result<Self, SinkError> {
        let leftovers = leftovers(all).map_err(failed_at(all))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let token = new_token();
            let folder = all.join(&token);
            match try_claim(&folder) {
                Ok(Some(lock)) => return Ok(Self { folder, token, _lock: lock, leftovers }),
                Err(reason) if tries >= TRIES || reason.kind() != ErrorKind::NotFound => {
                    return Err(failed_at(&folder)(reason));
                }
                // Another process took the folder, not locked yet, for a leftover.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Deletes the files that the dead left, and their folders unless something is in them that
    /// was not there before. Returns the number of files.
    fn discard(&mut self) -> Result<usize, SinkError> {
        let mut discarded = 0;
        for Leftover { folder, files } in self.leftovers.drain(..) {
            for file in files {
                match fs::remove_file(&file) {
                    Err(reason) if reason.kind() == ErrorKind::NotFound => {}
                    outcome => {
                        outcome.map_err(failed_at(&file))?;
                        discarded += 1;
                    }
                }
            }
            remove_if_dead(&folder);
        }
        Ok(discarded)
    }
}

impl Drop for Claim {
    /// Files stay: they may be of an epoch that was just committed.
    fn drop(&mut self) {
        remove_if_empty(&self.folder);
        // The owner's folder and that of all.
        for folder in self.folder.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn try_claim(folder: &Path) -> io::Result<Option<File>> {
    make_folder(folder)?;
    let path = folder.join(LOCK);
    let lock = File::create_new(&path)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks: nobody can take this folder for a leftover either.
        Err(TryLockError::Error(_)) => Ok(Some(lock)),
        Ok(()) => Ok(path.try_exists()?.then_some(lock)),
    }
}

/// The staging folders that no process holds.
fn leftovers(all: &Path) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for folder in entries(all)? {
        let named_by_a_sink =
            folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.len() == 16 && name.bytes().all(|letter| letter.is_ascii_hexdigit())
            });
        if named_by_a_sink && !is_held(&folder)? {
            let mut files = entries(&folder)?;
            files.retain(|file| file.file_name().is_some_and(|name| name != LOCK));
            found.push(Leftover { folder, files });
        }
    }
    Ok(found)
}

/// What lies in a folder: nothing, where it is gone.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(reason) if reason.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Whether a living process holds a staging folder, or may do so in a moment.
fn is_held(folder: &Path) -> io::Result<bool> {
    match File::open(folder.join(LOCK)) {
        // Its process died, or is, between making the folder and the lock.
        Err(reason) if reason.kind() == ErrorKind::NotFound => Ok(false),
        // Shared, so that two who look do not take each other for the owner.
        lock => Ok(lock?.try_lock_shared().is_err()),
    }
}

/// Removes a dead process's folder if nothing is left in it. What fails is left to the next sink.
fn remove_if_dead(folder: &Path) {
    match File::open(folder.join(LOCK)) {
        // Held until the folder is gone: whoever is about to claim it then makes another.
        Ok(lock) if lock.try_lock().is_ok() => remove_if_empty(folder),
        Ok(_) => {}
        Err(_) => {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn remove_if_empty(folder: &Path) {
    let lock = folder.join(LOCK);
    if entries(folder).is_ok_and(|entries| entries == [lock.as_path()]) {
        let _ = fs::remove_file(lock);
        let _ = fs::remove_dir(folder);
    }
}
