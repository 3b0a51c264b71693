//! The address policy against tables, spellings, and a second implementation that was written from the registries' text
//! as plain comparisons and shares nothing with the first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use orbhook_address::{IpNet, Policy, Refused, parse_networks};
use proptest::prelude::*;

/// prefix, and whether the addresses just before and just after it are public.
const RANGES_V4: [(&str, bool, bool); 15] = [
    ("0.0.0.0/8", false, true),
    ("10.0.0.0/8", true, true),
    ("100.64.0.0/10", true, true),
    ("127.0.0.0/8", true, true),
    ("169.254.0.0/16", true, true),
    ("172.16.0.0/12", true, true),
    ("192.0.0.0/24", true, true),
    ("192.0.2.0/24", true, true),
    ("192.88.99.0/24", true, true),
    ("192.168.0.0/16", true, true),
    ("198.18.0.0/15", true, true),
    ("198.51.100.0/24", true, true),
    ("203.0.113.0/24", true, true),
    ("224.0.0.0/4", true, false),
    ("240.0.0.0/4", false, false),
];

/// Outside 2000::/3 everything is refused, so the neighbours of most of these are refused too.
const RANGES_V6: [(&str, bool, bool); 21] = [
    ("::/128", false, false),
    ("::1/128", false, false),
    ("::/96", false, false),
    ("::ffff:0:0/96", false, false),
    ("64:ff9b::/96", false, false),
    ("64:ff9b:1::/48", false, false),
    ("100::/64", false, false),
    ("100:0:0:1::/64", false, false),
    ("::/3", false, true),
    ("2001::/32", true, false),
    ("2001:2::/48", false, false),
    ("2001:10::/28", false, false),
    ("2001::/23", true, true),
    ("2001:db8::/32", true, true),
    ("2002::/16", true, true),
    ("3fff::/20", true, true),
    ("4000::/2", true, false),
    ("5f00::/16", false, false),
    ("fc00::/7", false, false),
    ("fe80::/10", false, false),
    ("ff00::/8", false, false),
];

const PUBLIC: [&str; 14] = [
    "1.1.1.1",
    "8.8.8.8",
    "9.9.9.9",
    "93.184.216.34",
    "172.15.255.255",
    "192.31.196.1",
    "192.52.193.1",
    "192.175.48.1",
    "223.255.255.255",
    "2000::1",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2620:4f:8000::1",
    "3fff:1000::1",
];

fn first_and_last(network: &IpNet) -> (IpAddr, IpAddr) {
    (network.network(), network.broadcast())
}

fn neighbour(ip: IpAddr, step: i8) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => {
            let next = i64::from(u32::from(ip)) + i64::from(step);
            u32::try_from(next).ok().map(|bits| IpAddr::V4(Ipv4Addr::from(bits)))
        }
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            let next = if step < 0 { bits.checked_sub(1) } else { bits.checked_add(1) };
            next.map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
        }
    }
}

fn middle(first: IpAddr, last: IpAddr) -> IpAddr {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let (first, last) = (u32::from(first), u32::from(last));
            IpAddr::V4(Ipv4Addr::from(first + (last - first) / 2))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let (first, last) = (u128::from(first), u128::from(last));
            IpAddr::V6(Ipv6Addr::from(first + (last - first) / 2))
        }
        _ => unreachable!("a range has one family"),
    }
}

#[test]
fn the_first_the_last_and_a_middle_address_of_every_range_are_refused() {
    let policy = Policy::default();
    for (prefix, ..) in RANGES_V4.iter().chain(&RANGES_V6) {
        let (first, last) = first_and_last(&prefix.parse().unwrap());
        for ip in [first, middle(first, last), last] {
            assert!(policy.check_ip(ip).is_err(), "{ip} of {prefix}");
        }
    }
}

