//! Slack: an incoming webhook takes a message of blocks and a fallback text, and answers with one word.
//!
//! `providerSpecificConfig`: `channel`, `username`, `icon_emoji`, `icon_url`, sent when set.
//! Slack honours them on legacy webhooks only; a webhook of an app always posts as the app, to the channel
//! chosen at installation. With both icons set `icon_emoji` is sent.
//!
//! A test call says so on the first line.

mod lines;
mod sections;
mod words;

use serde_json::{Map, Value, json};

pub(crate) use words::judge;

use crate::cut::{ELLIPSIS, cut, utf16_units};
use crate::escape::escape;
use crate::event::{Event, Payload};
use crate::render::{Request, config_text};
use crate::time::Moment;
use crate::webhook::ConfigError;
use crate::webhook::keys::Keys;

pub(crate) const CONFIG_KEYS: &[&str] = &["channel", "username", "icon_emoji", "icon_url"];

/// Slack's limit for the text of a section block.
const SECTION_UNITS_MAX: usize = 3_000;

/// Slack refuses messages of about 13,200 characters over all blocks with `msg_blocks_too_long`;
/// undocumented, so with margin.
const MESSAGE_UNITS_MAX: usize = 12_000;

/// A section that would get less room than this is left out.
const SECTION_UNITS_MIN: usize = 300;

/// Stands in for the sections that found no room.
const LEFT_OUT: &str = "… _The event holds more than a Slack message can show._";

/// Slack gives no limit for these texts; a channel name has at most 80 characters.
const NAME_CHARS_MAX: usize = 200;

pub(crate) fn check_config(config: &Keys<'_>) -> Result<(), ConfigError> {
    config.text("channel", NAME_CHARS_MAX)?;
    config.text("username", NAME_CHARS_MAX)?;
    if let Some(emoji) = config.text("icon_emoji", NAME_CHARS_MAX)? {
        let name = emoji.strip_prefix(':').and_then(|rest| rest.strip_suffix(':')).unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(config.fault(
                "icon_emoji",
                "is not the name of an emoji",
                Some("write it between colons, as in :shield:"),
            ));
        }
    }
    if let Some(address) = config.text("icon_url", crate::webhook::URL_CHARS_MAX)? {
        let is_web = url::Url::parse(address)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !is_web {
            return Err(config.fault("icon_url", "is not an http or https URL", None));
        }
    }
    Ok(())
}

pub(crate) fn render(event: &Event<'_>, payload: &Payload, config: &Map<String, Value>) -> Request {
    let texts = texts(event, payload);
    let mut body = Map::new();
    for key in ["channel", "username"] {
        if let Some(text) = config_text(config, key) {
            body.insert(key.to_owned(), text.into());
        }
    }
    // Slack takes one icon; the emoji wins, the address stays in the configuration.
    if let Some((key, icon)) =
        ["icon_emoji", "icon_url"].into_iter().find_map(|key| Some((key, config_text(config, key)?)))
    {
        body.insert(key.to_owned(), icon.into());
    }
    body.insert("text".to_owned(), texts.join("\n\n").into());
    body.insert("blocks".to_owned(), texts.iter().map(|text| block(text)).collect());
    // A link in somebody's name would otherwise be fetched and shown as a preview.
    body.insert("unfurl_links".to_owned(), false.into());
    body.insert("unfurl_media".to_owned(), false.into());
    // Invisible in the channel. Slack has no idempotency key, so this is what tells two messages of one event
    // apart.
    let mark = json!({"event_id": event.id, "test": event.test});
    body.insert(
        "metadata".to_owned(),
        json!({"event_type": event.event_type.to_lowercase(), "event_payload": mark}),
    );
    Request { headers: Vec::new(), body: Value::Object(body).to_string() }
}

/// A `header` block would show the asterisks of the document's first line, so every block is a section.
fn block(text: &str) -> Value {
    // Verbatim keeps Slack from turning words of the payload into links and mentions.
    json!({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": true}})
}

/// The text of every block, escaped and within Slack's limits.
fn texts(event: &Event<'_>, payload: &Payload) -> Vec<String> {
    let mut texts = vec![head(event, payload)];
    let mut room =
        MESSAGE_UNITS_MAX - utf16_units(LEFT_OUT) - texts.iter().map(|text| utf16_units(text)).sum::<usize>();
    for section in sections::sections(event, payload) {
        if room < SECTION_UNITS_MIN {
            texts.push(LEFT_OUT.to_owned());
            break;
        }
        let text = section.text(room.min(SECTION_UNITS_MAX));
        room -= utf16_units(&text);
        texts.push(text);
    }
    texts
}

/// The event's type and time, and before them the mark of a test.
fn head(event: &Event<'_>, payload: &Payload) -> String {
    let mark = if event.test { "🧪 *TEST*: sent to try this webhook, nothing has happened\n" } else { "" };
    let occurred_at = payload.occurred_at(event);
    let time = Moment::parse(&occurred_at).map_or(occurred_at, Moment::to_words);
    format!("{mark}🔔 *{}*\nTime: {}", short(event.event_type), short(&time))
}

/// Both have their own limits elsewhere; this one keeps the sum of the blocks right whatever those are.
fn short(text: &str) -> String {
    const UNITS_MAX: usize = 100;
    escape(&cut(text, UNITS_MAX, crate::escape::escaped_units))
}

/// A heading and its bullets.
struct Section {
    emoji: &'static str,
    title: &'static str,
    /// Escaped, without the bullet.
    lines: Vec<String>,
}

impl Section {
    /// At most `units_max`; bullets that do not fit are counted on the last line.
    fn text(&self, units_max: usize) -> String {
        const COUNT_UNITS_MAX: usize = 40;
        let mut text = format!("{} *{}*\n-------------------", self.emoji, self.title);
        let mut used = utf16_units(&text);
        for (index, line) in self.lines.iter().enumerate() {
            let bullet = format!("\n• {line}");
            used += utf16_units(&bullet);
            let is_last = index + 1 == self.lines.len();
            if used + if is_last { 0 } else { COUNT_UNITS_MAX } > units_max {
                text.push_str(&format!("\n• {ELLIPSIS} {} more", self.lines.len() - index));
                break;
            }
            text.push_str(&bullet);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_never_exceeds_its_room_and_counts_what_is_missing() {
        let lines: Vec<String> =
            (0..100).map(|index| format!("Line {index}: {}", "x".repeat(index))).collect();
        let section = Section { emoji: "📎", title: "Details", lines };
        for room in SECTION_UNITS_MIN..SECTION_UNITS_MAX {
            let text = section.text(room);
            assert!(utf16_units(&text) <= room);
            let bullets = text.matches("\n• Line ").count();
            assert!(text.ends_with(&format!("\n• … {} more", 100 - bullets)), "{room}: {text}");
        }
    }
}
