//! What an operator types to open networks: `10.0.0.0/8, ::1/128`.

use std::net::IpAddr;

use ipnet::IpNet;

/// Most networks in one list. Nobody opens more on purpose, and each is looked at for every address.
const NETWORKS_MAX: usize = 256;

/// The reason a list of networks cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("{0:?} is not a network; write it as address/bits, such as 10.0.0.0/8 or ::1/128")]
    Syntax(String),
    #[error("{given} has bits set after the prefix; did you mean {meant}?")]
    HostBits { given: IpNet, meant: IpNet },
    #[error("more than {NETWORKS_MAX} networks")]
    TooMany,
}

/// Reads a comma-separated list of CIDR networks. A bare address means that address alone. Empty text is an empty list.
///
/// A network with bits set after its prefix (`10.1.2.3/8`) is refused: it is a slip of the pen more often than not,
/// and reading it generously opens more than was meant.
pub fn parse_networks(text: &str) -> Result<Vec<IpNet>, NetworkError> {
    let networks = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(parse_network)
        .collect::<Result<Vec<_>, _>>()?;
    if networks.len() > NETWORKS_MAX {
        return Err(NetworkError::TooMany);
    }
    Ok(networks)
}

fn parse_network(item: &str) -> Result<IpNet, NetworkError> {
    if let Ok(ip) = item.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    let given: IpNet = item.parse().map_err(|_| NetworkError::Syntax(item.to_owned()))?;
    let meant = given.trunc();
    if given != meant {
        return Err(NetworkError::HostBits { given, meant });
    }
    Ok(given)
}
