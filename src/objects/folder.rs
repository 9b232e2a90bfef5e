//! Objects as files of a folder.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::{Object, ObjectError, Renamed};

/// Folder of files that are being written: what lies in it is no object.
pub(super) const UNFINISHED: &str = "_unfinished";
/// No write takes as long: what is older in that folder is of a dead process.
const LONGEST_WRITE: Duration = Duration::from_secs(3600);

/// A folder of objects.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the folder if need be; deletes what dead processes left half written in it.
    pub(super) fn open(root: &Path) -> Result<Self, ObjectError> {
        let folder = Self { root: root.to_owned() };
        make_folder(root).map_err(|error| folder.failed("", &error))?;
        folder.delete_unfinished().map_err(|error| folder.failed(UNFINISHED, &error))?;
        Ok(folder)
    }

    pub(super) fn put(&self, name: &str, chunks: &[Bytes]) -> Result<(), ObjectError> {
        self.write(name, |file| chunks.iter().try_for_each(|chunk| file.write_all(chunk)))
            .map_err(|error| self.failed(name, &error))
    }

    pub(super) fn put_file(&self, name: &str, path: &Path) -> Result<(), ObjectError> {
        self.write(name, |file| io::copy(&mut File::open(path)?, file).map(drop))
            .map_err(|error| self.failed(name, &error))
    }

    pub(super) fn get(&self, name: &str) -> Result<Bytes, ObjectError> {
        fs::read(self.root.join(name)).map(Bytes::from).map_err(|error| self.failed(name, &error))
    }

    pub(super) fn get_ranges(
        &self,
        name: &str,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, ObjectError> {
        let read = || -> io::Result<Vec<Bytes>> {
            let mut file = File::open(self.root.join(name))?;
            let size = file.metadata()?.len();
            ranges.iter().map(|range| read_range(&mut file, size, range)).collect()
        };
        read().map_err(|error| self.failed(name, &error))
    }

    /// All files below `prefix`, in no order.
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<Object>, ObjectError> {
        let mut found = Vec::new();
        let mut folders = vec![prefix.to_owned()];
        while let Some(folder) = folders.pop() {
            self.list_one(&folder, &mut found, &mut folders)
                .map_err(|error| self.failed(&folder, &error))?;
        }
        Ok(found)
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            outcome => outcome.and_then(|()| sync_parent(&path)),
        }
        .map_err(|error| self.failed(name, &error))
    }

    /// Renames, then syncs each folder once.
    pub(super) fn rename_all(&self, names: &[(&str, &str)]) -> Result<Vec<Renamed>, ObjectError> {
        let mut changed = BTreeSet::new();
        let mut renamed = Vec::with_capacity(names.len());
        for (from, to) in names {
            let outcome = self.rename_one(from, to, &mut changed);
            renamed.push(outcome.map_err(|error| self.failed(to, &error))?);
        }
        for folder in changed {
            sync_folder(&folder).map_err(|error| self.failed("", &error))?;
        }
        Ok(renamed)
    }

    pub(super) fn exists(&self, name: &str) -> Result<bool, ObjectError> {
        match fs::metadata(self.root.join(name)) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed(name, &error)),
        }
    }

    /// Writes a file under a name that nobody looks at, syncs it, and gives it its own.
    fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        let folder = self.root.join(UNFINISHED);
        // Not the root: where that is gone, so is what was in it.
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let unfinished = folder.join(format!("{:016x}", RandomState::new().hash_one(name)));
        let path = self.root.join(name);
        let write = || {
            let mut file = File::create_new(&unfinished)?;
            content(&mut file)?;
            file.sync_all()?;
            if let Some(parent) = path.parent() {
                make_folder(parent)?;
            }
            fs::rename(&unfinished, &path)?;
            // The name itself must survive a power cut too.
            sync_parent(&path)
        };
        write().inspect_err(|_| {
            // On a full disk half an object must not take room for long.
            let _ = fs::remove_file(&unfinished);
        })
    }

    fn list_one(
        &self,
        folder: &str,
        found: &mut Vec<Object>,
        folders: &mut Vec<String>,
    ) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            // No folder, or an object: nothing lies below it.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // Other names are no objects of ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let metadata = match fs::metadata(entry.path()) {
                // Deleted since the folder was read.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                if name != UNFINISHED {
                    folders.push(name);
                }
                continue;
            }
            let age = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let modified_micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            found.push(Object { name, size: metadata.len(), modified_micros });
        }
        Ok(())
    }

    fn rename_one(
        &self,
        from: &str,
        to: &str,
        changed: &mut BTreeSet<PathBuf>,
    ) -> io::Result<Renamed> {
        let (from, to) = (self.root.join(from), self.root.join(to));
        let there = |path: &Path| path.try_exists();
        let without_from = || Ok(if there(&to)? { Renamed::Before } else { Renamed::Gone });
        if !there(&from)? {
            return without_from();
        }
        if let Some(parent) = to.parent() {
            make_folder(parent)?;
            changed.insert(parent.to_owned());
        }
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => return without_from(),
            outcome => outcome?,
        }
        changed.extend(from.parent().map(Path::to_owned));
        Ok(Renamed::Now)
    }

    fn delete_unfinished(&self) -> io::Result<()> {
        let entries = match fs::read_dir(self.root.join(UNFINISHED)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let now = SystemTime::now();
        for entry in entries {
            let entry = entry?;
            let age = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .map(|modified| now.duration_since(modified).unwrap_or_default());
            // What is gone meanwhile, another process has deleted or finished.
            if age.is_ok_and(|age| age > LONGEST_WRITE) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn failed(&self, name: &str, error: &io::Error) -> ObjectError {
        ObjectError::of_io(self.root.display().to_string(), name, error)
    }
}

fn read_range(file: &mut File, size: u64, range: &Range<u64>) -> io::Result<Bytes> {
    let length = range.end.checked_sub(range.start).filter(|_| range.end <= size);
    let length = length.and_then(|length| usize::try_from(length).ok());
    let Some(length) = length else {
        let reason = format!("{size} bytes, expected {} to {}", range.start, range.end);
        return Err(io::Error::new(ErrorKind::UnexpectedEof, reason));
    };
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(range.start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

/// Makes a folder and those above it; on return their names are durable.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let absent: Vec<_> = folder.ancestors().take_while(|above| !above.is_dir()).collect();
    fs::create_dir_all(folder)?;
    absent.into_iter().rev().try_for_each(sync_parent)
}

/// Makes the name of a file or folder durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        Some(_) => sync_folder(Path::new(".")),
        None => Ok(()),
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
