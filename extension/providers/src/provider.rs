//! The four kinds of receiver.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of receiver; `providerType` of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    Slack,
    GoHighLevel,
    Zapier,
    /// Any HTTPS receiver; the body follows the Standard Webhooks recommendation.
    Generic,
}

impl Provider {
    pub const ALL: [Provider; 4] =
        [Provider::Slack, Provider::GoHighLevel, Provider::Zapier, Provider::Generic];

    /// The name as the product document writes it: `SLACK`, `GOHIGHLEVEL`, `ZAPIER` or `GENERIC`.
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Slack => "SLACK",
            Provider::GoHighLevel => "GOHIGHLEVEL",
            Provider::Zapier => "ZAPIER",
            Provider::Generic => "GENERIC",
        }
    }
}

/// The name is none of the four.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a provider: use SLACK, GOHIGHLEVEL, ZAPIER or GENERIC")]
pub struct UnknownProvider;

impl FromStr for Provider {
    type Err = UnknownProvider;

    /// Reads a name in any case.
    fn from_str(name: &str) -> Result<Provider, UnknownProvider> {
        Provider::ALL
            .into_iter()
            .find(|provider| provider.as_str().eq_ignore_ascii_case(name))
            .ok_or(UnknownProvider)
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Provider {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Provider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Provider, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
