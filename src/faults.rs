//! Which failures pass, and named steps at which tests bring them about.
//!
//! Steps of a commit carry names, at which a test may end the process or make the step fail.
//! Built with the feature `failpoints`, the variable `FAILPOINTS` says what happens where, in the
//! language of the crate `fail`: `commit.saved=3*off->return(kill)` kills the process, as SIGKILL
//! would, when it comes to `commit.saved` the fourth time. Without the feature, steps are nothing.

use std::io;

/// Whether an operation on files or a network that failed so may succeed another time, with nobody
/// doing anything about it.
pub(crate) fn may_pass(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        FileTooLarge, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        QuotaExceeded, ReadOnlyFilesystem, StorageFull, Unsupported,
    };
    let lasting = [
        FileTooLarge,
        InvalidInput,
        IsADirectory,
        NotADirectory,
        NotFound,
        PermissionDenied,
        QuotaExceeded,
        ReadOnlyFilesystem,
        StorageFull,
        Unsupported,
    ];
    !lasting.contains(&kind)
}

/// Comes to a step.
///
/// # Errors
/// What a test has arranged: `return(full)` is a full disk, `return(…)` with another word an
/// error of that text.
pub(crate) fn step(name: &'static str) -> io::Result<()> {
    fail::fail_point!(name, |arranged| Err(simulate(name, arranged.as_deref())));
    let _ = name;
    Ok(())
}

/// Arms the steps that `FAILPOINTS` names, for as long as the answer is kept.
#[cfg(feature = "failpoints")]
pub(crate) fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

#[cfg_attr(not(feature = "failpoints"), expect(dead_code, reason = "only failpoints use it"))]
fn simulate(name: &str, arranged: Option<&str>) -> io::Error {
    match arranged {
        // No destructor runs, nothing is flushed: what SIGKILL leaves.
        Some("kill") => std::process::abort(),
        Some("full") => io::ErrorKind::StorageFull.into(),
        other => io::Error::other(format!("{name}: {}", other.unwrap_or("arranged to fail"))),
    }
}
