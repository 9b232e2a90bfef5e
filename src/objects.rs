//! Objects by name, in a folder or in a bucket.
//!
//! State and results outlive a process as whole objects: checkpoints, and files of results.
//! [`Objects`] keeps them in a folder or in S3, and is the same over both: an object appears under
//! its name only once it is whole, and on return from an operation its effect is durable. Names
//! are relative and `/` separates their parts, as in `_staging/4f1c/part-1.parquet`.

mod bucket;
mod folder;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use self::bucket::Bucket;
use self::folder::Folder;
pub(crate) use self::folder::{make_folder, sync_folder};
use crate::config::Location;
use crate::faults::step;

/// Objects of one folder or bucket. Clones are the same place.
///
/// Operations block, up to about half a minute where a store does not answer, and must not be
/// called from async code.
#[derive(Clone, Debug)]
pub struct Objects {
    location: Location,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Folder(Folder),
    Bucket(Bucket),
}

/// An object that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, microseconds since the epoch, by the clock of the store.
    pub modified_micros: i64,
}

/// What became of an object that was to be renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renamed {
    /// It has its new name now.
    Now,
    /// It had it already.
    Before,
    /// There is nothing under the old name, nor under the new one.
    Gone,
}

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{location}{}{name}: {reason}", if name.is_empty() { "" } else { "/" })]
pub struct ObjectError {
    /// The folder or bucket.
    pub location: String,
    /// The object, or the beginning of the names of several.
    pub name: String,
    pub reason: String,
    pub kind: ObjectErrorKind,
}

/// What has to change before an operation can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectErrorKind {
    /// The object is not there.
    NotFound,
    /// The disk is full, or a quota is used up.
    StorageFull,
    /// The rights or the credentials do not suffice, or what holds the folder is read-only.
    Denied,
    /// The bucket is not there, or the folder cannot be one.
    NoPlace,
    /// The operation itself cannot be carried out: an illegal name, a range beyond the end.
    Invalid,
    /// Nothing that is known to last: the network, a server's failure, a time-out.
    Passing,
}

impl ObjectError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        self.kind == ObjectErrorKind::Passing
    }
}

impl Objects {
    /// Opens a place. A folder is made if need be; a bucket must be there.
    ///
    /// # Errors
    /// If the folder cannot be made, or the bucket cannot be listed.
    pub fn open(location: &Location) -> Result<Self, ObjectError> {
        let place = match location {
            Location::Folder(root) => Place::Folder(Folder::open(root)?),
            Location::S3 { bucket, prefix } => {
                Place::Bucket(Bucket::open(location.to_string(), bucket, prefix)?)
            }
        };
        Ok(Self { location: location.clone(), place })
    }

    /// The place.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Writes an object; whatever had its name is replaced.
    ///
    /// # Errors
    /// If it cannot be written. The name then stands for what it stood for before, or for the new
    /// object where only the confirmation was lost.
    pub fn put(&self, name: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.put_chunks(name, vec![bytes])
    }

    /// Writes an object whose bytes lie in several places, as [`Objects::put`] does, without a
    /// copy of all of them.
    ///
    /// # Errors
    /// As [`Objects::put`].
    pub fn put_chunks(&self, name: &str, chunks: Vec<Bytes>) -> Result<(), ObjectError> {
        self.come_to("objects.put", name)?;
        self.check(name)?;
        match &self.place {
            Place::Folder(folder) => folder.put(name, &chunks),
            Place::Bucket(bucket) => bucket.put(name, chunks),
        }
    }

    /// Writes a copy of the file `path`, as [`Objects::put`] does.
    ///
    /// # Errors
    /// If the file cannot be read or its copy not be written.
    pub fn put_file(&self, name: &str, path: &Path) -> Result<(), ObjectError> {
        self.put_files(&[(name.to_owned(), path.to_owned())])
    }

    /// Writes copies of files, several at once where that is faster.
    ///
    /// # Errors
    /// If a file cannot be read or its copy not be written; others may have been by then.
    pub fn put_files(&self, files: &[(String, PathBuf)]) -> Result<(), ObjectError> {
        for (name, _) in files {
            self.come_to("objects.put", name)?;
            self.check(name)?;
        }
        match &self.place {
            Place::Folder(folder) => {
                files.iter().try_for_each(|(name, path)| folder.put_file(name, path))
            }
            Place::Bucket(bucket) => bucket.put_files(files),
        }
    }

