//! Objects in a bucket of S3, or of a store that speaks its protocol.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart,
};
use tokio::runtime::{self, Runtime};

use super::{Object, ObjectError, ObjectErrorKind, Renamed};

/// Bytes of one request: larger objects are written and read in parts. S3 takes 5 MiB or more.
const PART: usize = 8 << 20;
/// Requests of one operation that are under way at once.
const AT_ONCE: usize = 8;
/// Longest a request may take, and longest after the first that another is begun: together they
/// bound an operation on one object.
const REQUEST: &str = "12s";
const RETRIES: Duration = Duration::from_secs(15);
/// Where a machine of Amazon's asks for its credentials, when the environment holds none.
const METADATA_SERVICE: &str = "169.254.169.254";

/// A bucket, or what lies below a prefix in it.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    location: String,
    prefix: String,
    store: Arc<AmazonS3>,
    runtime: Arc<Runtime>,
}

impl Bucket {
    /// Connects by what the environment's `AWS_…` variables say, and looks whether the bucket is
    /// there and can be listed.
    pub(super) fn open(location: String, bucket: &str, prefix: &str) -> Result<Self, ObjectError> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("objects")
            .enable_all()
            .build()
            .map_err(|error| ObjectError::of_io(location.clone(), "", &error))?;
        let store = connect(bucket).map_err(|error| failed(&location, "", &error))?;
        let bucket = Self {
            location,
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            store: Arc::new(store),
            runtime: Arc::new(runtime),
        };
        let prefix = bucket.prefix();
        let first = async { bucket.store.list(prefix.as_ref()).try_next().await };
        match bucket.runtime.block_on(first) {
            Ok(_) => Ok(bucket),
            Err(error) if error.to_string().contains(METADATA_SERVICE) => Err(ObjectError {
                location: bucket.location,
                name: String::new(),
                reason: "no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, \
                         and this machine has no role"
                    .to_owned(),
                kind: ObjectErrorKind::Denied,
            }),
            Err(error) => Err(bucket.failed("", &error)),
        }
    }

    pub(super) fn put(&self, name: &str, chunks: Vec<Bytes>) -> Result<(), ObjectError> {
        let size: usize = chunks.iter().map(Bytes::len).sum();
        let mut rest = VecDeque::from(chunks);
        let parts = || Ok(take_part(&mut rest, PART));
        self.runtime
            .block_on(self.write(name, size as u64, parts))
            .map_err(|error| self.failed(name, &error))
    }

    pub(super) fn put_files(&self, files: &[(String, PathBuf)]) -> Result<(), ObjectError> {
        let writes = stream::iter(files)
            .map(|(name, path)| self.put_file(name, path))
            .buffer_unordered(AT_ONCE)
            .try_collect();
        self.runtime.block_on(writes)
    }

    pub(super) fn get(&self, name: &str) -> Result<Bytes, ObjectError> {
        let path = self.path(name)?;
        let get = async {
            let found = self.store.get(&path).await?;
            let size = found.meta.size;
            if size <= PART as u64 { found.bytes().await } else { self.read(&path, 0..size).await }
        };
        self.runtime.block_on(get).map_err(|error| self.failed(name, &error))
    }

    pub(super) fn get_ranges(
        &self,
        name: &str,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, ObjectError> {
        let path = self.path(name)?;
        let get = async {
            let found = self.store.head(&path).await.map_err(|error| self.failed(name, &error))?;
            let size = found.size;
            let mut read = Vec::with_capacity(ranges.len());
            for range in ranges {
                if range.start > range.end || range.end > size {
                    let Range { start, end } = range;
                    return Err(ObjectError {
                        location: self.location.clone(),
                        name: name.to_owned(),
                        reason: format!("{size} bytes, expected {start} to {end}"),
                        kind: ObjectErrorKind::Invalid,
                    });
                }
                let bytes = self.read(&path, range.clone()).await;
                read.push(bytes.map_err(|error| self.failed(name, &error))?);
            }
            Ok(read)
        };
        self.runtime.block_on(get)
    }

    /// All objects below `prefix`, in no order.
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<Object>, ObjectError> {
        let below = if prefix.is_empty() { self.prefix() } else { Some(self.path(prefix)?) };
        let found: Vec<_> = self
            .runtime
            .block_on(self.store.list(below.as_ref()).try_collect())
            .map_err(|error| self.failed(prefix, &error))?;
        let own = found.into_iter().filter_map(|meta| {
            let name = meta.location.as_ref().strip_prefix(&self.prefix)?.to_owned();
            let modified_micros = meta.last_modified.timestamp_micros();
            Some(Object { name, size: meta.size, modified_micros })
        });
        Ok(own.collect())
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.store.delete(&path)) {
            Err(Error::NotFound { .. }) => Ok(()),
            outcome => outcome.map_err(|error| self.failed(name, &error)),
        }
    }

    /// Copies all, then deletes all: whoever is killed in between copies again.
    pub(super) fn rename_all(&self, names: &[(&str, &str)]) -> Result<Vec<Renamed>, ObjectError> {
        self.runtime.block_on(async {
            let renamed: Vec<Renamed> = stream::iter(names)
                .map(|(from, to)| self.copy(from, to))
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            let copied =
                names.iter().zip(&renamed).filter(|(_, renamed)| **renamed == Renamed::Now);
            let copied: Vec<_> =
                copied.map(|((from, _), _)| self.path(from)).collect::<Result<_, _>>()?;
            self.store
                .delete_stream(stream::iter(copied.into_iter().map(Ok)).boxed())
                .try_for_each(async |_| Ok(()))
                .await
                .map_err(|error| self.failed(names.first().map_or("", |(from, _)| from), &error))?;
            Ok(renamed)
        })
    }

    pub(super) fn exists(&self, name: &str) -> Result<bool, ObjectError> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.store.head(&path)) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed(name, &error)),
        }
    }

    async fn put_file(&self, name: &str, path: &FilePath) -> Result<(), ObjectError> {
        let unreadable =
            |error: io::Error| ObjectError::of_io(path.display().to_string(), "", &error);
        let mut file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let parts = || {
            let mut part = Vec::new();
            (&mut file).take(PART as u64).read_to_end(&mut part)?;
            Ok(part.into())
        };
        self.write(name, size, parts).await.map_err(|error| self.failed(name, &error))
    }

    /// Writes `size` bytes that come in parts of [`PART`]: one request for a small object.
    async fn write(
        &self,
        name: &str,
        size: u64,
        mut next_part: impl FnMut() -> io::Result<Bytes>,
    ) -> Result<(), Error> {
        let path = self.parse(name)?;
        let unreadable =
            |source: io::Error| Error::Generic { store: "file", source: source.into() };
        if size <= PART as u64 {
            let bytes = next_part().map_err(unreadable)?;
            self.store.put(&path, bytes.into()).await?;
            return Ok(());
        }
        let mut upload =
            WriteMultipart::new_with_chunk_size(self.store.put_multipart(&path).await?, PART);
        let sent = async {
            for _ in 0..size.div_ceil(PART as u64) {
                let bytes = next_part().map_err(unreadable)?;
                upload.wait_for_capacity(AT_ONCE).await?;
                upload.put(bytes);
            }
            Ok(())
        };
        match sent.await {
            Ok(()) => upload.finish().await.map(drop),
            Err(error) => {
                // Parts that nobody completes cost until the bucket's rules delete them.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    /// Reads a range in parts, several at once.
    async fn read(&self, path: &Path, range: Range<u64>) -> Result<Bytes, Error> {
        let starts = range.clone().step_by(PART);
        let parts = starts.map(|start| start..range.end.min(start + PART as u64));
        let parts: Vec<Bytes> = stream::iter(parts)
            .map(|part| self.store.get_range(path, part))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(match <[Bytes; 1]>::try_from(parts) {
            Ok([whole]) => whole,
            Err(parts) => parts.concat().into(),
        })
    }

    async fn copy(&self, from: &str, to: &str) -> Result<Renamed, ObjectError> {
        let (old, new) = (self.path(from)?, self.path(to)?);
        match self.store.copy(&old, &new).await {
            Ok(()) => Ok(Renamed::Now),
            Err(Error::NotFound { .. }) => match self.store.head(&new).await {
                Ok(_) => Ok(Renamed::Before),
                Err(Error::NotFound { .. }) => Ok(Renamed::Gone),
                Err(error) => Err(self.failed(to, &error)),
            },
            Err(error) => Err(self.failed(to, &error)),
        }
    }

    fn prefix(&self) -> Option<Path> {
        (!self.prefix.is_empty()).then(|| self.parse("")).and_then(Result::ok)
    }

    fn path(&self, name: &str) -> Result<Path, ObjectError> {
        self.parse(name).map_err(|error| self.failed(name, &error))
    }

    fn parse(&self, name: &str) -> Result<Path, Error> {
        Ok(Path::parse(format!("{}{name}", self.prefix))?)
    }

    fn failed(&self, name: &str, error: &Error) -> ObjectError {
        failed(&self.location, name, error)
    }
}

fn connect(bucket: &str) -> Result<AmazonS3, Error> {
    let environment = AmazonS3Builder::from_env();
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| environment.get_config_value(key));
    let retries = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: usize::MAX,
        retry_timeout: RETRIES,
    };
    environment
        .with_bucket_name(bucket)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST)
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
        .with_retry(retries)
        .build()
}

