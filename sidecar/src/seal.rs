//! `orbhook seal`: seals a secret on this machine, so that no statement and no log of the server ever holds it.

use std::io::Read;

use orbhook_seal::{PublicKey, seal as seal_secret};
use reqwest::header::HeaderValue;
use url::Url;
use zeroize::Zeroizing;

use crate::{
    arguments::SealArguments,
    db::Connector,
    error::{DatabaseError, Error},
    sign::sign,
};

/// What the configuration object calls a secret, up to 4 KiB as a header's value.
const SECRET_BYTES_MAX: u64 = 4096;

/// Reads the secret from `input` and returns what to give `orbhook_update_webhook` in its stead.
pub async fn seal(arguments: SealArguments, input: impl Read) -> Result<String, Error> {
    let secret = read_secret(input)?;
    let name = stored_name(&arguments.secret)?;
    let shown = check(&name, &secret)?;
    let key = match arguments.public_key {
        Some(key) => key.parse().map_err(|error| Error::PublicKey(format!("--public-key {error}")))?,
        None => installed_key(&Connector::new(&arguments.database.parse()?)?).await?,
    };
    let sealed = seal_secret(&key, arguments.webhook, &name, &secret)
        .ok_or_else(|| Error::Secret("is too large to be sealed".to_owned()))?;
    Ok(format!("{shown}{sealed}"))
}

/// The public key that the database seals with.
pub(crate) async fn installed_key(connector: &Connector) -> Result<PublicKey, Error> {
    let (db, _) = connector.connect().await?;
    let rows = db.query("SELECT orbhook.sealing_key()", &[]).await?;
    db.close().await;
    let text = rows
        .first()
        .ok_or_else(|| DatabaseError::Unexpected { reason: "no row".to_owned() })?
        .try_get::<_, Option<String>>(0)
        .map_err(|error| DatabaseError::Unexpected { reason: error.to_string() })?
        .ok_or_else(|| Error::PublicKey("the database has no key yet".to_owned()))?;
    text.parse().map_err(|error| Error::PublicKey(format!("the key installed in the database {error}")))
}

fn read_secret(input: impl Read) -> Result<Zeroizing<String>, Error> {
    let mut text = Zeroizing::new(String::new());
    let read = input.take(SECRET_BYTES_MAX + 2).read_to_string(&mut text);
    if read.is_err() {
        return Err(Error::Secret("on standard input is not text".to_owned()));
    }
    // The line's end that `echo` and editors add.
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(Error::Secret("on standard input is empty".to_owned()));
    }
    if u64::try_from(secret.len()).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(Error::Secret(format!("is longer than {SECRET_BYTES_MAX} bytes")));
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

/// From the configuration object's word to the name that the secret is stored and sealed under.
fn stored_name(key: &str) -> Result<String, Error> {
    match key {
        "signingSecret" => Ok("signing".to_owned()),
        "endpoint" | "apiKey" | "api_key" => Ok(key.to_owned()),
        _ if key.strip_prefix("header.").is_some_and(|name| !name.is_empty()) => Ok(key.to_owned()),
        _ => Err(Error::Secret(
            "must be named endpoint, signingSecret, apiKey, api_key or header.NAME with --secret".to_owned(),
        )),
    }
}

/// The server cannot look inside, so what it would have refused is refused here. Returns what stays in clear before the sealed
/// part: an endpoint's scheme and host, whose address the server checks and shows.
fn check(name: &str, secret: &str) -> Result<String, Error> {
    let wrong = |why: &str| Err(Error::Secret(why.to_owned()));
    match name {
        "endpoint" => {
            let url = Url::parse(secret).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let Some(host) = url.as_ref().and_then(Url::host_str) else {
                return wrong("is not an absolute http or https URL");
            };
            let url = url.as_ref();
            if url.is_some_and(|url| {
                !url.username().is_empty() || url.password().is_some() || url.fragment().is_some()
            }) {
                return wrong("is a URL with a user name or a fragment; leave them out");
            }
            let port = url.and_then(Url::port).map(|port| format!(":{port}")).unwrap_or_default();
            Ok(format!("{}://{host}{port}/", url.map_or("https", Url::scheme)))
        }
        "signing" if !secret.starts_with("whsec_") || sign([secret], "", 0, b"").is_err() => {
            wrong("is not whsec_ followed by 24 to 64 random bytes in base64")
        }
        "signing" => Ok(String::new()),
        _ if HeaderValue::try_from(secret).is_err() || secret.trim() != secret => {
            wrong("holds characters that no header can carry")
        }
        _ => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_would_refuse_is_refused_before_it_is_sealed() {
        for (name, wrong) in [
            ("endpoint", "hooks.slack.com/CANARY"),
            ("endpoint", "ftp://CANARY/"),
            ("endpoint", "https://u:CANARY@h/"),
            ("endpoint", "https://h/#CANARY"),
            ("signing", "CANARY"),
            ("signing", "whsec_***CANARY"),
            ("apiKey", "CANARY\n"),
            ("header.X-Key", " CANARY"),
        ] {
            let error = check(name, wrong).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
        }
        assert_eq!(check("endpoint", "https://hooks.slack.com/a/b?c").unwrap(), "https://hooks.slack.com/");
        assert_eq!(check("endpoint", "http://[::1]:8080/a").unwrap(), "http://[::1]:8080/");
        assert_eq!(check("signing", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(), "");
    }

    #[test]
    fn a_secret_ends_where_its_line_ends() {
        for input in ["x", "x\n", "x\r\n"] {
            assert_eq!(read_secret(input.as_bytes()).unwrap().as_str(), "x");
        }
        assert_eq!(read_secret("x \n\n".as_bytes()).unwrap().as_str(), "x \n");
        for wrong in ["".as_bytes(), b"\n", b"\xff", &[b'a'; 5000]] {
            assert!(read_secret(wrong).is_err());
        }
    }

    #[test]
    fn secrets_are_named_as_in_the_configuration_object() {
        assert_eq!(stored_name("signingSecret").unwrap(), "signing");
        assert_eq!(stored_name("header.X-Key").unwrap(), "header.X-Key");
        for unknown in ["signing", "signing.previous", "header.", "password", ""] {
            assert!(stored_name(unknown).is_err(), "{unknown}");
        }
    }
}
