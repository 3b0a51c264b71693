//! Looks for secrets where none may be, in every form that they could have been written down in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};

/// A prefix of two bytes picks the forms to compare, so that a place is read once however many there are.
const PREFIXES: usize = 1 << 16;

/// Values that must be found nowhere.
pub struct Canaries {
    /// What is looked for, and what it is called.
    forms: Vec<(Vec<u8>, String)>,
    by_prefix: Vec<Vec<usize>>,
}

impl Canaries {
    /// Each value plain, in base64 (both alphabets, at any offset), in hexadecimal and percent-encoded. At least 16 bytes each: a
    /// shorter one could be found by chance.
    pub fn new(values: &[(&str, &[u8])]) -> Canaries {
        let mut forms: Vec<(Vec<u8>, String)> = Vec::new();
        for (name, value) in values {
            assert!(value.len() >= 16, "{name} is too short to be told from chance");
            forms.push((value.to_vec(), format!("{name} plain")));
            for offset in 0..3 {
                let shifted = [vec![0; offset], value.to_vec()].concat();
                // What stands before and behind it changes the outermost digits.
                let (cut, end) = (offset.div_ceil(3) * 4, shifted.len() / 3 * 4);
                for (alphabet, text) in [
                    ("base64", BASE64_STANDARD_NO_PAD.encode(&shifted)),
                    ("base64url", BASE64_URL_SAFE_NO_PAD.encode(&shifted)),
                ] {
                    forms.push((text.as_bytes()[cut..end].to_vec(), format!("{name} in {alphabet}")));
                }
            }
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            forms.push((hex.to_uppercase().into_bytes(), format!("{name} in hexadecimal")));
            forms.push((hex.into_bytes(), format!("{name} in hexadecimal")));
            for is_upper in [false, true] {
                let encoded: String = value
                    .iter()
                    .map(|byte| match byte {
                        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                            char::from(*byte).to_string()
                        }
                        byte if is_upper => format!("%{byte:02X}"),
                        byte => format!("%{byte:02x}"),
                    })
                    .collect();
                forms.push((encoded.into_bytes(), format!("{name} percent-encoded")));
            }
        }
        let mut by_prefix = vec![Vec::new(); PREFIXES];
        for (index, (form, _)) in forms.iter().enumerate() {
            by_prefix[prefix(form)].push(index);
        }
        Canaries { forms, by_prefix }
    }

    /// How many forms are looked for.
    pub fn forms(&self) -> usize {
        self.forms.len()
    }

    /// What is found in a text, each form once.
    pub fn find(&self, text: &[u8]) -> Vec<String> {
        let mut found = BTreeMap::new();
        for at in 0..text.len().saturating_sub(1) {
            for &index in &self.by_prefix[prefix(&text[at..])] {
                let (form, name) = &self.forms[index];
                if text[at..].starts_with(form) {
                    found.insert(index, name.clone());
                }
            }
        }
        found.into_values().collect()
    }

    /// What is found in a directory's files, and how many bytes were read.
    pub fn find_in_files(&self, directory: &Path) -> (Vec<String>, u64) {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for entry in fs::read_dir(directory).expect("the directory can be read").flatten() {
            let path = entry.path();
            if path.is_dir() {
                let (inside, read) = self.find_in_files(&path);
                found.extend(inside);
                bytes += read;
                continue;
            }
            // A server takes files away while they are listed.
            let Ok(content) = fs::read(&path) else { continue };
            bytes += content.len() as u64;
            found.extend(self.find(&content).into_iter().map(|name| format!("{name} in {}", path.display())));
        }
        (found, bytes)
    }
}

fn prefix(bytes: &[u8]) -> usize {
    (usize::from(bytes[0]) << 8) | usize::from(bytes[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_canary_is_found() {
        let value = b"canary?0123456789/abcdef+";
        let canaries = Canaries::new(&[("it", value)]);
        for offset in 0..6 {
            let around = [b"xyzxyz"[..offset].to_vec(), value.to_vec(), b"tail".to_vec()].concat();
            let hex: String = around.iter().map(|byte| format!("{byte:02x}")).collect();
            for text in [
                around.clone(),
                BASE64_STANDARD_NO_PAD.encode(&around).into_bytes(),
                BASE64_URL_SAFE_NO_PAD.encode(&around).into_bytes(),
                hex.to_uppercase().into_bytes(),
                hex.into_bytes(),
                b"..canary%3F0123456789%2fabcdef%2B.".to_vec(),
            ] {
                // Percent-encoded in one case throughout.
                let text = String::from_utf8_lossy(&text).replace("%2f", "%2F").into_bytes();
                assert!(!canaries.find(&text).is_empty(), "{offset}: {}", String::from_utf8_lossy(&text));
            }
        }
        assert!(canaries.find(b"canary and nothing behind it").is_empty());
    }
}
