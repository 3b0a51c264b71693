use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges that no webhook may reach: first, some and last address of each (IANA special-purpose registries).
const BLOCKED_V4: [&str; 42] = [
    "0.0.0.0",
    "0.1.2.3",
    "0.255.255.255",
    "10.0.0.0",
    "10.1.2.3",
    "10.255.255.255",
    "100.64.0.0",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.0",
    "127.0.0.1",
    "127.1.2.3",
    "127.255.255.255",
    "169.254.0.0",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.255.255",
    "172.16.0.0",
    "172.17.0.1",
    "172.31.255.255",
    "192.0.0.0",
    "192.0.0.192",
    "192.0.0.255",
    "192.0.2.0",
    "192.0.2.255",
    "192.88.99.0",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.1.1",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.0",
    "198.51.100.255",
    "203.0.113.0",
    "203.0.113.255",
    "224.0.0.0",
    "224.0.0.251",
    "239.255.255.255",
    "240.0.0.0",
    "250.1.2.3",
    "255.255.255.255",
];

const BLOCKED_V6: [&str; 50] = [
    "::",
    "::1",
    "::2",
    "::ffff:ffff",
    "64:ff9b::1",
    "64:ff9b:1::1",
    "64:ff9b:1:ffff::1",
    "100::",
    "100::1",
    "100:0:0:1::1",
    "2001::",
    "2001::1",
    "2001:0:ffff::1",
    "2001:1::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:1ff:ffff::1",
    "2001:db8::",
    "2001:db8::1",
    "2001:db8:ffff::1",
    "2002::",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2002:ffff::1",
    "3fff::",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",
    "5f00:ffff::1",
    "6000::1",
    "8000::1",
    "c000::1",
    "e000::1",
    "fc00::",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fd12:3456:789a::1",
    "fdff:ffff::1",
    "fe00::1",
    "fe80::",
    "fe80::1",
    "febf::1",
    "fec0::",
    "fec0::1",
    "feff::1",
    "ff00::",
    "ff02::1",
    "ff0e::1",
];

/// Names that stay on the machine or the site, and URLs that are none.
const OTHERS: [&str; 34] = [
    "http://localhost{port}/",
    "http://LOCALHOST{port}/",
    "http://localhost.{port}/",
    "http://a.localhost{port}/",
    "http://printer.local{port}/",
    "http://printer.local.{port}/",
    "http://db.internal{port}/",
    "http://metadata.google.internal{port}/",
    "http://METADATA.GOOGLE.INTERNAL.{port}/",
    "https://localhost{port}/",
    "http://loc%61lhost{port}/",
    "http://ⓛocalhost{port}/",
    "http://user@127.0.0.1{port}/",
    "http://user:password@93.184.216.34{port}/",
    "http://127.0.0.1@93.184.216.34{port}/",
    "http://93.184.216.34@127.0.0.1{port}/",
    "http://127.0.0.1{port}#@93.184.216.34/",
    "http://93.184.216.34:0/",
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "ftp://127.0.0.1{port}/",
    "gopher://127.0.0.1{port}/_GET",
    "unix:///var/run/docker.sock",
    "data:text/plain,hello",
    "ws://127.0.0.1{port}/",
    "wss://127.0.0.1{port}/",
    "dict://127.0.0.1{port}/",
    "ldap://127.0.0.1{port}/",
    "jar:http://127.0.0.1!/",
    "javascript:alert(1)",
    "http:///127.0.0.1{port}/",
    "http://[::1%25lo]{port}/",
    "http:\\\\127.0.0.1{port}\\",
    "//127.0.0.1{port}/",
];

/// URLs that must not lead to a connection, with `port` wherever one can be: every spelling of addresses that are not
/// public, names of the machine, other schemes.
pub fn blocked_urls(port: u16) -> Vec<String> {
    let mut urls = Vec::new();
    for ip in BLOCKED_V4.map(|ip| ip.parse::<Ipv4Addr>().expect("an address")) {
        urls.extend(spellings(ip).into_iter().map(|host| format!("http://{host}:{port}/hook")));
    }
    for ip in BLOCKED_V6.map(|ip| ip.parse::<Ipv6Addr>().expect("an address")) {
        let groups = ip.segments().map(|group| format!("{group:x}")).join(":");
        urls.push(format!("http://[{ip}]:{port}/hook"));
        urls.push(format!("https://[{}]:{port}/hook", groups.to_uppercase()));
    }
    urls.extend(OTHERS.map(|url| url.replace("{port}", &format!(":{port}"))));
    urls
}

/// The same addresses, for a name server to give as answers.
pub fn blocked_addresses() -> Vec<IpAddr> {
    let v4 = BLOCKED_V4.iter().map(|ip| ip.parse().expect("an address"));
    v4.chain(BLOCKED_V6.iter().map(|ip| ip.parse().expect("an address"))).collect()
}

/// The forms of inet_aton, characters that become digits and dots, and IPv6 forms that carry the address.
fn spellings(ip: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = ip.octets();
    let all = u32::from(ip);
    let (high, low) = (all >> 16, all & 0xffff);
    let plain = ip.to_string();
    let wide: String = plain
        .chars()
        .map(|digit| digit.to_digit(10).map_or(digit, |n| char::from_u32(0xff10 + n).expect("a wide digit")))
        .collect();
    vec![
        plain.clone(),
        format!("{plain}."),
        format!("{all}"),
        format!("0x{all:x}"),
        format!("0{all:o}"),
        format!("0x{a:X}.0x{b:x}.0{c:o}.{d}"),
        format!("{a}.{}", all & 0x00ff_ffff),
        format!("{a}.{b}.{low}"),
        wide,
        plain.replace('.', "。"),
        plain.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        format!("[::ffff:{plain}]"),
        format!("[::FFFF:{high:x}:{low:x}]"),
        format!("[0:0:0:0:0:ffff:{high:x}:{low:x}]"),
        format!("[::{high:x}:{low:x}]"),
        format!("[::ffff:0:{high:x}:{low:x}]"),
        format!("[64:ff9b::{high:x}:{low:x}]"),
        format!("[2002:{high:x}:{low:x}::1]"),
    ]
}
