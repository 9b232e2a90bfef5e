//! Where results and state are kept: a folder, or a bucket of an object store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// A place for objects, written as a folder's path, `file:///folder` or `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine, or one that it has mounted.
    Folder(PathBuf),
    /// A bucket of S3 or of a store that speaks its protocol. Credentials, region and endpoint are
    /// those of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`.
    S3 {
        bucket: String,
        /// What the names of all objects begin with, without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl Location {
    /// The folder, where it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::S3 { .. } => None,
        }
    }
}

impl From<PathBuf> for Location {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Folder(text.into()));
        };
        match scheme {
            "file" => file_url(rest).ok_or_else(|| {
                format!("\"{text}\" names no folder of this machine such as \"file:///var/lib/x\"")
            }),
            "s3" => bucket_url(rest).ok_or_else(|| {
                format!("\"{text}\" is not a bucket such as \"s3://bucket/prefix\"")
            }),
            _ => Err(format!(
                "\"{text}\": expected a folder, \"file:///folder\" or \"s3://bucket/prefix\", \
                 found {scheme}://"
            )),
        }
    }
}

/// What follows `file://`: an absolute path, percent-encoded, of no other machine.
fn file_url(rest: &str) -> Option<Location> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    let path = percent_decode_str(path).decode_utf8().ok()?;
    path.starts_with('/').then(|| Location::Folder(path.into_owned().into()))
}

/// What follows `s3://`.
fn bucket_url(rest: &str) -> Option<Location> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    let in_bucket = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let in_prefix = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.bytes().any(|byte| byte.is_ascii_control())
    };
    let legal = (3..=255).contains(&bucket.len())
        && bucket.bytes().all(in_bucket)
        && (prefix.is_empty() || prefix.split('/').all(in_prefix));
    legal.then(|| Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(bucket: &str, prefix: &str) -> Result<Location, String> {
        Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    #[test]
    fn a_path_and_a_file_url_are_folders() {
        assert_eq!("out".parse(), Ok(Location::Folder("out".into())));
        assert_eq!("/var/a b".parse(), Ok(Location::Folder("/var/a b".into())));
        assert_eq!("file:///var/a%20b".parse(), Ok(Location::Folder("/var/a b".into())));
        assert_eq!("file://localhost/var".parse(), Ok(Location::Folder("/var".into())));
        for refused in ["file://", "file://var/lib", "file://other/var"] {
            assert!(refused.parse::<Location>().unwrap_err().contains("names no folder"));
        }
    }

    #[test]
    fn an_s3_url_is_a_bucket_and_a_prefix_without_slashes_at_its_end() {
        assert_eq!("s3://plant".parse(), bucket("plant", ""));
        assert_eq!("s3://plant/".parse(), bucket("plant", ""));
        assert_eq!("s3://plant/a/b=1/".parse(), bucket("plant", "a/b=1"));
        for refused in ["s3://", "s3:///a", "s3://a b/c", "s3://plant/a//b", "s3://plant/../b"] {
            let error = refused.parse::<Location>().unwrap_err();
            assert!(error.contains("is not a bucket"), "{refused}: {error}");
        }
    }

    #[test]
    fn other_schemes_are_refused_with_those_that_are_known() {
        let error = "gs://plant/a".parse::<Location>().unwrap_err();
        assert!(error.contains("\"s3://bucket/prefix\", found gs://"), "{error}");
    }

    #[test]
    fn a_location_is_written_so_that_it_reads_the_same() {
        for text in ["out", "/var/lib/contrastream", "s3://plant", "s3://plant/a/b"] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), text);
        }
    }
}