    /// The whole object.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub fn get(&self, name: &str) -> Result<Bytes, ObjectError> {
        self.come_to("objects.get", name)?;
        self.check(name)?;
        match &self.place {
            Place::Folder(folder) => folder.get(name),
            Place::Bucket(bucket) => bucket.get(name),
        }
    }

    /// The bytes of each range.
    ///
    /// # Errors
    /// If the object is not there, is shorter than a range says, or cannot be read.
    pub fn get_ranges(&self, name: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ObjectError> {
        self.come_to("objects.get", name)?;
        self.check(name)?;
        match &self.place {
            Place::Folder(folder) => folder.get_ranges(name, ranges),
            Place::Bucket(bucket) => bucket.get_ranges(name, ranges),
        }
    }

    /// All objects below `prefix`, which is one or more whole parts of a name, or empty for all;
    /// sorted by name.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn list(&self, prefix: &str) -> Result<Vec<Object>, ObjectError> {
        self.come_to("objects.list", prefix)?;
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            self.check(prefix)?;
        }
        let mut found = match &self.place {
            Place::Folder(folder) => folder.list(prefix),
            Place::Bucket(bucket) => bucket.list(prefix),
        }?;
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// If it cannot be deleted.
    pub fn delete(&self, name: &str) -> Result<(), ObjectError> {
        self.come_to("objects.delete", name)?;
        self.check(name)?;
        match &self.place {
            Place::Folder(folder) => folder.delete(name),
            Place::Bucket(bucket) => bucket.delete(name),
        }
    }

    /// Gives an object another name, replacing what has it. Where `from` is not there and `to` is,
    /// someone was faster. Returns whether `from` was there.
    ///
    /// # Errors
    /// If neither is there, or the object cannot be renamed.
    pub fn rename(&self, from: &str, to: &str) -> Result<bool, ObjectError> {
        match self.rename_all(&[(from, to)])?[..] {
            [Renamed::Now] => Ok(true),
            [Renamed::Before] => Ok(false),
            _ => Err(ObjectError {
                location: self.location.to_string(),
                name: from.to_owned(),
                reason: format!("not there, nor is {to}"),
                kind: ObjectErrorKind::NotFound,
            }),
        }
    }

    /// Renames many, faster than one by one; tells what became of each. In a bucket an object is
    /// for a while under both names.
    ///
    /// # Errors
    /// If one cannot be renamed; others may have been by then.
    pub fn rename_all(&self, names: &[(&str, &str)]) -> Result<Vec<Renamed>, ObjectError> {
        for (from, to) in names {
            self.come_to("objects.rename", from)?;
            self.check(from)?;
            self.check(to)?;
        }
        match &self.place {
            Place::Folder(folder) => folder.rename_all(names),
            Place::Bucket(bucket) => bucket.rename_all(names),
        }
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn exists(&self, name: &str) -> Result<bool, ObjectError> {
        self.check(name)?;
        match &self.place {
            Place::Folder(folder) => folder.exists(name),
            Place::Bucket(bucket) => bucket.exists(name),
        }
    }

    /// Names come back from checkpoints: none may lead out of the place.
    fn check(&self, name: &str) -> Result<(), ObjectError> {
        let legal = |part: &str| {
            !matches!(part, "" | "." | ".." | folder::UNFINISHED)
                && !part.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\')
        };
        if name.split('/').all(legal) {
            return Ok(());
        }
        Err(ObjectError {
            location: self.location.to_string(),
            name: name.to_owned(),
            reason: "no legal name of an object".to_owned(),
            kind: ObjectErrorKind::Invalid,
        })
    }

    fn come_to(&self, named: &'static str, name: &str) -> Result<(), ObjectError> {
        step(named).map_err(|error| ObjectError::of_io(self.location.to_string(), name, &error))
    }
}

impl ObjectError {
    /// The failure of an operation of the file system.
    pub(crate) fn of_io(location: String, name: &str, error: &io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => ObjectErrorKind::NotFound,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                ObjectErrorKind::StorageFull
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => ObjectErrorKind::Denied,
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => {
                ObjectErrorKind::NoPlace
            }
            ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::Unsupported
            | ErrorKind::UnexpectedEof => ObjectErrorKind::Invalid,
            _ => ObjectErrorKind::Passing,
        };
        Self { location, name: name.to_owned(), reason: error.to_string(), kind }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn objects(folder: &TempDir) -> Objects {
        Objects::open(&Location::Folder(folder.path().join("state"))).unwrap()
    }

    fn names(objects: &Objects, prefix: &str) -> Vec<String> {
        objects.list(prefix).unwrap().into_iter().map(|object| object.name).collect()
    }

    #[test]
    fn what_was_put_is_what_is_read_as_a_whole_and_in_ranges() {
        let folder = TempDir::new().unwrap();
        let objects = objects(&folder);
        objects.put("a/b", Bytes::from_static(b"first")).unwrap();
        objects.put("a/b", Bytes::from_static(b"0123456789")).unwrap();

        assert_eq!(objects.get("a/b").unwrap(), "0123456789");
        let chunks = ["01", "", "234", "56789"].map(|chunk| Bytes::from_static(chunk.as_bytes()));
        objects.put_chunks("chunks", chunks.into()).unwrap();
        assert_eq!(objects.get("chunks").unwrap(), "0123456789");
        let ranges = objects.get_ranges("a/b", &[7..10, 0..2, 3..3]).unwrap();
        assert_eq!(ranges, ["789", "01", ""]);
        assert!(objects.exists("a/b").unwrap());
        assert!(!objects.exists("a/c").unwrap());
    }

