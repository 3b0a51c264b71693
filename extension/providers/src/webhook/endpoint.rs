//! `endpoint`: where a webhook posts to. For most providers the whole URL is the secret, so no error quotes
//! it.
//!
//! `orbhook seal` leaves scheme and host in clear, since the address is checked here and both are shown to
//! people, and puts the sealed URL where the path was: `https://hooks.slack.com/sealed:v1:…`.

use url::Url;

use super::keys::Keys;
use super::secret::{MASK, SEALED_BYTES_MAX, is_sealed, masked};
use super::{ConfigError, Current, URL_CHARS_MAX};
use crate::gohighlevel;

const KEY: &str = "endpoint";

pub(super) struct Endpoint {
    /// When sealed, only its scheme, host and port are the real ones.
    url: Url,
    sealed: Option<String>,
}

/// The endpoint given, or `None` when there is none or it comes back masked in an update: as the bare mask,
/// or as the view shows it, with the stored host in clear and the mask for its path.
pub(super) fn read(keys: &Keys<'_>, current: Option<&Current>) -> Result<Option<Endpoint>, ConfigError> {
    let Some(text) = keys.required_text(KEY, SEALED_BYTES_MAX)? else { return Ok(None) };
    if current.is_some_and(|current| is_masked(text, &current.endpoint_host)) {
        return Ok(None);
    }
    if text == MASK {
        return Err(masked(keys, KEY));
    }
    let fault = |fault: &str, hint: Option<&str>| Err(keys.fault(KEY, fault, hint));
    if text.contains(char::is_whitespace) {
        return fault("contains a space", Some("copy the URL again, without spaces"));
    }
    let Ok(url) = Url::parse(text) else {
        return fault("is not a URL", Some("write it whole, as in https://example.com/hook"));
    };
    if !matches!(url.scheme(), "http" | "https") {
        return fault("is not an http or https URL", None);
    }
    if url.host_str().is_none_or(str::is_empty) {
        return fault("has no host", None);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fault(
            "contains a user name or password",
            Some("use headers, as in {\"Authorization\": \"Basic …\"}"),
        );
    }
    if url.fragment().is_some() {
        return fault("has a fragment", Some("leave out the # and what follows; it is never sent"));
    }
    if url.port() == Some(0) {
        return fault("has port 0", None);
    }
    if text.contains(MASK) {
        return fault(
            "contains the mask of a secret",
            Some("give the whole URL, or leave the key out to keep the stored one"),
        );
    }
    let sealed = match url.path().strip_prefix('/') {
        Some(path) if url.query().is_none() && is_sealed(keys, KEY, path)? => Some(path.to_owned()),
        _ if text.chars().count() > URL_CHARS_MAX => return fault("is longer than 2048 characters", None),
        _ => None,
    };
    Ok(Some(Endpoint { url, sealed }))
}

fn is_masked(text: &str, stored_host: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text == MASK
        || rest.and_then(|rest| rest.strip_prefix(stored_host)).and_then(|path| path.strip_prefix('/'))
            == Some(MASK)
}

impl Endpoint {
    pub(super) fn scheme(&self) -> String {
        self.url.scheme().to_owned()
    }

    /// Host, and port unless it is the scheme's own.
    pub(super) fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// The door of HighLevel that this leads to.
    pub(super) fn target(&self) -> &'static str {
        gohighlevel::target_of(&self.url)
    }

    /// The URL to post to, or the sealed one.
    pub(super) fn into_url(mut self, target: Option<&str>) -> String {
        if let Some(sealed) = self.sealed {
            return sealed;
        }
        if target == Some(gohighlevel::API) {
            gohighlevel::complete(&mut self.url);
        }
        self.url.into()
    }
}
