//! A schema registry with Confluent's HTTP interface: schemas by id, ids by subject and schema.
//!
//! A schema never changes under its id, so that what was once fetched is kept. An id that the
//! registry does not know is not asked for again for a while: a stream of messages with a wrong id
//! must not become a stream of requests.

use std::fmt;
use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::{Certificate, StatusCode, Url};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::config;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a registry that gives no answer is asked again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before the second try; doubled at each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Largest answer that is read, bytes.
const LARGEST_ANSWER: u64 = 8 << 20;
/// How long an id that the registry does not know is not asked for again.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// Most such ids that are remembered.
const MOST_UNKNOWN: usize = 4096;
/// What the registry's documents are sent and asked for as.
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// `error_code`s of Confluent's interface: no such subject, version, schema.
const NOT_FOUND_CODES: std::ops::RangeInclusive<i64> = 40401..=40403;

/// Why a registry did not give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No answer, or none but that there is none now.
    #[error("schema registry {url} does not answer: {reason}")]
    Unreachable { url: String, reason: String },
    /// The credentials, or the rights that they give, do not do.
    #[error("schema registry {url} refuses {what}: {reason}")]
    Refused { url: String, what: String, reason: String },
    /// It has no such schema.
    #[error("schema registry {url} knows no {what}")]
    Unknown { url: String, what: String },
    /// It does not take a schema, such as one that readers of earlier ones could not read.
    #[error("schema registry {url} does not take {what}: {reason}")]
    Rejected { url: String, what: String, reason: String },
    /// Something other than a registry's answer.
    #[error("schema registry {url}: {what}: expected {expected}, found {found}")]
    Answer { url: String, what: String, expected: &'static str, found: String },
    /// A key of `[registry]` that cannot be used.
    #[error("registry.{key}: {reason}")]
    Settings { key: &'static str, reason: String },
}

impl RegistryError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether it concerns what was asked for, and not the registry as a whole.
    pub fn is_about_schema(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Rejected { .. })
    }
}

/// A client of one registry. Its calls block, so that none may come from a thread of an async
/// runtime.
#[derive(Debug)]
pub struct Registry {
    http: Client,
    url: Url,
    username: Option<String>,
    password: Option<config::Secret>,
    token: Option<config::Secret>,
    patience: Duration,
    schemas: FxHashMap<u32, Arc<str>>,
    unknown: FxHashMap<u32, Instant>,
}

