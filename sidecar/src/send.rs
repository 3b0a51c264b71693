//! One attempt: sign, POST, read a bounded answer. Knows HTTP, and nothing of providers, retries or the database.
//!
//! Infallible on purpose: a refused connection is a fact about the endpoint, not an error of this program.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use reqwest::{
    Method, Request, Response,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use crate::{
    campaign,
    clean::clean,
    client::HttpClient,
    delivery::{Answer, Delivery, ErrorClass, Fault, Finished, HeaderTemplate, Outcome, Secrets, Wire},
    dial::{self, Trace},
    fault::{self, Phase},
    redact::Redactor,
    sign::sign,
};

/// Read of a response's body before the connection is dropped.
const BODY_READ_BYTES_MAX: usize = 64 * 1024;

/// Kept of it for the attempt's record.
const BODY_RECORDED_BYTES_MAX: usize = 16 * 1024;

/// Response headers worth keeping: what decides a retry, and what a person asks the endpoint's operator about.
const HEADERS_RECORDED: [&str; 5] = ["retry-after", "date", "content-type", "location", "server"];
const HEADER_PREFIXES_RECORDED: [&str; 2] = ["x-ratelimit-", "x-slack-"];
const HEADERS_RECORDED_MAX: usize = 32;
const HEADER_RECORDED_BYTES_MAX: usize = 1024;

/// Headers that frame the request; a template that sets one would make the receiver read other bytes than were signed.
const HEADERS_RESERVED: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];

/// POSTs the delivery. `unix_seconds` is the wall clock for `webhook-timestamp`.
///
/// Ends within the delivery's timeout, whatever the endpoint does.
pub(crate) async fn send(http: &HttpClient, delivery: &Delivery, unix_seconds: i64) -> Finished {
    let started = Instant::now();
    let deadline = started + delivery.timeout;
    let trace = Arc::new(Trace::default());
    let mut wire = Wire::default();
    let outcome = match build_request(http, delivery, unix_seconds) {
        Err(fault) => Outcome::Unanswered(fault),
        Ok(request) => {
            let port = request.url().port_or_known_default().unwrap_or(0);
            if let Some(ip) = literal_address(request.url()) {
                trace.set_address(ip);
            }
            let exchange = exchange(http, request, delivery, deadline, &trace, &mut wire);
            let exchanged = dial::traced(Arc::clone(&trace), exchange).await;
            let dialled = trace.dialled();
            wire.address = wire.address.or_else(|| dialled.address(port));
            wire.connect = dialled.connect;
            match exchanged {
                Ok(answer) => Outcome::Answered(answer),
                Err(fault) => Outcome::Unanswered(fault),
            }
        }
    };
    Finished { ticket: delivery.ticket, started, duration: started.elapsed(), outcome, wire }
}

async fn exchange(
    http: &HttpClient,
    request: Request,
    delivery: &Delivery,
    deadline: Instant,
    trace: &Trace,
    wire: &mut Wire,
) -> Result<Answer, Fault> {
    let started = Instant::now();
    let timeout_seconds = delivery.timeout.as_secs_f64();
    let phase = || if trace.dialled().is_unfinished() { Phase::Connect } else { Phase::FirstByte };
    let mut response = match timeout_at(deadline, http.client.execute(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(fault::classify(&error.without_url(), phase(), timeout_seconds)),
        Err(_) => return Err(fault::timed_out(phase(), timeout_seconds)),
    };
    wire.first_byte = Some(started.elapsed());
    wire.address = response.remote_addr();

    let status = response.status().as_u16();
    let phase = Phase::Body { status };
    let redactor = Redactor::new(&delivery.secrets);
    let headers = record_headers(response.headers(), &redactor);
    let (body, unread) = match timeout_at(deadline, read_body(&mut response)).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return Err(fault::classify(&error.without_url(), phase, timeout_seconds)),
        Err(_) => return Err(fault::timed_out(phase, timeout_seconds)),
    };
    let body = redactor.redact(String::from_utf8_lossy(&body));
    let (body, cut) = clean(body.as_bytes(), BODY_RECORDED_BYTES_MAX);
    Ok(Answer { status, headers, body, body_cut: cut || unread })
}

