//! The decision: an address or a URL, against the ranges nobody may reach and the networks an operator opened.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

use crate::ranges;

/// Longest URL that is looked at, in bytes. Real webhook URLs stay under 1 KiB; proxies and servers give up at 8 KiB.
const URL_BYTES_MAX: usize = 8 * 1024;

/// Names that never leave the machine or the site, whatever they resolve to.
/// `.localhost` and `.local` are reserved by RFC 6761 and RFC 6762, `.internal` by ICANN for private use (2024).
const PRIVATE_SUFFIXES: [&str; 3] = ["localhost", "local", "internal"];

/// What may be dialled: every public address, plus the networks given here.
///
/// An opened network opens addresses, not names: `*.local` and `*.internal` stay refused.
/// The one exception is the name `localhost`, which is judged by the addresses it resolves to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    allow: Vec<IpNet>,
}

/// The reason an address may not be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ip} is {kind} ({network}), which webhooks may not reach")]
pub struct Blocked {
    pub ip: IpAddr,
    /// The range it lies in, as in the IANA special-purpose registries.
    pub network: IpNet,
    /// What that range is, in words that fit after "is".
    pub kind: &'static str,
}

/// The reason a URL may not be dialled. Never contains more of the URL than scheme, host and address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    #[error("the URL is longer than {URL_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not an absolute URL: {0}")]
    Syntax(url::ParseError),
    #[error("the scheme is {0:?}; only http and https are delivered to")]
    Scheme(String),
    #[error("the URL carries a user name or password; put credentials into a header")]
    UserInfo,
    #[error("the URL names no host")]
    NoHost,
    #[error("port 0 cannot be dialled")]
    Port,
    #[error("{0:?} is a name of this machine or this site, which webhooks may not reach")]
    Name(String),
    #[error(transparent)]
    Address(#[from] Blocked),
}

impl Policy {
    /// `allow`: networks that may be dialled although they are not public.
    pub fn new(allow: Vec<IpNet>) -> Policy {
        Policy { allow }
    }

    /// The networks opened beyond the public internet.
    pub fn allowed(&self) -> &[IpNet] {
        &self.allow
    }

    /// May this address be dialled?
    ///
    /// An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) reaches the IPv4 address, so an opened IPv4 network opens it too.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), Blocked> {
        let canonical = ip.to_canonical();
        if self.allow.iter().any(|network| network.contains(&ip) || network.contains(&canonical)) {
            return Ok(());
        }
        match ranges::find(ip) {
            Some((network, kind)) => Err(Blocked { ip, network, kind }),
            None => Ok(()),
        }
    }

    /// May this host name be looked up? The addresses it resolves to still have to pass [`Policy::check_ip`].
    pub fn check_name(&self, name: &str) -> Result<(), Refused> {
        let bare = name.trim_end_matches('.').to_ascii_lowercase();
        if bare.is_empty() {
            return Err(Refused::NoHost);
        }
        if bare == "localhost" && self.opens_loopback() {
            return Ok(());
        }
        let last_label = bare.rsplit('.').next().unwrap_or(&bare);
        if PRIVATE_SUFFIXES.contains(&last_label) {
            return Err(Refused::Name(bare));
        }
        Ok(())
    }

    /// May this URL be dialled, as far as can be told without DNS? Returns it parsed, spelled the way it will be dialled:
    /// `http://0x7f.1/` has become `http://127.0.0.1/` before it is judged.
    pub fn check_url(&self, url: &str) -> Result<Url, Refused> {
        if url.len() > URL_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        let url = Url::parse(url).map_err(Refused::Syntax)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::UserInfo);
        }
        if url.port() == Some(0) {
            return Err(Refused::Port);
        }
        match url.host() {
            None => return Err(Refused::NoHost),
            Some(Host::Ipv4(ip)) => self.check_ip(IpAddr::V4(ip))?,
            Some(Host::Ipv6(ip)) => self.check_ip(IpAddr::V6(ip))?,
            Some(Host::Domain(name)) => self.check_name(name)?,
        }
        Ok(url)
    }

    fn opens_loopback(&self) -> bool {
        self.allow.iter().any(|network| match network {
            IpNet::V4(network) => network.addr().is_loopback() || network.contains(&Ipv4Addr::LOCALHOST),
            IpNet::V6(network) => network.contains(&Ipv6Addr::LOCALHOST),
        })
    }
}
