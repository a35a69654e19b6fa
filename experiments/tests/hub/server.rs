//! A hub on loopback: the routes that clients use, over repositories in memory, with xet's own storage server behind them.
//!
//! Whatever a test wants to go wrong is a [`Fault`] on the requests it names.

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use base64::Engine;
use http_body::Frame;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use xet_client::cas_client::{DeletionControlableClient, DirectAccessClient, LocalServer, MemoryClient};
use xet_runtime::core::XetContext;

/// May read and write everything.
pub const WRITER: &str = "hf_writer";
/// May read everything.
pub const READER: &str = "hf_reader";

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum How {
    /// This answer, with this body; the request is not carried out.
    Status(u16, &'static str),
    /// As `Status`, with a header.
    With(u16, &'static str, &'static str),
    /// Carried out, and then this answer.
    Lost(u16),
    /// No answer, ever.
    Silent,
    /// Carried out after a while.
    Slow(Duration),
    /// A whole answer, whose content is the first half.
    Half,
    /// An answer that breaks off.
    Broken,
    /// An answer that stops half-way and neither goes on nor ends.
    Stalled,
    /// An answer with one bit the other way round.
    Flipped,
}

/// Requests that go wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Their method.
    pub method: &'static str,
    /// A part of their path.
    pub path: &'static str,
    /// How many of them.
    pub times: usize,
    /// What happens to them.
    pub how: How,
}

/// Where the storage's tokens send clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// To the storage.
    Alive,
    /// To a port where nobody listens.
    Refusing,
    /// To a port where nobody answers.
    Silent,
}

#[derive(Clone)]
struct Entry {
    bytes: Bytes,
    /// The SHA-256, of a large file.
    large: Option<String>,
    /// The storage's hash of it.
    xet: Option<String>,
}

impl Entry {
    fn object(&self) -> String {
        let blob = |bytes: &[u8]| {
            hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
        };
        match &self.large {
            None => blob(&self.bytes),
            Some(oid) => {
                let size = self.bytes.len();
                blob(
                    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n")
                        .as_bytes(),
                )
            }
        }
    }

    fn etag(&self) -> String {
        self.large.clone().unwrap_or_else(|| self.object())
    }

    fn listing(&self, path: &str) -> Value {
        let mut entry =
            json!({ "type": "file", "oid": self.object(), "size": self.bytes.len(), "path": path });
        if let Some(oid) = &self.large {
            entry["lfs"] = json!({ "oid": oid, "size": self.bytes.len(), "pointerSize": 134 });
            entry["xetHash"] = self.xet.clone().into();
        }
        entry
    }
}

type Tree = BTreeMap<String, Entry>;

#[derive(Default)]
struct Repo {
    private: bool,
    refs: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    commits: BTreeMap<String, Tree>,
}

impl Repo {
    fn commit(&self, revision: &str) -> Option<(String, &Tree)> {
        let sha =
            self.refs.get(revision).or_else(|| self.tags.get(revision)).map_or(revision, String::as_str);
        Some((sha.to_owned(), self.commits.get(sha)?))
    }

    fn add(&mut self, branch: &str, tree: Tree) -> String {
        let seed = format!("{} {branch} {:?}", self.commits.len(), tree.keys());
        let sha = hex(&Sha1::digest(seed));
        self.commits.insert(sha.clone(), tree);
        self.refs.insert(branch.to_owned(), sha.clone());
        sha
    }
}

struct Shared {
    endpoint: String,
    repos: Mutex<BTreeMap<String, Repo>>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<String>>,
    storage: Mutex<Storage>,
    client: Arc<MemoryClient>,
    alive: String,
    silent: String,
}

/// The hub, until it is dropped.
pub struct TestHub {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    runtime: Option<Runtime>,
    /// Takes connections and leaves them.
    _silent: TcpListener,
}

