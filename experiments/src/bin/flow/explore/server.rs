//! HTTP on loopback.
//!
//! Only this machine reaches the page, and only the page reaches the model: a request must name this server as its host, so that
//! no other name can be made to point here, and where a browser says from which page it comes, that must be this one. There are
//! no paths but those below, and none is a file's. Requests are bounded in size, in number and in time.

use super::table::LARGEST_FILE;
use super::worker::Job;
use crate::progress::{Stopped, stopped};
use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use std::future::IntoFuture;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, oneshot};

/// Requests that are read or waited for at a time, at most.
const OPEN: usize = 64;
/// The longest that one may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Ports that are tried for the next free one.
const TRIED: u16 = 100;

/// The files of the page: its address, its type, its text.
pub const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/script.js", "text/javascript; charset=utf-8", include_str!("page/script.js")),
    ("/pictures.js", "text/javascript; charset=utf-8", "// On an exported page: its pictures.\n"),
];

/// Nothing but what this server sends, and pictures that it puts into its answers.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Takes a port of this machine; 0 is any that is free.
///
/// # Errors
/// When it is in use, with the next one that is free.
pub fn listen(port: u16) -> Result<TcpListener> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    match bind(port) {
        Ok(listener) => Ok(listener),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let free = (1..=TRIED).filter_map(|i| port.checked_add(i)).find(|next| bind(*next).is_ok());
            match free {
                Some(next) => bail!("port {port} is in use: say --port {next}, which is free"),
                None => bail!("port {port} is in use: name another with --port"),
            }
        }
        Err(e) => Err(e).with_context(|| format!("--port {port} cannot be opened: name one from 1024 on")),
    }
}

#[derive(Clone)]
struct Shared {
    jobs: Sender<Job>,
    open: Arc<Semaphore>,
    /// The names that this server goes by, with its port.
    hosts: Arc<[String; 2]>,
}

/// Serves the page until Ctrl-C.
///
/// # Errors
/// [`Stopped`] then, or when the network fails.
pub fn serve(listener: TcpListener, jobs: Sender<Job>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served: Result<()> = runtime.block_on(async {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::select! {
            served = axum::serve(listener, router(jobs, address)).into_future() => Ok(served?),
            () = ctrl_c() => Err(Stopped.into()),
        }
    });
    // What is being computed is not waited for.
    runtime.shutdown_background();
    served
}

/// Ends when Ctrl-C was pressed.
async fn ctrl_c() {
    while !stopped() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn router(jobs: Sender<Job>, address: SocketAddr) -> Router {
    let hosts = ["127.0.0.1", "localhost"].map(|name| format!("{name}:{}", address.port()));
    let shared = Shared { jobs, open: Arc::new(Semaphore::new(OPEN)), hosts: Arc::new(hosts) };
    let files = FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { ([(CONTENT_TYPE, kind)], text) }))
    });
    files
        .route("/api/{name}", post(ask))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing here: open /") })
        .layer(DefaultBodyLimit::max(LARGEST_FILE))
        .layer(from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

/// A sentence as an answer.
fn refuse(status: StatusCode, sentence: &str) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], json!({ "error": sentence }).to_string()).into_response()
}

/// Whether a request is of a page of this server.
fn is_own(headers: &HeaderMap, hosts: &[String; 2]) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let ours = |host: &str| hosts.iter().any(|name| name == host);
    let host = text(HOST).is_some_and(ours);
    let origin = text(ORIGIN).is_none_or(|origin| origin.strip_prefix("http://").is_some_and(ours));
    let site = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin" || site == "none");
    host && origin && site
}

async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut response = if length.is_some_and(|length: usize| length > LARGEST_FILE) {
        StatusCode::PAYLOAD_TOO_LARGE.into_response()
    } else if !is_own(request.headers(), &shared.hosts) {
        refuse(
            StatusCode::FORBIDDEN,
            "this page answers to itself only: open it by the address that `flow explore` printed",
        )
    } else if let Ok(_permit) = shared.open.try_acquire() {
        let late = || refuse(StatusCode::GATEWAY_TIMEOUT, "this took too long and was given up");
        tokio::time::timeout(PATIENCE, next.run(request)).await.unwrap_or_else(|_| late())
    } else {
        refuse(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time: wait a moment")
    };
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let said = format!("a request has at most {} MB: give a smaller file", LARGEST_FILE >> 20);
        response = refuse(StatusCode::PAYLOAD_TOO_LARGE, &said);
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

async fn ask(State(shared): State<Shared>, Path(name): Path<String>, body: Bytes) -> Response {
    let (reply, answer) = oneshot::channel();
    match shared.jobs.try_send(Job { name, body: body.to_vec(), reply }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            return refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many pictures were asked for at once: wait a moment",
            );
        }
        Err(TrySendError::Closed(_)) => {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the model has ended: start the command again");
        }
    }
    // Where the browser goes away this is dropped, and with it the request in the queue.
    match answer.await {
        Ok(Ok(json)) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Ok(Err(sentence)) => refuse(StatusCode::BAD_REQUEST, &sentence),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the model has ended: start the command again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_page_may_ask() {
        let hosts = ["127.0.0.1:7860".to_owned(), "localhost:7860".to_owned()];
        let own = |headers: &[(&'static str, &'static str)]| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    (name.parse::<axum::http::HeaderName>().unwrap(), HeaderValue::from_static(value))
                })
                .collect();
            is_own(&headers, &hosts)
        };
        assert!(own(&[("host", "127.0.0.1:7860")]));
        assert!(own(&[
            ("host", "localhost:7860"),
            ("origin", "http://localhost:7860"),
            ("sec-fetch-site", "same-origin")
        ]));
        assert!(!own(&[]));
        assert!(!own(&[("host", "evil.example:7860")]), "another name that points here");
        assert!(!own(&[("host", "127.0.0.1:80")]));
        assert!(!own(&[("host", "127.0.0.1:7860"), ("origin", "http://evil.example")]));
        assert!(!own(&[("host", "127.0.0.1:7860"), ("origin", "null")]));
        assert!(!own(&[("host", "127.0.0.1:7860"), ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn a_used_port_is_named_with_the_next_free_one() {
        let taken = listen(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let said = listen(port).unwrap_err().to_string();
        assert!(said.starts_with(&format!("port {port} is in use")) && said.contains("--port"), "{said}");
    }
}
