//! The ranges that are not public, from the IANA IPv4 and IPv6 Special-Purpose Address Registries
//! (iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry):
//! every block whose "Globally Reachable" is not True, plus multicast, class E, and every form that carries an IPv4 address.
//!
//! Coarser than the registries where that is safer: the few reachable /32s inside 192.0.0.0/24 and the few reachable blocks
//! inside 2001::/23 (PCP and TURN anycast, AMT, ORCHIDv2, drone ids) host no web servers, so they stay refused.
//! The AS112 and AMT blocks outside those (192.31.196.0/24, 192.52.193.0/24, 192.175.48.0/24, 2620:4f:8000::/48) are globally
//! reachable and not listed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The first range that contains the address, narrowest first where ranges nest; `None` for a public address.
pub(crate) fn find(ip: IpAddr) -> Option<(IpNet, &'static str)> {
    match ip {
        IpAddr::V4(ip) => V4
            .iter()
            .find(|(network, _)| network.contains(&ip))
            .map(|(network, kind)| (IpNet::V4(*network), *kind)),
        IpAddr::V6(ip) => V6
            .iter()
            .find(|(network, _)| network.contains(&ip))
            .map(|(network, kind)| (IpNet::V6(*network), *kind)),
    }
}

const V4: [(Ipv4Net, &str); 16] = [
    (v4(0, 0, 0, 0, 8), "an address of \"this network\""),
    (v4(10, 0, 0, 0, 8), "a private address"),
    (v4(100, 64, 0, 0, 10), "a carrier's shared address"),
    (v4(127, 0, 0, 0, 8), "a loopback address"),
    (v4(169, 254, 0, 0, 16), "a link-local address"),
    (v4(172, 16, 0, 0, 12), "a private address"),
    (v4(192, 0, 0, 0, 24), "an address for protocol assignments"),
    (v4(192, 0, 2, 0, 24), "a documentation address"),
    (v4(192, 88, 99, 0, 24), "a 6to4 relay address"),
    (v4(192, 168, 0, 0, 16), "a private address"),
    (v4(198, 18, 0, 0, 15), "a benchmarking address"),
    (v4(198, 51, 100, 0, 24), "a documentation address"),
    (v4(203, 0, 113, 0, 24), "a documentation address"),
    (v4(224, 0, 0, 0, 4), "a multicast address"),
    (v4(255, 255, 255, 255, 32), "the broadcast address"),
    (v4(240, 0, 0, 0, 4), "a reserved address"),
];

const V6: [(Ipv6Net, &str); 28] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "the unspecified address"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "the loopback address"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "an embedded IPv4 address"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "a mapped IPv4 address"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "a translated IPv4 address"),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "an IPv4 address behind NAT64"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "an IPv4 address behind local NAT64"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "a discard-only address"),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "a dummy address"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "a Teredo address"),
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), "a benchmarking address"),
    (v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28), "an ORCHID identifier"),
    (v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), "an ORCHID identifier"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "an address for protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "a documentation address"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "a 6to4 address"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "a documentation address"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "a segment-routing identifier"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "a unique-local address"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "a link-local address"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "a site-local address"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "a multicast address"),
    // Only 2000::/3 is allocated as global unicast (RFC 4291, section 2.4). What is outside and has no name above is refused
    // as well: whatever it becomes one day, it is not a web server now.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x6000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 2), RESERVED),
    (v6([0xc000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0xe000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
];

const RESERVED: &str = "an address outside global unicast";

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_bits)
}

const fn v6(s: [u16; 8], prefix_bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix_bits)
}