impl TestHub {
    /// Starts it, empty.
    pub fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (front, back, silent) = (bind(), bind(), bind());
        let at = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let client = runtime.block_on(async { MemoryClient::new(XetContext::default().unwrap()) });
        let shared = Arc::new(Shared {
            endpoint: at(&front),
            repos: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            storage: Mutex::new(Storage::Alive),
            client: client.clone(),
            alive: at(&back),
            silent: at(&silent),
        });
        let port = back.local_addr().unwrap().port();
        let storage = LocalServer::from_client(client.clone(), Some(client), "127.0.0.1".to_owned(), port);
        let state = shared.clone();
        runtime.spawn(async move {
            back.set_nonblocking(true).unwrap();
            let back = tokio::net::TcpListener::from_std(back).unwrap();
            storage.serve_until_stopped(back, stopped).await.unwrap();
        });
        runtime.spawn(async move {
            front.set_nonblocking(true).unwrap();
            let front = tokio::net::TcpListener::from_std(front).unwrap();
            let app = axum::Router::new().fallback(answer).with_state(state);
            axum::serve(front, app).await.unwrap();
        });
        Self { shared, stop: Some(stop), runtime: Some(runtime), _silent: silent }
    }

    /// Its address.
    pub fn endpoint(&self) -> &str {
        &self.shared.endpoint
    }

    /// Has requests go wrong from now on.
    pub fn fault(&self, method: &'static str, path: &'static str, times: usize, how: How) {
        self.shared.faults.lock().unwrap().push(Fault { method, path, times, how });
    }

    /// Has all go well again.
    pub fn heal(&self) {
        self.shared.faults.lock().unwrap().clear();
        self.storage(Storage::Alive);
        self.slow_storage(None);
    }

    /// Where the storage's tokens send clients from now on.
    pub fn storage(&self, storage: Storage) {
        *self.shared.storage.lock().unwrap() = storage;
    }

    /// Has the storage take its time for each request.
    pub fn slow_storage(&self, delay: Option<Duration>) {
        self.shared.client.set_api_delay_range(delay.map(|d| d..d + Duration::from_millis(1)));
    }

    /// The requests so far: method, path, status.
    pub fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Waits until a request with this method and part of the path has come in.
    pub fn wait_for(&self, request: &str) {
        let (method, path) = request.split_once(' ').unwrap();
        for _ in 0..600 {
            if self.log().iter().any(|line| line.starts_with(method) && line.contains(path)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no {request} in {:#?}", self.log());
    }

    /// Whether a repository is private, or `None` where there is none.
    pub fn private(&self, id: &str) -> Option<bool> {
        self.shared.repos.lock().unwrap().get(id).map(|repo| repo.private)
    }

    /// The names of a revision's files.
    pub fn files(&self, id: &str, revision: &str) -> Vec<String> {
        let repos = self.shared.repos.lock().unwrap();
        repos
            .get(id)
            .and_then(|r| r.commit(revision))
            .map_or(vec![], |(_, tree)| tree.keys().cloned().collect())
    }

    /// How many commits a repository has.
    pub fn commits(&self, id: &str) -> usize {
        self.shared.repos.lock().unwrap().get(id).map_or(0, |repo| repo.commits.len())
    }

    /// The commit of a revision.
    pub fn commit(&self, id: &str, revision: &str) -> Option<String> {
        self.shared.repos.lock().unwrap().get(id)?.commit(revision).map(|(sha, _)| sha)
    }

    /// Puts a small file into the branch `main`, in a commit of its own.
    pub fn put(&self, id: &str, name: &str, bytes: &[u8]) {
        let mut repos = self.shared.repos.lock().unwrap();
        let repo = repos.get_mut(id).unwrap();
        let mut tree = repo.commit("main").unwrap().1.clone();
        tree.insert(name.to_owned(), Entry { bytes: bytes.to_vec().into(), large: None, xet: None });
        repo.add("main", tree);
    }

    /// Makes a data set, whose id begins with `datasets/`, of small files on a branch.
    pub fn data_set(&self, id: &str, branch: &str, files: &[(&str, &[u8])]) {
        let entry = |bytes: &[u8]| Entry { bytes: bytes.to_vec().into(), large: None, xet: None };
        let tree = files.iter().map(|(name, bytes)| ((*name).to_owned(), entry(bytes))).collect();
        let mut repo = Repo::default();
        repo.add(branch, tree);
        self.shared.repos.lock().unwrap().insert(id.to_owned(), repo);
    }

    /// Takes a file out of the branch `main`, in a commit of its own.
    pub fn remove(&self, id: &str, name: &str) {
        let mut repos = self.shared.repos.lock().unwrap();
        let repo = repos.get_mut(id).unwrap();
        let mut tree = repo.commit("main").unwrap().1.clone();
        tree.remove(name).unwrap();
        repo.add("main", tree);
    }
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.stop.take().unwrap().send(()).ok();
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn decode(segment: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), segment.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'%', [a, b, more @ ..]) => {
                let pair = [*a, *b];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&pair).unwrap(), 16).unwrap());
                rest = more;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

type Answer = Response<Body>;

fn reply(status: u16, body: impl Into<Body>) -> Answer {
    Response::builder().status(status).body(body.into()).unwrap()
}

