//! What the Kafka source and sink have in common: the settings of a client, its reports, and what
//! its errors mean.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::Properties;

/// Longest wait for the brokers when connecting.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message that is taken in and passed on, bytes.
pub(crate) const LARGEST_MESSAGE: usize = 64 << 20;

/// Wait for the first answer when connecting; doubled at each attempt, so that a refusal is
/// noticed early and a slow broker is still given its time.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// How long an error that goes on is not told again.
const REPEATED: Duration = Duration::from_secs(5);

/// Pause between two attempts, where the answer to the first came at once.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// Settings of a client: `defaults`, over which go the pipeline file's `properties`, over which go
/// the `fixed` ones.
///
/// # Errors
/// A sentence about the property that is unknown, has an impossible value, or is not the
/// pipeline file's to set: a fixed one, or the brokers, which have a key of their own.
pub(crate) fn settings(
    brokers: &str,
    defaults: &[(&str, &str)],
    properties: &Properties,
    fixed: &[(&str, &str)],
) -> Result<ClientConfig, String> {
    for name in properties.keys() {
        if name == "bootstrap.servers" || name == "metadata.broker.list" {
            return Err(format!("{name} is set by the key `brokers`"));
        }
        if fixed.iter().any(|(fixed, _)| fixed == name) {
            return Err(format!("{name} is set by contrastream and cannot be changed"));
        }
    }
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("client.id", "contrastream");
    for (name, value) in defaults {
        settings.set(*name, *value);
    }
    for (name, value) in properties {
        settings.set(name, value);
    }
    for (name, value) in fixed {
        settings.set(*name, *value);
    }
    // Debug lines come only with the property `debug`; which of them are shown is up to `tracing`.
    settings.set_log_level(RDKafkaLogLevel::Debug);
    settings.create_native_config().map_err(|error| property_reason(&error))?;
    Ok(settings)
}

/// What is wrong with a property, without the value of one that may be a secret.
pub(crate) fn property_reason(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, _, _) => description.clone(),
        KafkaError::ClientCreation(description) => description.clone(),
        other => other.to_string(),
    }
}

/// What an error of the Kafka client means for whoever meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The client recovers by itself, or trying again may help.
    Passing,
    /// A topic or partition is not there.
    NoTopic,
    /// The brokers deny a right, or the identity.
    Refused,
    /// Nothing helps but a person.
    Lasting,
}

/// The one place where error codes are judged.
pub(crate) fn trouble(code: RDKafkaErrorCode) -> Trouble {
    use RDKafkaErrorCode::*;
    match code {
        AllBrokersDown
        | BrokerTransportFailure
        | BrokerDestroy
        | DestroyBroker
        | Resolve
        | SSL
        | OperationTimedOut
        | TimedOutQueue
        | MessageTimedOut
        | QueueFull
        | Retry
        | WaitingForCoordinator
        | WaitCache
        | InProgress
        | PreviousInProgress
        | PartitionEOF
        | PollExceeded
        | OffsetOutOfRange
        | OffsetNotAvailable
        | LeaderNotAvailable
        | NotLeaderForPartition
        | RequestTimedOut
        | BrokerNotAvailable
        | ReplicaNotAvailable
        | NetworkException
        | CoordinatorLoadInProgress
        | CoordinatorNotAvailable
        | NotCoordinator
        | NotController
        | NotEnoughReplicas
        | NotEnoughReplicasAfterAppend
        | RebalanceInProgress
        | KafkaStorageError
        | FencedLeaderEpoch
        | UnknownLeaderEpoch
        | ListenerNotFound
        | PreferredLeaderNotAvailable
        | EligibleLeadersNotAvailable
        | UnstableOffsetCommit
        | ThrottlingQuotaExceeded
        | FetchSessionIdNotFound
        | InvalidFetchSessionEpoch
        | RebootstrapRequired
        // Only what was to be undone is purged.
        | PurgeQueue
        | PurgeInflight => Trouble::Passing,
        UnknownTopicOrPartition
        | UnknownTopic
        | UnknownPartition
        | UnknownTopicId
        | InvalidTopic => Trouble::NoTopic,
        Authentication
        | SaslAuthenticationFailed
        | UnsupportedSASLMechanism
        | TopicAuthorizationFailed
        | GroupAuthorizationFailed
        | ClusterAuthorizationFailed
        | TransactionalIdAuthorizationFailed
        | DelegationTokenAuthorizationFailed
        | DelegationTokenExpired
        | PolicyViolation => Trouble::Refused,
        _ => Trouble::Lasting,
    }
}

/// The error code within, if there is one.
pub(crate) fn error_code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// Why the brokers gave no answer when connecting.
#[derive(Debug)]
pub(crate) enum Silence {
    Unreachable(String),
    Refused(String),
}

/// Keeps a client's last error, for the reason that its error codes lack, and passes its log on.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    told: Mutex<Option<(RDKafkaErrorCode, Instant)>>,
}

impl Reports {
    /// Takes note of an error event. That all brokers are down says less than why the last of
    /// them is, and does not displace it.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error_code(error) else { return };
        let mut last = lock(&self.last);
        if code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some((code, reason.to_owned()));
        }
    }

    /// Whether an error is worth a line: the client repeats one many times while it lasts.
    pub(crate) fn is_news(&self, error: &KafkaError) -> bool {
        let Some(code) = error_code(error) else { return true };
        let mut told = lock(&self.told);
        let known = told.is_some_and(|(last, at)| last == code && at.elapsed() < REPEATED);
        if !known {
            *told = Some((code, Instant::now()));
        }
        !known
    }

    /// The last error's code and reason, once.
    pub(crate) fn take(&self) -> Option<(RDKafkaErrorCode, String)> {
        lock(&self.last).take()
    }

    /// Passes a line of librdkafka's log on.
    pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, line, "kafka client"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(facility, line, "kafka client");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(facility, line, "kafka client"),
        }
    }
}

