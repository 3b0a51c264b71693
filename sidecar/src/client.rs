//! The HTTP client: every option that decides what goes over the wire, spelled out.

use std::{sync::Arc, time::Duration};

use orbhook_address::Policy;
use reqwest::{Client, header, redirect, retry};

use crate::{
    campaign::{self, Bug},
    dial::TraceLayer,
    resolve::{Lookup, PolicyResolver},
};

pub(crate) const USER_AGENT: &str = concat!("orbhook/", env!("CARGO_PKG_VERSION"));

/// DNS, TCP and TLS together. A receiver that needs longer to say hello is down.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a kept connection may be idle. Under the 5 s after which Node.js, the most common receiver, closes its side:
/// a request sent into a connection that is just being closed is a failed attempt.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

const KEEPALIVE: Duration = Duration::from_secs(5);

/// Response headers of HTTP/2, in bytes. HTTP/1 has its limit in hyper: 100 headers, about 400 KiB.
const H2_HEADERS_BYTES_MAX: u32 = 64 * 1024;

/// HTTP/2 flow control, in bytes: a little over what is read of a body, so that an endless one is not buffered.
const H2_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// A client and the policy it dials under. One client per policy: a pool shared by two would let a request of the strict one
/// travel over a connection that the other one opened.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    pub(crate) policy: Arc<Policy>,
    pub(crate) client: Client,
}

impl HttpClient {
    /// `connections_max`: idle connections kept per host; as many as may be in flight, or they would be closed and opened again
    /// with every batch.
    pub(crate) fn new(
        policy: Policy,
        lookup: Arc<dyn Lookup>,
        tls: rustls::ClientConfig,
        connections_max: usize,
    ) -> Result<HttpClient, reqwest::Error> {
        let policy = Arc::new(policy);
        let mut headers = header::HeaderMap::new();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static("*/*"));
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(headers)
            // What is checked is what is dialled: our resolver, no proxy from the environment, no way elsewhere by redirect.
            .dns_resolver(PolicyResolver::new(Arc::clone(&policy), lookup))
            .no_proxy()
            .redirect(redirects())
            .referer(false)
            // An attempt is one request. When to try again is decided in SQL.
            .retry(retry::never())
            .https_only(false)
            .tls_backend_preconfigured(tls)
            .tls_info(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .connector_layer(TraceLayer)
            .connection_verbose(false)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(connections_max)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(3)
            .http1_allow_obsolete_multiline_headers_in_responses(false)
            .http1_ignore_invalid_headers_in_responses(false)
            .http1_allow_spaces_after_header_name_in_responses(false)
            .http2_adaptive_window(false)
            .http2_initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .http2_max_header_list_size(H2_HEADERS_BYTES_MAX)
            .http2_keep_alive_interval(None)
            .build()
            .map_err(reqwest::Error::without_url)?;
        Ok(HttpClient { policy, client })
    }
}

/// Never followed: the body was signed for its endpoint, and the next address was checked by nobody.
fn redirects() -> redirect::Policy {
    match campaign::has(Bug::RedirectFollowed) {
        true => redirect::Policy::limited(1),
        false => redirect::Policy::none(),
    }
}