fn data(value: &Value) -> Answer {
    let mut answer = reply(200, value.to_string());
    answer.headers_mut().insert("content-type", "application/json".parse().unwrap());
    answer
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let mut answer = reply(status, json!({ "error": message }).to_string());
    answer.headers_mut().insert("x-error-code", code.parse().unwrap());
    answer.headers_mut().insert("x-error-message", message.parse().unwrap());
    answer
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        let hit =
            faults.iter_mut().find(|f| f.times > 0 && f.method == method.as_str() && path.contains(f.path));
        hit.map(|fault| {
            fault.times -= 1;
            fault.how.clone()
        })
    };
    let note = |status: StatusCode| {
        shared.log.lock().unwrap().push(format!("{method} {path} {}", status.as_u16()));
    };
    match &fault {
        Some(How::Status(status, body)) => {
            note(StatusCode::from_u16(*status).unwrap());
            return reply(*status, *body);
        }
        Some(How::With(status, name, value)) => {
            note(StatusCode::from_u16(*status).unwrap());
            let mut answer = reply(*status, "");
            answer.headers_mut().insert(*name, value.parse().unwrap());
            return answer;
        }
        Some(How::Silent) => {
            note(StatusCode::PROCESSING);
            std::future::pending::<()>().await;
        }
        Some(How::Slow(wait)) => {
            note(StatusCode::PROCESSING);
            tokio::time::sleep(*wait).await;
        }
        _ => {}
    }
    let headers = request.headers().clone();
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let good = route(&shared, &method, &path, &headers, &body).await;
    note(good.status());
    let (mut parts, body) = good.into_parts();
    match fault {
        Some(How::Lost(status)) => reply(status, ""),
        Some(how @ (How::Half | How::Broken | How::Stalled | How::Flipped)) => {
            let mut bytes = to_bytes(body, usize::MAX).await.unwrap().to_vec();
            let half = bytes.len() / 2;
            match how {
                How::Half => {
                    bytes.truncate(half);
                    parts.headers.remove("content-length");
                }
                How::Broken | How::Stalled => {
                    bytes.truncate(half);
                    let long = if matches!(how, How::Broken) { 100 } else { 1_000_000 };
                    let wait = Box::pin(tokio::time::sleep(Duration::from_millis(long)));
                    return Response::from_parts(parts, Body::new(Torn { half: Some(bytes.into()), wait }));
                }
                _ => bytes[half] ^= 1,
            }
            Response::from_parts(parts, bytes.into())
        }
        _ => Response::from_parts(parts, body),
    }
}

/// A body that ends in an error, upon which the connection is closed; not before what was sent has arrived.
struct Torn {
    half: Option<Bytes>,
    wait: Pin<Box<Sleep>>,
}

impl HttpBody for Torn {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.half.take() {
            Some(half) => Poll::Ready(Some(Ok(Frame::data(half)))),
            None => self.wait.as_mut().poll(context).map(|()| Some(Err(std::io::Error::other("torn")))),
        }
    }
}