#[test]
fn the_addresses_beside_every_range_are_judged_by_what_they_are() {
    let policy = Policy::default();
    for (prefix, before_is_public, after_is_public) in RANGES_V4.iter().chain(&RANGES_V6) {
        let (first, last) = first_and_last(&prefix.parse().unwrap());
        if let Some(before) = neighbour(first, -1) {
            assert_eq!(policy.check_ip(before).is_ok(), *before_is_public, "{before}, before {prefix}");
        }
        if let Some(after) = neighbour(last, 1) {
            assert_eq!(policy.check_ip(after).is_ok(), *after_is_public, "{after}, after {prefix}");
        }
    }
}

#[test]
fn public_addresses_are_allowed() {
    let policy = Policy::default();
    for ip in PUBLIC {
        let ip: IpAddr = ip.parse().unwrap();
        assert_eq!(policy.check_ip(ip), Ok(()), "{ip}");
        let host = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        assert!(policy.check_url(&format!("https://{host}/hook")).is_ok(), "{host}");
    }
}

/// Every way a URL can spell an IPv4 address: the forms of inet_aton, and the IPv6 forms that carry one.
fn spellings(ip: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = ip.octets();
    let all = u32::from(ip);
    let (high, low) = (all >> 16, all & 0xffff);
    vec![
        format!("{a}.{b}.{c}.{d}"),
        format!("{a}.{b}.{c}.{d}."),
        format!("{all}"),
        format!("0x{all:x}"),
        format!("0X{all:08X}"),
        format!("0{all:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0{a:04o}.{b}.{c}.{d}"),
        format!("{a}.{}", all & 0x00ff_ffff),
        format!("{a}.{b}.{low}"),
        format!("0x{a:x}.{b}.0{low:o}"),
        percent_encoded(&format!("{a}.{b}.{c}.{d}")),
        fullwidth(&format!("{a}.{b}.{c}.{d}")),
        format!("{a}\u{3002}{b}\u{3002}{c}\u{3002}{d}"),
        format!("[::{a}.{b}.{c}.{d}]"),
        format!("[::ffff:{a}.{b}.{c}.{d}]"),
        format!("[::ffff:{high:x}:{low:x}]"),
        format!("[0:0:0:0:0:FFFF:{high:X}:{low:X}]"),
        format!("[64:ff9b::{a}.{b}.{c}.{d}]"),
        format!("[64:ff9b:1::{high:x}:{low:x}]"),
        format!("[2002:{high:x}:{low:x}::1]"),
        format!("[2001:0:{high:x}:{low:x}::]"),
        format!("[::ffff:0:{high:x}:{low:x}]"),
    ]
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn fullwidth(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '0'..='9' => char::from_u32(u32::from(c) - u32::from('0') + 0xff10).expect("a digit"),
            other => other,
        })
        .collect()
}

#[test]
fn no_spelling_of_a_refused_address_gets_through() {
    let policy = Policy::default();
    let mut vectors = 0;
    for (prefix, ..) in RANGES_V4 {
        let (first, last) = first_and_last(&prefix.parse().unwrap());
        for ip in [first, middle(first, last), last] {
            let IpAddr::V4(ip) = ip else { unreachable!("the table is IPv4") };
            for host in spellings(ip) {
                for url in [format!("http://{host}/"), format!("https://{host}:8443/hook?x=1")] {
                    assert!(policy.check_url(&url).is_err(), "{url} for {ip} got through");
                    vectors += 1;
                }
            }
        }
    }
    for (prefix, ..) in RANGES_V6 {
        let (first, last) = first_and_last(&prefix.parse().unwrap());
        for ip in [first, last] {
            let IpAddr::V6(v6) = ip else { unreachable!("the table is IPv6") };
            let s = v6.segments();
            let long = s.map(|part| format!("{part:04X}")).join(":");
            if policy.check_ip(ip).is_ok() {
                continue;
            }
            for url in [format!("http://[{v6}]/"), format!("https://[{long}]:444/")] {
                assert!(policy.check_url(&url).is_err(), "{url} got through");
                vectors += 1;
            }
        }
    }
    assert!(vectors >= 500, "only {vectors} vectors");
}

