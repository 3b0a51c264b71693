//! The address policy: however a URL spells an address, what is not public is refused. The second opinion is std's.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use orbhook_address::{Policy, parse_networks};

fuzz_target!(|input: (u8, &str, [u8; 16])| {
    let (kind, text, bytes) = input;
    let policy = Policy::default();
    let _ = parse_networks(text);
    let ip: IpAddr = match kind & 1 {
        0 => IpAddr::from(<[u8; 4]>::try_from(&bytes[..4]).expect("four of sixteen")),
        _ => IpAddr::from(bytes),
    };
    if policy.check_ip(ip).is_ok() {
        assert!(!is_private(ip), "{ip}");
    }
    let url = match kind & 6 {
        0 => text.to_owned(),
        2 => format!("http://{text}/"),
        4 => format!("https://{text}@{ip}/"),
        _ if ip.is_ipv6() => format!("https://[{ip}]{text}"),
        _ => format!("https://{ip}{text}"),
    };
    let Ok(accepted) = policy.check_url(&url) else { return };
    assert!(matches!(accepted.scheme(), "http" | "https"), "{accepted}");
    assert!(accepted.username().is_empty() && accepted.password().is_none(), "{accepted}");
    let host = accepted.host_str().expect("an accepted URL names a host").trim_matches(['[', ']']);
    if let Ok(ip) = host.parse::<IpAddr>() {
        assert!(!is_private(ip), "{accepted}");
    }
});

fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
                || (first == 100 && (second & 0xc0) == 64)
                || first == 0
                || first >= 240
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}
