//! What is sealed opens in its own place with its own key, and nowhere else.
#![allow(clippy::unwrap_used, reason = "a value that is missing is a failed test")]

use orbhook_seal::{KeyError, KeyRing, OpenError, PrivateKey, PublicKey, key_id_of, seal};
use proptest::prelude::*;
use uuid::Uuid;

const WEBHOOK: Uuid = Uuid::from_u128(7);

#[test]
fn a_secret_opens_in_its_own_place_and_nowhere_else() {
    let key = PrivateKey::generate();
    let ring = KeyRing::new(vec![key.clone()]);
    let sealed = seal(key.public(), WEBHOOK, "apiKey", "CANARY").unwrap();
    assert_eq!(ring.open(WEBHOOK, "apiKey", &sealed).unwrap().as_str(), "CANARY");
    for (webhook, name) in [
        (Uuid::from_u128(8), "apiKey"),
        (WEBHOOK, "api_key"),
        (WEBHOOK, "apiKe"),
        (WEBHOOK, "apiKeyC"),
        (WEBHOOK, ""),
    ] {
        assert_eq!(ring.open(webhook, name, &sealed), Err(OpenError::Misplaced), "{webhook} {name}");
    }
}

#[test]
fn a_rotation_moves_a_signing_secret_without_opening_it() {
    let key = PrivateKey::generate();
    let ring = KeyRing::new(vec![key.clone()]);
    let sealed = seal(key.public(), WEBHOOK, "signing", "whsec_AAAA").unwrap();
    assert_eq!(ring.open(WEBHOOK, "signing.previous", &sealed).unwrap().as_str(), "whsec_AAAA");
}

#[test]
fn another_key_opens_nothing_and_says_which_is_missing() {
    let (key, other) = (PrivateKey::generate(), PrivateKey::generate());
    let sealed = seal(key.public(), WEBHOOK, "signing", "x").unwrap();
    let id = key.public().id().to_string();
    assert_eq!(key_id_of(&sealed), Some(id.as_str()));
    let missing = KeyRing::new(vec![other.clone()]).open(WEBHOOK, "signing", &sealed).unwrap_err();
    assert_eq!(missing, OpenError::KeyMissing(id.clone()));
    // Relabelled to a key that is there, it is still a box for the other one.
    let relabelled = sealed.replace(&id, other.public().id().as_str());
    let rings = [vec![other.clone()], vec![key.clone(), other]];
    for ring in rings {
        assert_eq!(KeyRing::new(ring).open(WEBHOOK, "signing", &relabelled), Err(OpenError::Damaged));
    }
}

#[test]
fn plain_values_pass_and_are_no_sealed_ones() {
    for plain in ["", "https://example.com/", "whsec_AAAA", "sealed", "sealed:v2:0123456789abcdef:AAAA"] {
        assert_eq!(key_id_of(plain), None);
        assert_eq!(KeyRing::default().open(WEBHOOK, "endpoint", plain).unwrap().as_str(), plain);
    }
}

#[test]
fn the_same_secret_never_looks_the_same_twice() {
    let key = PrivateKey::generate();
    let once = seal(key.public(), WEBHOOK, "signing", "x").unwrap();
    assert_ne!(once, seal(key.public(), WEBHOOK, "signing", "x").unwrap());
}

#[test]
fn keys_survive_being_written_down() {
    let key = PrivateKey::generate();
    let file = format!("# a comment\n\n{}\n", key.to_text().as_str());
    assert_eq!(PrivateKey::from_text(&file).unwrap().public(), key.public());
    let public: PublicKey = format!(" {} \n", key.public()).parse().unwrap();
    assert_eq!(&public, key.public());
}

#[test]
fn a_key_that_was_mistyped_cut_or_mixed_up_is_refused() {
    let key = PrivateKey::generate();
    let (public, private) = (key.public().to_string(), key.to_text());
    assert_eq!(private.parse::<PublicKey>(), Err(KeyError::PrivateForPublic));
    assert_eq!(PrivateKey::from_text(&public).unwrap_err(), KeyError::PublicForPrivate);
    assert_eq!(public[..public.len() - 1].parse::<PublicKey>(), Err(KeyError::Damaged));
    let last = if public.ends_with('A') { "E" } else { "A" };
    assert_eq!(format!("{}{last}", &public[..public.len() - 1]).parse::<PublicKey>(), Err(KeyError::Damaged));
    for nonsense in ["", "orbhook-public-key:", "whsec_AAAA", "orbhook-public-key:0123456789abcdef"] {
        assert_eq!(nonsense.parse::<PublicKey>(), Err(KeyError::Malformed), "{nonsense}");
        assert!(PrivateKey::from_text(nonsense).is_err(), "{nonsense}");
    }
    assert!(PrivateKey::from_text(&format!("{0}\n{0}", private.as_str())).is_err(), "two keys in one file");
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let key = PrivateKey::generate();
    let text = key.to_text();
    let bytes = text.rsplit(':').next().unwrap();
    assert!(!format!("{key:?} {:?}", KeyRing::new(vec![key.clone()])).contains(bytes));
}

proptest! {
    #[test]
    fn any_secret_comes_back_whole(webhook: u128, name in "[a-zA-Z_.-]{1,40}", secret in ".{0,200}") {
        let key = PrivateKey::generate();
        let webhook = Uuid::from_u128(webhook);
        let sealed = seal(key.public(), webhook, &name, &secret).unwrap();
        let id = key.public().id().to_string();
        prop_assert_eq!(key_id_of(&sealed), Some(id.as_str()));
        let opened = KeyRing::new(vec![key]).open(webhook, &name, &sealed).unwrap();
        prop_assert_eq!(opened.as_str(), secret.as_str());
    }

    #[test]
    fn a_box_that_was_touched_does_not_open(secret in ".{1,50}", at in 28_usize..150, with in "[A-Za-z0-9_-]") {
        let key = PrivateKey::generate();
        let sealed = seal(key.public(), WEBHOOK, "signing", &secret).unwrap();
        let at = at.min(sealed.len() - 2);
        prop_assume!(sealed[at..=at] != with);
        let touched = format!("{}{with}{}", &sealed[..at], &sealed[at + 1..]);
        prop_assert_eq!(KeyRing::new(vec![key]).open(WEBHOOK, "signing", &touched), Err(OpenError::Damaged));
    }

    #[test]
    fn nothing_that_looks_sealed_makes_it_panic(text in "(sealed:v1:)?[0-9a-f:]{0,40}[A-Za-z0-9_=+/-]{0,80}") {
        let _ = key_id_of(&text);
        let _ = KeyRing::new(vec![PrivateKey::generate()]).open(WEBHOOK, "signing", &text);
    }
}