fn failed(location: &str, name: &str, error: &Error) -> ObjectError {
    let text = error.to_string();
    let said = |code: &str| text.contains(&format!("<Code>{code}</Code>"));
    let kind = match error {
        _ if said("NoSuchBucket") || said("PermanentRedirect") => ObjectErrorKind::NoPlace,
        _ if ["ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed", "AccessDenied"]
            .into_iter()
            .any(said) =>
        {
            ObjectErrorKind::Denied
        }
        Error::NotFound { .. } => ObjectErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ObjectErrorKind::Denied,
        Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => {
            ObjectErrorKind::Invalid
        }
        _ => ObjectErrorKind::Passing,
    };
    ObjectError {
        location: location.to_owned(),
        name: name.to_owned(),
        reason: reason(&text),
        kind,
    }
}

/// What the store said, or else the whole error.
fn reason(error: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = error.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => error.to_owned(),
    }
}

/// The next `size` bytes of `chunks`, or all that is left; copied only where they are of several.
fn take_part(chunks: &mut VecDeque<Bytes>, size: usize) -> Bytes {
    let mut part = Bytes::new();
    while part.len() < size
        && let Some(mut chunk) = chunks.pop_front()
    {
        let taken = chunk.split_to(chunk.len().min(size - part.len()));
        if !chunk.is_empty() {
            chunks.push_front(chunk);
        }
        part = match part.is_empty() {
            true => taken,
            false => {
                let mut joined = BytesMut::from(part);
                joined.extend_from_slice(&taken);
                joined.freeze()
            }
        };
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: &str, body: &str) -> Error {
        let text = format!(
            "Error performing PUT http://s3/plant/a in 4ms - Server returned non-2xx status code: \
             {status}: {body}"
        );
        Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn what_a_store_refuses_lasts_and_what_it_fails_at_passes() {
        let body =
            |code| format!("<Error><Code>{code}</Code><Message>as it says</Message></Error>");
        for (status, code, kind) in [
            ("404 Not Found", "NoSuchBucket", ObjectErrorKind::NoPlace),
            ("301 Moved Permanently", "PermanentRedirect", ObjectErrorKind::NoPlace),
            ("400 Bad Request", "ExpiredToken", ObjectErrorKind::Denied),
            ("403 Forbidden", "AccessDenied", ObjectErrorKind::Denied),
            ("503 Service Unavailable", "SlowDown", ObjectErrorKind::Passing),
            ("500 Internal Server Error", "InternalError", ObjectErrorKind::Passing),
        ] {
            let error = failed("s3://plant", "a", &answered(status, &body(code)));
            assert_eq!(error.kind, kind, "{code}");
            assert_eq!(error.is_retryable(), kind == ObjectErrorKind::Passing);
            assert_eq!(error.to_string(), format!("s3://plant/a: {code}: as it says"));
        }
    }

    #[test]
    fn an_answer_without_a_body_is_told_as_it_is() {
        let error = failed("s3://plant", "", &answered("502 Bad Gateway", ""));
        assert!(error.is_retryable());
        assert!(error.reason.contains("502 Bad Gateway"), "{error}");
    }

    #[test]
    fn parts_have_the_size_asked_for_however_the_chunks_are_cut() {
        let chunks = [&b"0"[..], b"", b"12", b"3456789"];
        let mut chunks = chunks.into_iter().map(Bytes::from_static).collect();
        let parts: Vec<Bytes> = (0..5).map(|_| take_part(&mut chunks, 3)).collect();
        assert_eq!(parts, ["012", "345", "678", "9", ""]);
    }

    #[test]
    fn a_bad_key_is_denied() {
        let source = "403 Forbidden".into();
        let error = Error::PermissionDenied { path: "a".to_owned(), source };
        assert_eq!(failed("s3://plant", "a", &error).kind, ObjectErrorKind::Denied);
    }
}