/// The guarded value, also after a panic elsewhere: nothing here is left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The partitions of `topic`, `None` if the brokers have no such topic; asks once.
pub(crate) fn partitions<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<Vec<i32>>, KafkaError> {
    let metadata = match client.fetch_metadata(Some(topic), timeout) {
        Err(KafkaError::Nul(_)) => return Ok(None),
        answer => answer?,
    };
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(None);
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None | Some(RDKafkaErrorCode::NoError) => {
            Ok(Some(found.partitions().iter().map(|partition| partition.id()).collect()))
        }
        Some(code) if trouble(code) == Trouble::NoTopic => Ok(None),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// Repeats `ask` (a question to the brokers, given the time it may take) until it is answered or
/// `deadline` passes. `serve` handles the client's events, so that `reports` learns of them.
pub(crate) fn insist<T>(
    reports: &Reports,
    deadline: Instant,
    serve: impl Fn(),
    about: impl fmt::Display,
    ask: impl Fn(Duration) -> Result<T, KafkaError>,
) -> Result<T, Silence> {
    let mut wait = FIRST_WAIT;
    let mut reason = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match ask(wait.min(left)) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if error_code(&error).is_some_and(|code| trouble(code) == Trouble::Refused) {
            return Err(Silence::Refused(format!("{about}: {error}")));
        }
        serve();
        if let Some((code, report)) = reports.take() {
            if trouble(code) == Trouble::Refused {
                return Err(Silence::Refused(format!("{about}: {report}")));
            }
            if code != RDKafkaErrorCode::AllBrokersDown || reason.is_none() {
                reason = Some(report);
            }
        }
        if Instant::now() >= deadline {
            let reason = reason.unwrap_or_else(|| format!("{about}: {error}"));
            return Err(Silence::Unreachable(reason));
        }
        wait = CONNECT_TIMEOUT.min(wait * 2);
        thread::sleep(ATTEMPT_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(entries: &[(&str, &str)]) -> Properties {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn properties_override_defaults_but_not_what_is_fixed() {
        let defaults = [("fetch.min.bytes", "7"), ("linger.ms", "3")];
        let fixed = [("enable.auto.commit", "false")];

        let given = properties(&[("fetch.min.bytes", "9")]);
        let settings = settings("b:1", &defaults, &given, &fixed).unwrap();

        assert_eq!(settings.get("fetch.min.bytes"), Some("9"));
        assert_eq!(settings.get("linger.ms"), Some("3"));
        assert_eq!(settings.get("enable.auto.commit"), Some("false"));
        assert_eq!(settings.get("bootstrap.servers"), Some("b:1"));
    }

    #[test]
    fn fixed_properties_and_brokers_are_refused_by_name() {
        let fixed = [("enable.auto.commit", "false")];
        for name in ["enable.auto.commit", "bootstrap.servers", "metadata.broker.list"] {
            let refused = settings("b:1", &[], &properties(&[(name, "true")]), &fixed);
            assert!(refused.unwrap_err().contains(name));
        }
    }

    #[test]
    fn an_unknown_property_and_an_impossible_value_are_named() {
        let unknown = settings("b:1", &[], &properties(&[("fetch.min.bites", "1")]), &[]);
        assert!(unknown.unwrap_err().contains("fetch.min.bites"));

        let impossible = settings("b:1", &[], &properties(&[("fetch.min.bytes", "many")]), &[]);
        assert!(impossible.unwrap_err().contains("fetch.min.bytes"));
    }

    #[test]
    fn errors_are_told_apart_by_what_helps() {
        assert_eq!(trouble(RDKafkaErrorCode::AllBrokersDown), Trouble::Passing);
        assert_eq!(trouble(RDKafkaErrorCode::UnknownTopicOrPartition), Trouble::NoTopic);
        assert_eq!(trouble(RDKafkaErrorCode::TopicAuthorizationFailed), Trouble::Refused);
        assert_eq!(trouble(RDKafkaErrorCode::Fatal), Trouble::Lasting);
        // A commit of lanes that another member owns by now must not be tried again.
        assert_eq!(trouble(RDKafkaErrorCode::IllegalGeneration), Trouble::Lasting);
        assert_eq!(trouble(RDKafkaErrorCode::UnknownMemberId), Trouble::Lasting);
    }

    #[test]
    fn an_error_that_goes_on_is_told_once_until_another_comes() {
        let reports = Reports::default();
        let down = KafkaError::Global(RDKafkaErrorCode::AllBrokersDown);
        let resolve = KafkaError::Global(RDKafkaErrorCode::Resolve);
        let told = [&down, &down, &resolve, &down].map(|error| reports.is_news(error));
        assert_eq!(told, [true, false, true, true]);
    }

    #[test]
    fn insisting_ends_at_the_deadline_with_the_reason_reported() {
        let reports = Reports::default();
        let silence = insist(
            &reports,
            Instant::now(),
            || {
                let error = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
                reports.note(&error, "b:1: connection refused");
            },
            "topic t",
            |_| Err::<(), _>(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut)),
        );
        assert!(
            matches!(silence, Err(Silence::Unreachable(reason)) if reason == "b:1: connection refused")
        );
    }

    #[test]
    fn insisting_ends_at_once_when_the_brokers_refuse() {
        let silence = insist(
            &Reports::default(),
            Instant::now() + Duration::from_secs(3600),
            || {},
            "topic t",
            |_| Err::<(), _>(KafkaError::MetadataFetch(RDKafkaErrorCode::TopicAuthorizationFailed)),
        );
        assert!(matches!(silence, Err(Silence::Refused(reason)) if reason.contains("topic t")));
    }
}