impl Registry {
    /// A client; asks nothing yet.
    ///
    /// # Errors
    /// If the address is not one, or the certificate authority cannot be read.
    pub fn new(config: &config::Registry) -> Result<Self, RegistryError> {
        let settings = |key, reason: &dyn fmt::Display| RegistryError::Settings {
            key,
            reason: reason.to_string(),
        };
        let url = Url::parse(&config.url).map_err(|error| settings("url", &error))?;
        if url.cannot_be_a_base() || !matches!(url.scheme(), "http" | "https") {
            return Err(settings("url", &"expected http://host:port or https://host:port"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(settings("url", &"a user belongs into registry.username and .password"));
        }
        let mut http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .user_agent(concat!("contrastream/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let failed = |error: &dyn fmt::Display| {
                settings("ca", &format_args!("{}: {error}", path.display()))
            };
            let pem = fs::read(path).map_err(|error| failed(&error))?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| failed(&error))?;
            if authorities.is_empty() {
                return Err(failed(&"expected a certificate in PEM, found none"));
            }
            for authority in authorities {
                http = http.add_root_certificate(authority);
            }
        }
        Ok(Self {
            http: http.build().map_err(|error| settings("url", &cause(&error)))?,
            url,
            username: config.username.clone(),
            password: config.password.clone(),
            token: config.token.clone(),
            patience: PATIENCE,
            schemas: FxHashMap::default(),
            unknown: FxHashMap::default(),
        })
    }

    /// The Avro schema with this id, as JSON.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] if there is none; [`RegistryError::Rejected`] if it is of another
    /// kind than Avro, or made of several; what keeps the registry from answering otherwise.
    pub fn schema(&mut self, id: u32) -> Result<Arc<str>, RegistryError> {
        if let Some(schema) = self.schemas.get(&id) {
            return Ok(Arc::clone(schema));
        }
        let what = format!("schema with id {id}");
        if self.unknown.get(&id).is_some_and(|asked| asked.elapsed() < UNKNOWN_FOR) {
            return Err(RegistryError::Unknown { url: self.url.to_string(), what });
        }
        let url = self.path(&["schemas", "ids", &id.to_string()]);
        let answer: SchemaAnswer = match self.ask(&what, || self.http.get(url.clone())) {
            Err(error @ RegistryError::Unknown { .. }) => {
                if self.unknown.len() >= MOST_UNKNOWN {
                    self.unknown.clear();
                }
                self.unknown.insert(id, Instant::now());
                return Err(error);
            }
            answer => answer?,
        };
        let rejected = |reason: String| RegistryError::Rejected {
            url: self.url.to_string(),
            what: what.clone(),
            reason,
        };
        if let Some(kind) = answer.kind.filter(|kind| kind != "AVRO") {
            return Err(rejected(format!("expected an Avro schema, found one of {kind}")));
        }
        if !answer.references.is_empty() {
            return Err(rejected("it refers to schemas of other subjects".to_owned()));
        }
        let schema: Arc<str> = answer.schema.into();
        self.schemas.insert(id, Arc::clone(&schema));
        Ok(schema)
    }

    /// Makes `schema` the newest version of `subject`, unless it is one already; returns its id.
    ///
    /// # Errors
    /// [`RegistryError::Rejected`] if the subject's rules forbid it; what keeps the registry from
    /// answering otherwise.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let what = format!("the schema of subject {subject}");
        let url = self.path(&["subjects", subject, "versions"]);
        let answer: IdAnswer =
            self.ask(&what, || self.http.post(url.clone()).json(&SchemaQuestion::avro(schema)))?;
        Ok(answer.id)
    }

    /// The id of `schema`, if it is a version of `subject`.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] if it is none; what keeps the registry from answering otherwise.
    pub fn lookup(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let what = format!("such schema of subject {subject}");
        let url = self.path(&["subjects", subject]);
        let answer: IdAnswer =
            self.ask(&what, || self.http.post(url.clone()).json(&SchemaQuestion::avro(schema)))?;
        Ok(answer.id)
    }

    /// Asks something that every registry answers.
    ///
    /// # Errors
    /// What keeps it from answering.
    pub fn ping(&self) -> Result<(), RegistryError> {
        let url = self.path(&["schemas", "types"]);
        let _: Vec<String> = self.ask("types of schemas", || self.http.get(url.clone()))?;
        Ok(())
    }

    fn path(&self, segments: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Sends a request, again and again where there is no answer, and reads the answer.
    fn ask<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, RegistryError> {
        let begin = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let request = self.authorized(request()).header(reqwest::header::ACCEPT, MEDIA_TYPE);
            let failed = match request.send() {
                Ok(response) => match self.read(what, response) {
                    Err(error) if error.is_retryable() => error,
                    outcome => return outcome,
                },
                Err(error) => self.unreachable(cause(&error)),
            };
            if begin.elapsed() + pause > self.patience {
                return Err(failed);
            }
            tracing::warn!(error = %failed, "schema registry in trouble, trying again");
            thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match (&self.token, &self.username) {
            (Some(token), _) => request.bearer_auth(token.reveal()),
            (None, Some(username)) => {
                request.basic_auth(username, self.password.as_ref().map(config::Secret::reveal))
            }
            (None, None) => request,
        }
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        response: Response,
    ) -> Result<T, RegistryError> {
        let status = response.status();
        let mut body = Vec::new();
        response
            .take(LARGEST_ANSWER)
            .read_to_end(&mut body)
            .map_err(|error| self.unreachable(error.to_string()))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| RegistryError::Answer {
                url: self.url.to_string(),
                what: what.to_owned(),
                expected: "the JSON of a schema registry",
                found: error.to_string(),
            });
        }
        let said: Option<ErrorAnswer> = serde_json::from_slice(&body).ok();
        let code = said.as_ref().map(|said| said.error_code);
        let reason = match said {
            Some(ErrorAnswer { message: Some(message), .. }) => format!("{status}: {message}"),
            _ => status.to_string(),
        };
        let (url, what) = (self.url.to_string(), what.to_owned());
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Refused { url, what, reason }
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                RegistryError::Unreachable { url, reason }
            }
            _ if status.is_server_error() => RegistryError::Unreachable { url, reason },
            // Without the code, it is the path that is wrong.
            StatusCode::NOT_FOUND if code.is_some_and(|code| NOT_FOUND_CODES.contains(&code)) => {
                RegistryError::Unknown { url, what }
            }
            StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
                RegistryError::Rejected { url, what, reason }
            }
            _ => RegistryError::Answer {
                url,
                what,
                expected: "the answer of a schema registry",
                found: reason,
            },
        })
    }

    fn unreachable(&self, reason: String) -> RegistryError {
        RegistryError::Unreachable { url: self.url.to_string(), reason }
    }
}