async fn route(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: &Bytes,
) -> Answer {
    let segments: Vec<String> = path.split('/').skip(1).map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let token =
        headers.get("authorization").and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    if token.is_some_and(|token| token != WRITER && token != READER) {
        return error(401, "", "Invalid credentials in Authorization header");
    }
    if let ["cdn", oid] = segments[..] {
        let repos = shared.repos.lock().unwrap();
        let found = repos.values().flat_map(|r| r.commits.values()).flat_map(BTreeMap::values);
        let found = found.into_iter().find(|e| e.large.as_deref() == Some(oid)).cloned();
        return found.map_or_else(|| reply(404, ""), |entry| content(&entry, headers, method));
    }
    if segments[..] == ["api", "validate-yaml"] {
        return data(&json!({ "errors": [], "warnings": [] }));
    }
    let json_body = || serde_json::from_slice::<Value>(body).unwrap_or_default();
    if segments[..] == ["api", "repos", "create"] {
        if token != Some(WRITER) {
            let status = if token.is_some() { 403 } else { 401 };
            return error(status, "", "You don't have the rights to create a model under this namespace");
        }
        let body = json_body();
        let id = format!(
            "{}/{}",
            body["organization"].as_str().unwrap_or("writer"),
            body["name"].as_str().unwrap()
        );
        let url = json!({ "url": format!("{}/{id}", shared.endpoint) });
        let mut repos = shared.repos.lock().unwrap();
        if repos.contains_key(&id) {
            let mut answer =
                data(&json!({ "error": "You already created this model repo", "url": url["url"] }));
            *answer.status_mut() = StatusCode::CONFLICT;
            return answer;
        }
        let mut repo =
            Repo { private: body["private"] == true || body["visibility"] == "private", ..Repo::default() };
        let attributes =
            Entry { bytes: Bytes::from_static(b"*.safetensors filter=lfs\n"), large: None, xet: None };
        repo.add("main", BTreeMap::from([(".gitattributes".to_owned(), attributes)]));
        repos.insert(id, repo);
        return data(&url);
    }
    let (id, rest): (String, &[&str]) = match &segments[..] {
        ["api", "models", owner, name, rest @ ..] => (format!("{owner}/{name}"), rest),
        ["api", "datasets", owner, name, rest @ ..] | ["datasets", owner, name, rest @ ..] => {
            (format!("datasets/{owner}/{name}"), rest)
        }
        [owner, name, rest @ ..] => (format!("{owner}/{}", name.trim_end_matches(".git")), rest),
        _ => return reply(404, ""),
    };
    let visible = {
        let repos = shared.repos.lock().unwrap();
        repos.get(&id).is_some_and(|repo| !repo.private || token.is_some())
    };
    if !visible {
        // Whoever is not known is not told whether there is a private one.
        return match token {
            Some(_) => error(404, "RepoNotFound", "Repository not found"),
            None => error(401, "RepoNotFound", "Invalid username or password."),
        };
    }
    if method == Method::POST && !matches!(rest, ["paths-info", _]) && token != Some(WRITER) {
        return error(403, "", "you must use a write token");
    }
    if let ["commit", branch] = rest {
        return commit(shared, &id, branch, body).await;
    }
    let mut repos = shared.repos.lock().unwrap();
    let repo = repos.get_mut(&id).unwrap();
    if let [kind @ ("xet-read-token" | "xet-write-token"), _] = rest {
        let storage = match *shared.storage.lock().unwrap() {
            Storage::Alive => shared.alive.clone(),
            Storage::Refusing => "http://127.0.0.1:9".to_owned(),
            Storage::Silent => shared.silent.clone(),
        };
        let until = 4_000_000_000_u64;
        let mut answer = data(&json!({ "accessToken": kind, "exp": until, "casUrl": storage }));
        let headers = [
            ("x-xet-cas-url", storage),
            ("x-xet-access-token", (*kind).to_owned()),
            ("x-xet-token-expiration", until.to_string()),
        ];
        for (name, value) in headers {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        return answer;
    }
    let revision = match rest {
        [] => "main",
        ["revision" | "tree" | "paths-info" | "preupload" | "resolve" | "tag", revision, ..] => revision,
        ["info", "lfs", "objects", "batch"] => {
            let objects = json_body()["objects"].clone();
            return data(&json!({ "transfer": "xet", "objects": objects }));
        }
        ["refs"] => {
            let list = |refs: &BTreeMap<String, String>, kind: &str| -> Vec<Value> {
                let one = |(name, sha): (&String, &String)| json!({ "name": name, "ref": format!("refs/{kind}/{name}"), "targetCommit": sha });
                refs.iter().map(one).collect()
            };
            return data(
                &json!({ "branches": list(&repo.refs, "heads"), "tags": list(&repo.tags, "tags"), "converts": [] }),
            );
        }
        ["branch", branch] => {
            if repo.refs.contains_key(*branch) {
                return error(409, "", "Reference already exists");
            }
            let main = repo.refs["main"].clone();
            repo.refs.insert((*branch).to_owned(), main);
            return reply(200, "");
        }
        _ => return reply(404, ""),
    };
    let Some((sha, tree)) = repo.commit(revision).map(|(sha, tree)| (sha, tree.clone())) else {
        return error(404, "RevisionNotFound", "Invalid rev id");
    };
    match rest {
        [] | ["revision", _] => {
            let siblings: Vec<Value> = tree.keys().map(|path| json!({ "rfilename": path })).collect();
            data(
                &json!({ "_id": "0", "id": id, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings }),
            )
        }
        ["tree", ..] => data(&tree.iter().map(|(path, entry)| entry.listing(path)).collect()),
        ["paths-info", _] => {
            let wanted = json_body()["paths"].clone();
            let wanted = wanted.as_array().cloned().unwrap_or_default();
            let found = tree.iter().filter(|(path, _)| wanted.contains(&json!(path)));
            data(&found.map(|(path, entry)| entry.listing(path)).collect())
        }
        ["preupload", _] => {
            let files = json_body()["files"].clone();
            let mode = |file: &Value| {
                let path = file["path"].as_str().unwrap();
                let large = [".safetensors", ".png"].iter().any(|end| path.ends_with(end));
                json!({ "path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false })
            };
            data(&json!({ "files": files.as_array().unwrap().iter().map(mode).collect::<Vec<_>>() }))
        }
        ["tag", _] => {
            let tag = json_body()["tag"].as_str().unwrap().to_owned();
            if repo.tags.contains_key(&tag) {
                return error(409, "", "Tag reference exists already");
            }
            repo.tags.insert(tag, sha);
            reply(200, "")
        }
        ["resolve", _, file @ ..] => {
            let Some(entry) = tree.get(&file.join("/")) else {
                let mut answer = error(404, "EntryNotFound", "Entry not found");
                answer.headers_mut().insert("x-repo-commit", sha.parse().unwrap());
                return answer;
            };
            let mut answer = match &entry.large {
                None => content(entry, headers, method),
                // Large files come from elsewhere, where nobody knows of commits.
                Some(oid) => {
                    let mut answer = reply(302, "");
                    let at = format!("{}/cdn/{oid}", shared.endpoint);
                    answer.headers_mut().insert("location", at.parse().unwrap());
                    answer.headers_mut().insert("x-linked-etag", format!("\"{oid}\"").parse().unwrap());
                    answer
                }
            };
            let mut set = |name: &'static str, value: String| {
                answer.headers_mut().insert(name, value.parse().unwrap());
            };
            set("x-repo-commit", sha.clone());
            set("x-linked-size", entry.bytes.len().to_string());
            if let Some(xet) = &entry.xet {
                set("x-xet-hash", xet.clone());
                set(
                    "x-xet-refresh-route",
                    format!("{}/api/models/{id}/xet-read-token/{sha}", shared.endpoint),
                );
            }
            answer
        }
        _ => reply(404, ""),
    }
}

/// A file's bytes, or the range that is asked for.
fn content(entry: &Entry, headers: &HeaderMap, method: &Method) -> Answer {
    let etag = format!("\"{}\"", entry.etag());
    if headers.get("if-none-match").is_some_and(|v| v.to_str().ok() == Some(&etag)) {
        return Response::builder().status(304).header("etag", etag).body(Body::empty()).unwrap();
    }
    let range = headers.get("range").and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let number = |text: &str| text.parse::<usize>().ok();
    let whole = entry.bytes.len();
    let from = range.and_then(|(from, _)| number(from)).unwrap_or(0).min(whole);
    let to = range.and_then(|(_, to)| number(to)).map_or(whole, |to| (to + 1).min(whole));
    let part = entry.bytes.slice(from..to.max(from));
    let mut answer = Response::builder()
        .status(if range.is_some() { 206 } else { 200 })
        .header("etag", etag)
        .header("accept-ranges", "bytes")
        .header("content-length", part.len());
    if range.is_some() {
        answer = answer.header("content-range", format!("bytes {from}-{}/{whole}", to.max(1) - 1));
    }
    answer.body(if method == Method::HEAD { Body::empty() } else { part.into() }).unwrap()
}

/// Carries out a commit, or none of it.
async fn commit(shared: &Arc<Shared>, id: &str, branch: &str, body: &Bytes) -> Answer {
    // What the storage has, by its SHA-256.
    let mut stored = BTreeMap::new();
    for (hash, _) in shared.client.list_file_shard_entries().await.unwrap() {
        let bytes = shared.client.get_file_data(&hash, None).await.unwrap();
        stored.insert(hex(&Sha256::digest(&bytes)), (hash.to_string(), bytes));
    }
    let mut repos = shared.repos.lock().unwrap();
    let repo = repos.get_mut(id).unwrap();
    let Some(head) = repo.refs.get(branch).cloned() else {
        return error(404, "RevisionNotFound", "Invalid rev id");
    };
    let mut tree = repo.commits[&head].clone();
    for line in body.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).unwrap();
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str().unwrap() {
            "header" => {
                if value["parentCommit"].as_str().is_some_and(|parent| parent != head) {
                    return error(412, "", "A commit has happened since. Please refresh and try again.");
                }
            }
            "file" => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(value["content"].as_str().unwrap())
                    .unwrap();
                tree.insert(path, Entry { bytes: bytes.into(), large: None, xet: None });
            }
            "lfsFile" => {
                let oid = value["oid"].as_str().unwrap().to_owned();
                let Some((xet, bytes)) = stored.get(&oid).cloned() else {
                    return error(400, "", "LFS pointer pointed to a file that does not exist");
                };
                tree.insert(path, Entry { bytes, large: Some(oid), xet: Some(xet) });
            }
            "deletedFile" => drop(tree.remove(&path)),
            other => panic!("a commit with {other}"),
        }
    }
    let sha = repo.add(branch, tree);
    let url = format!("{}/{id}/commit/{sha}", shared.endpoint);
    data(&json!({ "success": true, "commitOid": sha, "commitUrl": url, "hookOutput": "" }))
}