/// The body up to the limit, and whether there was more. Dropping the response then closes the connection.
async fn read_body(response: &mut Response) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = BODY_READ_BYTES_MAX - body.len();
        if chunk.len() > room {
            body.extend(chunk.iter().take(room));
            return Ok((body, true));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, false))
}

fn record_headers(headers: &HeaderMap, redactor: &Redactor) -> BTreeMap<String, String> {
    headers
        .keys()
        .map(HeaderName::as_str)
        .filter(|name| {
            HEADERS_RECORDED.contains(name)
                || HEADER_PREFIXES_RECORDED.iter().any(|prefix| name.starts_with(prefix))
        })
        .take(HEADERS_RECORDED_MAX)
        .filter_map(|name| {
            let value = redactor.redact(String::from_utf8_lossy(headers.get(name)?.as_bytes()));
            let (value, _) = clean(value.as_bytes(), HEADER_RECORDED_BYTES_MAX);
            Some((name.to_owned(), value))
        })
        .collect()
}

fn build_request(http: &HttpClient, delivery: &Delivery, unix_seconds: i64) -> Result<Request, Fault> {
    let endpoint = delivery.secrets.get("endpoint").ok_or_else(|| {
        Fault::new(ErrorClass::Secret, "the webhook has no endpoint; set one with orbhook_update_webhook")
    })?;
    let url = http.policy.check_url(endpoint).map_err(|refused| {
        let reason = format!("{refused}; open its network with --allow-network if that is meant");
        Fault::new(ErrorClass::AddressBlocked, reason)
    })?;
    let mut request = Request::new(Method::POST, url);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for template in &delivery.headers {
        let (name, value) = fill(template, &delivery.secrets)?;
        headers.insert(name, value);
    }
    sign_request(headers, delivery, unix_seconds)?;
    campaign::mark(headers, delivery.ticket);
    *request.timeout_mut() = Some(delivery.timeout);
    *request.body_mut() = Some(delivery.body.clone().into());
    Ok(request)
}

fn fill(template: &HeaderTemplate, secrets: &Secrets) -> Result<(HeaderName, HeaderValue), Fault> {
    let header = &template.name;
    let name = HeaderName::try_from(header.as_str())
        .ok()
        .filter(|name| !HEADERS_RESERVED.contains(&name.as_str()))
        .ok_or_else(|| Fault::new(ErrorClass::Internal, format!("{header:?} cannot be set as a header")))?;
    let secret = match &template.secret {
        None => "",
        Some(secret) => secrets.get(secret).ok_or_else(|| {
            let reason =
                format!("header {header} needs the secret {secret:?}, which the webhook does not have");
            Fault::new(ErrorClass::Secret, reason)
        })?,
    };
    let mut value = HeaderValue::try_from(format!("{}{secret}", template.prefix)).map_err(|_| {
        let reason = format!("the value of header {header} holds characters that a header cannot carry");
        Fault::new(ErrorClass::Secret, reason)
    })?;
    value.set_sensitive(template.secret.is_some());
    Ok((name, value))
}

fn sign_request(headers: &mut HeaderMap, delivery: &Delivery, unix_seconds: i64) -> Result<(), Fault> {
    let id = delivery.ticket.delivery.to_string();
    let current = delivery.secrets.get("signing").ok_or_else(|| {
        let reason = "the webhook has no signing secret; make one with orbhook_rotate_secret";
        Fault::new(ErrorClass::Secret, reason)
    })?;
    let secrets = [Some(current), delivery.secrets.get("signing.previous")].into_iter().flatten();
    let signature = sign(secrets, &id, unix_seconds, delivery.body.as_bytes()).map_err(|bad| {
        Fault::new(ErrorClass::Secret, format!("{bad}; set another with orbhook_rotate_secret"))
    })?;
    let values = [
        ("webhook-id", id),
        ("webhook-timestamp", unix_seconds.to_string()),
        ("webhook-signature", signature),
    ];
    for (name, value) in values {
        headers.remove(name);
        let value = HeaderValue::try_from(value)
            .map_err(|_| Fault::new(ErrorClass::Internal, format!("{name} cannot be set as a header")))?;
        headers.insert(name, value);
    }
    Ok(())
}

fn literal_address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
        Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
        Host::Domain(_) => None,
    }
}

#[cfg(test)]
mod tests;