/// The innermost reason of an error of the HTTP client, which names little but the address itself.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SchemaQuestion<'a> {
    schema: &'a str,
    schema_type: &'static str,
}

impl<'a> SchemaQuestion<'a> {
    fn avro(schema: &'a str) -> Self {
        Self { schema, schema_type: "AVRO" }
    }
}

#[derive(Deserialize)]
struct SchemaAnswer {
    schema: String,
    #[serde(rename = "schemaType")]
    kind: Option<String>,
    #[serde(default)]
    references: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct IdAnswer {
    id: u32,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error_code: i64,
    message: Option<String>,
}

#[cfg(test)]
pub(crate) mod double {
    //! A registry in a thread, for tests.

    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use axum::body::Bytes;
    use axum::http::{HeaderMap, Method, StatusCode, Uri};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    /// One request as it came.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Asked {
        pub request: String,
        pub authorization: Option<String>,
        pub body: String,
    }

    #[derive(Default)]
    struct State {
        schemas: Vec<String>,
        asked: Vec<Asked>,
        /// Answers given before the ordinary ones.
        next: VecDeque<(u16, String)>,
    }

    /// Gives each schema the next id, from 1; keeps no subjects apart.
    pub struct Double {
        pub url: String,
        state: Arc<Mutex<State>>,
        stop: Option<oneshot::Sender<()>>,
        thread: Option<thread::JoinHandle<()>>,
    }

