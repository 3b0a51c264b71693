//! Who an event is about.

use crate::cut::{cut, utf16_units};
use crate::event::{Event, Payload};

use super::VALUE_UNITS_MAX;

/// The contact as the producer wrote it; empty where it said nothing.
pub(super) struct Contact {
    pub(super) first_name: String,
    pub(super) last_name: String,
    /// Both names, or the only one there is.
    pub(super) full_name: String,
    pub(super) email: String,
    pub(super) phone: String,
    pub(super) address: String,
    pub(super) city: String,
    pub(super) state: String,
    pub(super) country: String,
    pub(super) postal_code: String,
    pub(super) company: String,
}

impl Contact {
    /// The user; in a reseller event the reseller, if it can be reached.
    pub(super) fn of(event: &Event<'_>, payload: &Payload) -> Contact {
        let reachable = |part: &str| {
            payload.part_text(part, "email").is_some() || payload.part_text(part, "phone").is_some()
        };
        if event.event_type.starts_with("RESELLER_") && reachable("reseller") {
            let full_name = payload.part_text("reseller", "name");
            return Contact::read(payload, "reseller", payload.part_text("reseller", "email"), full_name);
        }
        let email = payload.text("email").or_else(|| payload.part_text("profile", "email"));
        Contact::read(payload, "profile", email, payload.full_name())
    }

    pub(super) fn is_reachable(&self) -> bool {
        !self.email.is_empty() || !self.phone.is_empty()
    }

    fn read(payload: &Payload, part: &str, email: Option<String>, full_name: Option<String>) -> Contact {
        let text = |keys: &[&str]| bounded(keys.iter().find_map(|key| payload.part_text(part, key)));
        Contact {
            first_name: text(&["firstName"]),
            last_name: text(&["lastName"]),
            full_name: bounded(full_name),
            email: bounded(email),
            phone: text(&["phone"]),
            address: text(&["address1", "address"]),
            city: text(&["city"]),
            state: text(&["state"]),
            country: text(&["country"]),
            postal_code: text(&["postalCode", "zipCode", "zip"]),
            company: text(&["companyName", "company"]),
        }
    }
}

/// The text, cut to what one value may take; empty for none.
pub(super) fn bounded(text: Option<String>) -> String {
    text.map(|text| cut(&text, VALUE_UNITS_MAX, utf16_units).into_owned()).unwrap_or_default()
}
