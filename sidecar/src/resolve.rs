//! Names to addresses, under the address policy. What passes here is what gets dialled: there is no second look-up.

use std::{
    error::Error as StdError,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use orbhook_address::{Blocked, Policy, Refused};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::dial;

/// Most addresses of one answer that are tried. All are judged: DNS bounds an answer to some thousands.
const ADDRESSES_TRIED_MAX: usize = 100;

/// Why a name has no address to dial.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error(transparent)]
    Name(#[from] Refused),
    #[error(transparent)]
    Address(#[from] Blocked),
    #[error("the name does not resolve: {0}")]
    Lookup(io::Error),
    #[error("the name has no address")]
    Empty,
}

pub(crate) type LookupFuture = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Where answers come from: the system's resolver, or a table in tests.
pub(crate) trait Lookup: Send + Sync {
    fn lookup(&self, name: &str) -> LookupFuture;
}

/// getaddrinfo: /etc/hosts, DNS, whatever the machine is set up for.
pub(crate) struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: &str) -> LookupFuture {
        let name = name.to_owned();
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name, 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// reqwest's resolver hook. It is not called for hosts that are literal addresses; send checks those itself.
pub(crate) struct PolicyResolver {
    policy: Arc<Policy>,
    lookup: Arc<dyn Lookup>,
}

impl PolicyResolver {
    pub(crate) fn new(policy: Arc<Policy>, lookup: Arc<dyn Lookup>) -> PolicyResolver {
        PolicyResolver { policy, lookup }
    }
}

impl Resolve for PolicyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        let lookup = self.lookup.lookup(name.as_str());
        // The hook runs inside the attempt's own task, so the trace is at hand here, but not in a spawned look-up.
        let trace = dial::current_trace();
        Box::pin(async move {
            let addresses = judge(&policy, name.as_str(), lookup)
                .await
                .map_err(|unresolved| Box::new(unresolved) as Box<dyn StdError + Send + Sync>)?;
            if let (Some(trace), [only]) = (trace, addresses.as_slice()) {
                trace.set_address(*only);
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

/// One blocked address refuses the whole answer: a name that mixes good and bad is being used to get inside.
async fn judge(policy: &Policy, name: &str, lookup: LookupFuture) -> Result<Vec<IpAddr>, Unresolved> {
    policy.check_name(name)?;
    let mut addresses = lookup.await.map_err(Unresolved::Lookup)?;
    if addresses.is_empty() {
        return Err(Unresolved::Empty);
    }
    for address in &addresses {
        policy.check_ip(*address)?;
    }
    addresses.truncate(ADDRESSES_TRIED_MAX);
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(addresses: &[&str]) -> LookupFuture {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Box::pin(async move { Ok(addresses) })
    }

    #[tokio::test]
    async fn one_blocked_address_refuses_the_whole_answer() {
        let policy = Policy::default();
        for mixed in [
            &["8.8.8.8", "127.0.0.1"][..],
            &["10.0.0.1", "8.8.8.8"],
            &["2606:4700::1111", "::1"],
            &["8.8.8.8", "2606:4700::1111", "fe80::1"],
            &["::ffff:8.8.8.8"],
        ] {
            assert!(matches!(
                judge(&policy, "hooks.example", answer(mixed)).await,
                Err(Unresolved::Address(_))
            ));
        }
        let good = judge(&policy, "hooks.example", answer(&["8.8.8.8", "2606:4700::1111"])).await.unwrap();
        assert_eq!(good.len(), 2);
    }

    #[tokio::test]
    async fn a_blocked_address_is_found_wherever_it_stands_in_a_long_answer() {
        let good =
            |count: u32| (1..=count).map(|n| IpAddr::from(0x0808_0000_u32.wrapping_add(n).to_be_bytes()));
        let bad: IpAddr = "169.254.169.254".parse().unwrap();
        for (before, after) in [(0, 100), (99, 1), (100, 0), (1_000, 0), (1_000, 1_000)] {
            let addresses: Vec<_> = good(before).chain([bad]).chain(good(after)).collect();
            let judged = judge(&Policy::default(), "hooks.example", Box::pin(async { Ok(addresses) })).await;
            assert!(matches!(judged, Err(Unresolved::Address(_))), "{before} before it, {after} after");
        }
        let addresses = good(1_000).collect();
        let tried =
            judge(&Policy::default(), "hooks.example", Box::pin(async { Ok(addresses) })).await.unwrap();
        assert_eq!(tried.len(), ADDRESSES_TRIED_MAX);
    }

    #[tokio::test]
    async fn names_of_the_machine_are_refused_before_they_are_looked_up() {
        struct Never;
        impl Lookup for Never {
            fn lookup(&self, _: &str) -> LookupFuture {
                Box::pin(async { panic!("was looked up") })
            }
        }
        for name in ["localhost", "a.localhost", "printer.local", "db.internal."] {
            assert!(matches!(
                judge(&Policy::default(), name, Never.lookup(name)).await,
                Err(Unresolved::Name(_))
            ));
        }
    }

    #[tokio::test]
    async fn an_empty_answer_is_no_answer() {
        let empty = judge(&Policy::default(), "hooks.example", answer(&[])).await;
        assert!(matches!(empty, Err(Unresolved::Empty)));
    }
}