    impl Double {
        pub fn with(schemas: &[&str]) -> Self {
            let state = Arc::new(Mutex::new(State {
                schemas: schemas.iter().map(|schema| (*schema).to_owned()).collect(),
                ..State::default()
            }));
            let (stop, stopped) = oneshot::channel();
            let (tell, told) = std::sync::mpsc::channel();
            let shared = Arc::clone(&state);
            let thread = thread::spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    tell.send(listener.local_addr().unwrap()).unwrap();
                    let router = axum::Router::new().fallback(
                        move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                            let answer = answer(&shared, &method, &uri, &headers, &body);
                            async move { answer }
                        },
                    );
                    tokio::select! {
                        served = axum::serve(listener, router) => served.unwrap(),
                        _ = stopped => {}
                    }
                });
            });
            let url = format!("http://{}/registry", told.recv().unwrap());
            Self { url, state, stop: Some(stop), thread: Some(thread) }
        }

        /// Answers the next request like this.
        pub fn answer_next(&self, status: u16, body: &str) {
            self.state.lock().unwrap().next.push_back((status, body.to_owned()));
        }

        pub fn asked(&self) -> Vec<Asked> {
            self.state.lock().unwrap().asked.clone()
        }
    }

    impl Drop for Double {
        fn drop(&mut self) {
            drop(self.stop.take());
            self.thread.take().unwrap().join().unwrap();
        }
    }

    fn answer(
        state: &Mutex<State>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> (StatusCode, String) {
        let mut state = state.lock().unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let authorization =
            headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let path = uri.path();
        state.asked.push(Asked {
            request: format!("{method} {path}"),
            authorization,
            body: body.clone(),
        });
        if let Some((status, body)) = state.next.pop_front() {
            return (StatusCode::from_u16(status).unwrap(), body);
        }
        let not_found = |code: u32| {
            (StatusCode::NOT_FOUND, format!(r#"{{"error_code":{code},"message":"not found"}}"#))
        };
        let path: Vec<&str> = path.split('/').skip(1).collect();
        let schema = || {
            let question: serde_json::Value = serde_json::from_str(&body).unwrap();
            question["schema"].as_str().unwrap().to_owned()
        };
        let found = |at: usize| (StatusCode::OK, format!(r#"{{"id":{}}}"#, at + 1));
        match path[..] {
            ["registry", "schemas", "types"] => (StatusCode::OK, r#"["AVRO"]"#.to_owned()),
            ["registry", "schemas", "ids", id] => {
                let at = id.parse::<usize>().unwrap().wrapping_sub(1);
                let Some(schema) = state.schemas.get(at) else { return not_found(40403) };
                (StatusCode::OK, serde_json::json!({ "schema": schema }).to_string())
            }
            ["registry", "subjects", _, "versions"] => {
                let schema = schema();
                match state.schemas.iter().position(|known| *known == schema) {
                    Some(at) => found(at),
                    None => {
                        state.schemas.push(schema);
                        found(state.schemas.len() - 1)
                    }
                }
            }
            ["registry", "subjects", _] => {
                let schema = schema();
                let known = state.schemas.iter().position(|known| *known == schema);
                known.map_or_else(|| not_found(40403), found)
            }
            _ => (StatusCode::NOT_FOUND, "no such page".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::double::Double;
    use super::*;
    use crate::config::Secret;

    const SCHEMA: &str = r#"{"type":"record","name":"R","fields":[]}"#;

    fn config(url: &str) -> config::Registry {
        config::Registry {
            url: url.to_owned(),
            username: None,
            password: None,
            token: None,
            ca: None,
            register: true,
        }
    }

    fn client(double: &Double) -> Registry {
        Registry::new(&config(&double.url)).unwrap()
    }

    fn requests(double: &Double) -> Vec<String> {
        double.asked().into_iter().map(|asked| asked.request).collect()
    }

    #[test]
    fn a_schema_is_asked_for_once() {
        let double = Double::with(&[SCHEMA]);
        let mut registry = client(&double);
        for _ in 0..3 {
            assert_eq!(&*registry.schema(1).unwrap(), SCHEMA);
        }
        assert_eq!(requests(&double), ["GET /registry/schemas/ids/1"]);
    }

    #[test]
    fn an_unknown_id_is_about_the_schema_and_not_asked_for_again_at_once() {
        let double = Double::with(&[SCHEMA]);
        let mut registry = client(&double);
        for _ in 0..3 {
            let error = registry.schema(7).unwrap_err();
            assert!(error.is_about_schema() && !error.is_retryable());
            assert_eq!(
                error.to_string(),
                format!("schema registry {} knows no schema with id 7", double.url)
            );
        }
        assert_eq!(requests(&double).len(), 1);
    }

    #[test]
    fn schemas_of_other_kinds_and_of_several_parts_are_not_taken() {
        let double = Double::with(&[]);
        let mut registry = client(&double);
        double.answer_next(200, r#"{"schema":"syntax = \"proto3\";","schemaType":"PROTOBUF"}"#);
        let error = registry.schema(1).unwrap_err();
        assert!(error.is_about_schema());
        assert!(error.to_string().ends_with("expected an Avro schema, found one of PROTOBUF"));

        double.answer_next(
            200,
            r#"{"schema":"{}","references":[{"name":"a","subject":"b","version":1}]}"#,
        );
        let error = registry.schema(2).unwrap_err();
        assert!(error.to_string().ends_with("it refers to schemas of other subjects"));
    }

    #[test]
    fn subjects_are_registered_and_looked_up_whatever_their_names() {
        let double = Double::with(&[]);
        let registry = client(&double);
        let missing = registry.lookup("a/b é-value", SCHEMA).unwrap_err();
        assert!(matches!(missing, RegistryError::Unknown { .. }), "{missing}");
        assert_eq!(registry.register("a/b é-value", SCHEMA).unwrap(), 1);
        assert_eq!(registry.lookup("a/b é-value", SCHEMA).unwrap(), 1);
        assert_eq!(
            requests(&double),
            [
                "POST /registry/subjects/a%2Fb%20%C3%A9-value",
                "POST /registry/subjects/a%2Fb%20%C3%A9-value/versions",
                "POST /registry/subjects/a%2Fb%20%C3%A9-value",
            ]
        );
        let body: serde_json::Value = serde_json::from_str(&double.asked()[1].body).unwrap();
        assert_eq!(body, serde_json::json!({ "schema": SCHEMA, "schemaType": "AVRO" }));
    }

    #[test]
    fn an_incompatible_schema_is_rejected_with_the_registrys_reason() {
        let double = Double::with(&[]);
        double.answer_next(409, r#"{"error_code":409,"message":"READER_FIELD_MISSING"}"#);
        let error = client(&double).register("t-value", SCHEMA).unwrap_err();
        assert!(error.is_about_schema() && !error.is_retryable());
        assert!(error.to_string().contains("subject t-value"), "{error}");
        assert!(error.to_string().contains("READER_FIELD_MISSING"), "{error}");
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let double = Double::with(&[SCHEMA]);
        for status in [500, 503, 429] {
            double.answer_next(status, "busy");
        }
        assert_eq!(&*client(&double).schema(1).unwrap(), SCHEMA);
        assert_eq!(requests(&double).len(), 4);
    }

    #[test]
    fn a_registry_that_is_not_there_is_given_up_in_the_end_and_may_come_back() {
        let url = Double::with(&[]).url.clone();
        let mut registry = Registry::new(&config(&url)).unwrap();
        registry.patience = Duration::from_millis(250);
        let error = registry.schema(1).unwrap_err();
        assert!(error.is_retryable() && !error.is_about_schema(), "{error}");
        assert!(error.to_string().contains(&url), "{error}");
    }

    #[test]
    fn a_refusal_is_not_tried_again() {
        for status in [401, 403] {
            let double = Double::with(&[SCHEMA]);
            double.answer_next(status, r#"{"error_code":40101,"message":"who are you"}"#);
            let error = client(&double).schema(1).unwrap_err();
            assert!(!error.is_retryable() && !error.is_about_schema());
            assert!(error.to_string().contains("who are you"), "{error}");
            assert_eq!(requests(&double).len(), 1);
        }
    }

    #[test]
    fn a_page_that_is_not_the_registrys_is_no_fault_of_a_schema() {
        let double = Double::with(&[SCHEMA]);
        let elsewhere = format!("{}/elsewhere", double.url);
        let error = Registry::new(&config(&elsewhere)).unwrap().schema(1).unwrap_err();
        assert!(matches!(error, RegistryError::Answer { .. }), "{error}");

        double.answer_next(200, "<html>");
        let error = client(&double).schema(1).unwrap_err();
        assert!(matches!(error, RegistryError::Answer { .. }), "{error}");
    }

    #[test]
    fn credentials_go_with_every_request_and_are_shown_nowhere() {
        let double = Double::with(&[SCHEMA]);
        let basic = config::Registry {
            username: Some("ann".to_owned()),
            password: Some(Secret::new("pa:ss")),
            ..config(&double.url)
        };
        let mut registry = Registry::new(&basic).unwrap();
        registry.schema(1).unwrap();
        assert!(!format!("{registry:?}").contains("pa:ss"));

        let bearer = config::Registry { token: Some(Secret::new("tok")), ..basic };
        Registry::new(&bearer).unwrap().ping().unwrap();
        let sent: Vec<_> = double.asked().into_iter().map(|asked| asked.authorization).collect();
        let sent: Vec<_> = sent.iter().map(Option::as_deref).collect();
        assert_eq!(sent, [Some("Basic YW5uOnBhOnNz"), Some("Bearer tok")]);
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        let refused = |config: config::Registry| Registry::new(&config).unwrap_err().to_string();
        assert!(refused(config("nowhere")).starts_with("registry.url: "));
        assert!(refused(config("http://ann:secret@host")).starts_with("registry.url: a user"));
        let file = tempfile::NamedTempFile::new().unwrap();
        for ca in [file.path().to_owned(), "/no/such/file".into()] {
            let named = config::Registry { ca: Some(ca.clone()), ..config("https://host") };
            let reason = refused(named);
            assert!(reason.starts_with(&format!("registry.ca: {}: ", ca.display())), "{reason}");
        }
    }
}