    #[test]
    fn a_range_beyond_the_end_is_refused() {
        let folder = TempDir::new().unwrap();
        let objects = objects(&folder);
        objects.put("a", Bytes::from_static(b"0123")).unwrap();
        for range in [2..5, 4..5, 0..u64::MAX, Range { start: 3, end: 1 }] {
            let error = objects.get_ranges("a", std::slice::from_ref(&range)).unwrap_err();
            assert_eq!(error.kind, ObjectErrorKind::Invalid, "{range:?}: {error}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_found_by_its_place_and_name() {
        let folder = TempDir::new().unwrap();
        let objects = objects(&folder);
        let error = objects.get("a/b").unwrap_err();
        assert_eq!(error.kind, ObjectErrorKind::NotFound);
        let named = format!("{}/a/b: ", folder.path().join("state").display());
        assert!(error.to_string().starts_with(&named), "{error}");
        assert!(!error.is_retryable());
        objects.delete("a/b").unwrap();
    }

    #[test]
    fn a_list_is_sorted_and_holds_what_lies_below_whole_parts_of_names() {
        let folder = TempDir::new().unwrap();
        let objects = objects(&folder);
        for name in ["b/2", "b/10/x", "a", "bc", "b-1/x"] {
            objects.put(name, Bytes::from_static(b"....")).unwrap();
        }
        assert_eq!(names(&objects, ""), ["a", "b-1/x", "b/10/x", "b/2", "bc"]);
        assert_eq!(names(&objects, "b"), ["b/10/x", "b/2"]);
        assert_eq!(names(&objects, "b/"), ["b/10/x", "b/2"]);
        assert!(names(&objects, "c").is_empty());
        assert_eq!(objects.list("b/2").unwrap(), []);

        let written = chrono::Utc::now().timestamp_micros();
        let found = &objects.list("").unwrap()[0];
        assert_eq!(found.size, 4);
        assert!((written - found.modified_micros).abs() < 600_000_000, "{found:?}");
    }

    #[test]
    fn what_a_dead_process_left_half_written_is_not_listed_and_goes_with_age() {
        let folder = TempDir::new().unwrap();
        let first = objects(&folder);
        first.put("a", Bytes::from_static(b"a")).unwrap();
        let unfinished = folder.path().join("state").join(folder::UNFINISHED);
        let (old, new) = (unfinished.join("1"), unfinished.join("2"));
        fs::write(&new, "half").unwrap();
        let day = std::time::Duration::from_secs(86_400);
        let past = std::time::SystemTime::now() - day;
        fs::File::create(&old).and_then(|file| file.set_modified(past)).unwrap();

        assert_eq!(names(&objects(&folder), ""), ["a"]);
        assert!(new.exists());
        assert!(!old.exists());
    }

    #[test]
    fn a_renamed_object_has_its_new_name_and_renaming_again_is_fine() {
        let folder = TempDir::new().unwrap();
        let objects = objects(&folder);
        objects.put("s/a", Bytes::from_static(b"a")).unwrap();
        objects.put("s/b", Bytes::from_static(b"b")).unwrap();

        assert!(objects.rename("s/a", "t/u/a").unwrap());
        assert!(!objects.rename("s/a", "t/u/a").unwrap());
        let renamed = objects.rename_all(&[("s/a", "t/u/a"), ("s/b", "b"), ("s/c", "v/c")]);
        assert_eq!(renamed.unwrap(), [Renamed::Before, Renamed::Now, Renamed::Gone]);
        assert_eq!(names(&objects, ""), ["b", "t/u/a"]);
        assert!(!folder.path().join("state/v").exists());

        let error = objects.rename("s/c", "v/c").unwrap_err();
        assert_eq!(error.kind, ObjectErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_copied_and_stays() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "rows").unwrap();
        let objects = objects(&folder);
        objects.put_file("a/b", &file).unwrap();
        assert_eq!(objects.get("a/b").unwrap(), "rows");
        assert!(file.exists());
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let folder = TempDir::new().unwrap();
        let objects = objects(&folder);
        for name in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b", "_unfinished/1"] {
            let error = objects.put(name, Bytes::new()).unwrap_err();
            assert_eq!(error.kind, ObjectErrorKind::Invalid, "{name}");
            assert!(objects.rename("a", name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_and_no_retry_helps() {
        let error = Objects::open(&Location::Folder("/dev/null/state".into())).unwrap_err();
        assert!(error.to_string().starts_with("/dev/null/state: "), "{error}");
        assert!(!error.is_retryable());
    }
}