#[test]
fn local_names_are_refused_in_every_spelling() {
    let open = Policy::new(parse_networks("0.0.0.0/0,::/0").unwrap());
    for policy in [Policy::default(), open] {
        for name in [
            "a.localhost",
            "a.localhost.",
            "printer.local",
            "printer.local.",
            "PRINTER.LOCAL",
            "local",
            "internal",
            "db.internal",
            "db.internal.",
            "metadata.google.internal",
            "METADATA.Google.Internal.",
            "lo%63al",
            "x.loca\u{ff4c}",
            "db\u{3002}internal",
        ] {
            let url = format!("https://{name}/");
            assert!(matches!(policy.check_url(&url), Err(Refused::Name(_))), "{url}");
        }
    }
    for name in ["localhost", "localhost.", "LOCALHOST", "loc%61lhost", "\u{ff4c}ocalhost"] {
        let url = format!("http://{name}:8080/");
        assert!(matches!(Policy::default().check_url(&url), Err(Refused::Name(_))), "{url}");
    }
}

#[test]
fn localhost_is_a_name_like_others_once_loopback_is_open() {
    for (allow, accepted) in [
        ("127.0.0.0/8", true),
        ("127.0.0.1/32", true),
        ("127.3.0.0/16", true),
        ("::1/128", true),
        ("0.0.0.0/0", true),
        ("10.0.0.0/8", false),
        ("fc00::/7", false),
        ("", false),
    ] {
        let policy = Policy::new(parse_networks(allow).unwrap());
        assert_eq!(policy.check_url("http://localhost:9000/x").is_ok(), accepted, "{allow}");
        assert_eq!(policy.check_url("http://LocalHost./x").is_ok(), accepted, "{allow}");
    }
}

#[test]
fn an_opened_network_opens_itself_and_nothing_beside_it() {
    let policy = Policy::new(parse_networks("10.1.0.0/16, fd00:1::/32").unwrap());
    for open in ["10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3", "fd00:1::1"] {
        assert_eq!(policy.check_ip(open.parse().unwrap()), Ok(()), "{open}");
    }
    for shut in ["10.0.255.255", "10.2.0.0", "::ffff:10.2.0.0", "::10.1.2.3", "fd00:2::1", "127.0.0.1"] {
        assert!(policy.check_ip(shut.parse().unwrap()).is_err(), "{shut}");
    }
}

#[test]
fn only_plain_http_urls_are_accepted() {
    let policy = Policy::default();
    assert!(matches!(policy.check_url("ftp://example.com/"), Err(Refused::Scheme(_))));
    assert!(matches!(policy.check_url("file:///etc/passwd"), Err(Refused::Scheme(_))));
    assert!(matches!(policy.check_url("gopher://example.com/"), Err(Refused::Scheme(_))));
    assert!(matches!(policy.check_url("unix:/run/x.sock"), Err(Refused::Scheme(_))));
    assert!(matches!(policy.check_url("ws://example.com/"), Err(Refused::Scheme(_))));
    assert!(matches!(policy.check_url("data:text/plain,x"), Err(Refused::Scheme(_))));
    assert!(matches!(policy.check_url("https://user@example.com/"), Err(Refused::UserInfo)));
    assert!(matches!(policy.check_url("https://:pw@example.com/"), Err(Refused::UserInfo)));
    assert!(matches!(policy.check_url("https://example.com:0/"), Err(Refused::Port)));
    assert!(matches!(policy.check_url("/relative"), Err(Refused::Syntax(_))));
    assert!(matches!(policy.check_url(""), Err(Refused::Syntax(_))));
    assert!(matches!(policy.check_url("http://"), Err(Refused::Syntax(_))));
    assert!(matches!(policy.check_url("http://./"), Err(Refused::NoHost | Refused::Syntax(_))));
    assert!(matches!(policy.check_url("http://[fe80::1%25eth0]/"), Err(Refused::Syntax(_))));
    assert!(matches!(policy.check_url("http://1.2.3.4.5/"), Err(Refused::Syntax(_))));
    let long = format!("https://example.com/{}", "a".repeat(9000));
    assert!(matches!(policy.check_url(&long), Err(Refused::TooLong)));
    assert!(policy.check_url("https://hooks.example.com/services/T0/B0/x?y=1#z").is_ok());
}

