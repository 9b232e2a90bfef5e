//! Files that readers see only once they are whole.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::SinkError;
use super::failed_at;

/// Folder of unfinished files; a leading underscore hides it from readers of data sets.
const STAGING: &str = "_staging";
/// File of a process's staging folder, locked as long as that process lives.
const LOCK: &str = "lock";
/// Suffix of unfinished files.
const SUFFIX: &str = ".inprogress";
/// Tries to make a staging folder while other processes tidy up.
const TRIES: usize = 8;

/// A folder of results and, in it, this sink's folder of unfinished files,
/// `_staging/<16 hexadecimal digits>`.
pub(super) struct Staging {
    root: PathBuf,
    folder: PathBuf,
    token: String,
    /// Held as long as the folder is ours: what is unlocked is free for others to delete.
    _lock: File,
    created: u64,
    kept: Vec<Staged>,
}

/// A file under its staging name.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    target: PathBuf,
}

impl Staged {
    /// Its present path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Staging {
    /// Makes the folders; deletes staging folders whose processes are dead.
    pub(super) fn open(root: &Path) -> Result<Self, SinkError> {
        let all = root.join(STAGING);
        if !root.is_dir() {
            fs::create_dir_all(root).map_err(failed_at(root))?;
            match root.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent)?,
                _ => sync_folder(Path::new("."))?,
            }
        }
        remove_leftovers(&all)?;
        let (folder, token, lock) = claim_folder(&all)?;
        Ok(Self { root: root.to_owned(), folder, token, _lock: lock, created: 0, kept: Vec::new() })
    }

    /// The folder of results.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A new file that will be `<folder>/<stem>-<microseconds>-<token>-<number>.<extension>`
    /// below the root: unique across processes and restarts, and sorted by time of opening.
    pub(super) fn create(
        &mut self,
        folder: &Path,
        stem: &str,
        extension: &str,
    ) -> Result<(File, Staged), SinkError> {
        let opened = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let token = &self.token;
        let number = self.created;
        let name = format!("{stem}-{opened:016}-{token}-{number:06}.{extension}");
        let staged = Staged {
            path: self.folder.join(format!("{name}{SUFFIX}")),
            target: self.root.join(folder).join(name),
        };
        let file = File::create_new(&staged.path).map_err(failed_at(&staged.path))?;
        self.created += 1;
        Ok((file, staged))
    }

    /// Takes a file that is whole and synced; the next [`Staging::publish`] makes it visible.
    pub(super) fn keep(&mut self, staged: Staged) {
        self.kept.push(staged);
    }

    /// Renames all kept files to their final names and syncs the folders.
    pub(super) fn publish(&mut self) -> Result<(), SinkError> {
        let mut changed = BTreeSet::new();
        for staged in self.kept.drain(..) {
            if let Some(folder) = staged.target.parent() {
                fs::create_dir_all(folder).map_err(failed_at(folder))?;
                let below_root = folder.ancestors().take_while(|at| at.starts_with(&self.root));
                changed.extend(below_root.map(Path::to_owned));
            }
            fs::rename(&staged.path, &staged.target).map_err(failed_at(&staged.target))?;
        }
        changed.iter().try_for_each(|folder| sync_folder(folder))
    }
}

impl Drop for Staging {
    /// Deletes what was not published. What cannot be deleted now is a leftover of the next open.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir(self.root.join(STAGING));
    }
}

/// Makes a folder with a locked file in it. Returns the folder, its name and the lock.
fn claim_folder(all: &Path) -> Result<(PathBuf, String, File), SinkError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let token = format!("{:016x}", RandomState::new().hash_one(tries));
        let folder = all.join(&token);
        match try_claim(&folder) {
            Ok(Some(lock)) => return Ok((folder, token, lock)),
            Err(reason) if tries >= TRIES => return Err(failed_at(&folder)(reason)),
            Err(reason) if reason.kind() != io::ErrorKind::NotFound => {
                return Err(failed_at(&folder)(reason));
            }
            // Another process took the folder, not locked yet, for a leftover.
            Ok(None) | Err(_) => {}
        }
    }
}

fn try_claim(folder: &Path) -> io::Result<Option<File>> {
    fs::create_dir_all(folder)?;
    let path = folder.join(LOCK);
    let lock = File::create_new(&path)?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks: nobody can take this folder for a leftover either.
        Err(TryLockError::Error(_)) => Ok(Some(lock)),
        Ok(()) => Ok(path.try_exists()?.then_some(lock)),
    }
}

/// Deletes the staging folders that no process holds.
fn remove_leftovers(all: &Path) -> Result<(), SinkError> {
    let entries = match fs::read_dir(all) {
        Ok(entries) => entries,
        Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(reason) => return Err(failed_at(all)(reason)),
    };
    for entry in entries {
        let folder = entry.map_err(failed_at(all))?.path();
        let named_by_a_sink =
            folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.len() == 16 && name.bytes().all(|letter| letter.is_ascii_hexdigit())
            });
        if named_by_a_sink {
            remove_leftover(&folder)?;
        }
    }
    Ok(())
}

fn remove_leftover(folder: &Path) -> Result<(), SinkError> {
    let lock = match File::open(folder.join(LOCK)) {
        Ok(lock) => lock,
        Err(reason) if reason.kind() == io::ErrorKind::NotFound => {
            // Its process died, or is, between making the folder and the lock: only an empty
            // folder goes, and a living process then makes another.
            let _ = fs::remove_dir(folder);
            return Ok(());
        }
        Err(reason) => return Err(failed_at(folder)(reason)),
    };
    if lock.try_lock().is_err() {
        return Ok(());
    }
    let files = fs::read_dir(folder).map_err(failed_at(folder))?.count().saturating_sub(1);
    tracing::warn!(folder = %folder.display(), files, "removing unfinished files of a dead process");
    match fs::remove_dir_all(folder) {
        Err(reason) if reason.kind() != io::ErrorKind::NotFound => Err(failed_at(folder)(reason)),
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), SinkError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed_at(folder))
}