#[test]
fn a_refusal_never_repeats_the_path_or_the_credentials() {
    let policy = Policy::default();
    for url in [
        "http://10.0.0.1/SECRET?k=SECRET",
        "https://SECRET:SECRET@a.example/",
        "http://a.local/SECRET",
        "ftp://a/SECRET",
    ] {
        let refused = policy.check_url(url).unwrap_err();
        assert!(!format!("{refused} {refused:?}").contains("SECRET"), "{refused:?}");
    }
}

#[test]
fn networks_are_read_strictly() {
    assert_eq!(parse_networks("").unwrap(), vec![]);
    assert_eq!(parse_networks(" 10.0.0.0/8 ,, ::1 ").unwrap().len(), 2);
    let refused = parse_networks("10.1.2.3/8").unwrap_err().to_string();
    assert!(refused.contains("did you mean 10.0.0.0/8"), "{refused}");
    for wrong in ["10.0.0.0/33", "10.0.0/8", "example.com", "::1/129", "10.0.0.0/-1", "10.0.0.0/8;::1"] {
        assert!(parse_networks(wrong).is_err(), "{wrong}");
    }
    assert!(parse_networks(&"10.0.0.0/8,".repeat(257)).is_err());
}

/// The second implementation: which addresses are public, told with numbers.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [0 | 10 | 127, ..] | [224..=255, ..] => false,
            [100, b, ..] => !(64..128).contains(&b),
            [169, 254, ..] | [192, 168, ..] | [192, 0, 0 | 2, _] | [192, 88, 99, _] => false,
            [172, b, ..] => !(16..32).contains(&b),
            [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => false,
            _ => true,
        },
        IpAddr::V6(ip) => {
            let s = ip.segments();
            let global_unicast = (0x2000..0x4000).contains(&s[0]);
            let protocol_assignments = s[0] == 0x2001 && s[1] < 0x0200;
            let documentation = (s[0] == 0x2001 && s[1] == 0x0db8) || (s[0] == 0x3fff && s[1] < 0x1000);
            global_unicast && !protocol_assignments && !documentation && s[0] != 0x2002
        }
    }
}

/// Addresses near the edges of ranges, where two implementations would differ, beside uniform ones.
fn any_address() -> impl Strategy<Value = IpAddr> {
    let edges: Vec<IpNet> =
        RANGES_V4.iter().chain(&RANGES_V6).map(|(prefix, ..)| prefix.parse().expect("a prefix")).collect();
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits >> 3 | 1 << 125))),
        (prop::sample::select(edges), any::<bool>(), -300i64..300).prop_map(|(network, at_end, offset)| {
            let edge = if at_end { network.broadcast() } else { network.network() };
            match edge {
                IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip).wrapping_add(offset as u32))),
                IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip).wrapping_add(offset as u128))),
            }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_implementations_agree_on_every_address(ip in any_address()) {
        prop_assert_eq!(Policy::default().check_ip(ip).is_ok(), is_public(ip), "{}", ip);
    }

    #[test]
    fn an_address_is_judged_alike_alone_and_in_a_url(ip in any_address(), port in 1u16..) {
        let url = match ip {
            IpAddr::V4(ip) => format!("http://{ip}:{port}/"),
            IpAddr::V6(ip) => format!("http://[{ip}]:{port}/"),
        };
        prop_assert_eq!(Policy::default().check_url(&url).is_ok(), is_public(ip), "{}", url);
    }

    #[test]
    fn no_text_makes_the_policy_panic_or_lets_an_odd_url_through(text in "\\PC{0,60}") {
        let policy = Policy::default();
        for url in [text.clone(), format!("http://{text}"), format!("https://{text}/")] {
            if let Ok(url) = policy.check_url(&url) {
                prop_assert!(matches!(url.scheme(), "http" | "https"));
                prop_assert!(url.username().is_empty() && url.password().is_none() && url.port() != Some(0));
            }
        }
    }
}
