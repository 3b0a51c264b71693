//! What Slack answers: a word, which is stable, and a status, about which sources disagree. So the word
//! decides first.

use crate::json;
use crate::judge::{Response, Verdict, rate_limited, retry, server_trouble};

/// Success is 200 with the body `ok`.
///
/// A 2xx with another word is not taken for success; one with no body is, since then nothing says otherwise.
pub(crate) fn judge(response: &Response<'_>) -> Verdict {
    if response.status == 429 {
        return rate_limited("Slack", response, None);
    }
    let word = word(response.body);
    if let Some(advice) = advice(ENDPOINT_WORDS, &word) {
        return Verdict::EndpointPermanent {
            reason: format!("Slack answered {} {word}: {advice}", response.status),
        };
    }
    if let Some(advice) = advice(MESSAGE_WORDS, &word) {
        return Verdict::MessagePermanent {
            reason: format!("Slack answered {} {word}: {advice}", response.status),
        };
    }
    if LIMIT_WORDS.contains(&word.as_str()) {
        return rate_limited("Slack", response, None);
    }
    if response.is_success() {
        return match word.as_str() {
            "ok" => Verdict::Delivered { note: None },
            "" => Verdict::Delivered { note: Some("Slack answered without its usual word ok".to_owned()) },
            _ => retry(
                response,
                format!(
                    "Slack {} where ok is expected; check that the endpoint is a Slack webhook",
                    response.in_words()
                ),
            ),
        };
    }
    let answered = response.in_words();
    match response.status {
        401 | 403 | 404 | 410 => Verdict::EndpointPermanent {
            reason: format!(
                "Slack {answered}: the webhook is not usable; create a new one in Slack and set it as endpoint"
            ),
        },
        408 => retry(response, format!("Slack {answered}: it asks to try again")),
        300..=399 => Verdict::MessagePermanent {
            reason: format!("Slack {answered}: redirects are not followed; check the endpoint"),
        },
        400..=499 => {
            Verdict::MessagePermanent { reason: format!("Slack {answered}: it does not accept this message") }
        }
        _ => server_trouble("Slack", response),
    }
}

/// Slack, or the app behind the webhook, will accept nothing more.
const ENDPOINT_WORDS: &[(&str, &str)] = &[
    ("action_prohibited", "an admin of the workspace restricts posting; ask them, or use another channel"),
    ("posting_to_general_channel_denied", "an admin restricts posting to that channel; use another one"),
    (
        "invalid_token",
        "the webhook's address is not valid any more; create a new webhook in Slack and set it as endpoint",
    ),
    ("token_revoked", "the webhook was revoked; create a new one in Slack and set it as endpoint"),
    (
        "account_inactive",
        "the account that installed the webhook is deactivated; install it again and set the new endpoint",
    ),
    ("team_disabled", "the workspace is disabled; use a webhook of another one"),
    (
        "channel_not_found",
        "the channel does not exist; correct providerSpecificConfig.channel or create a new webhook",
    ),
    ("channel_is_archived", "the channel is archived; unarchive it or use another one"),
    ("no_service", "the webhook was removed or disabled in Slack; create a new one and set it as endpoint"),
    ("no_service_id", "the endpoint's address is incomplete; copy the whole webhook URL from Slack"),
    ("no_active_hooks", "the webhook was disabled in Slack; enable it or create a new one"),
    ("no_team", "the workspace does not exist; copy the webhook URL from Slack again"),
];

/// Slack does not take this message.
const MESSAGE_WORDS: &[(&str, &str)] = &[
    ("invalid_payload", "it cannot read the message; please report this as a fault of orbhook"),
    ("invalid_blocks", "it does not accept the message's blocks; please report this as a fault of orbhook"),
    (
        "invalid_blocks_format",
        "it does not accept the message's blocks; please report this as a fault of orbhook",
    ),
    ("msg_blocks_too_long", "the message is too long"),
    ("msg_too_long", "the message is too long"),
    ("no_text", "it found no text in the message"),
    ("too_many_attachments", "the message has too many attachments"),
    ("missing_text_or_fallback_or_attachments", "it found no text in the message"),
    ("user_not_found", "the user does not exist; correct providerSpecificConfig.channel"),
];

const LIMIT_WORDS: &[&str] = &["rate_limited", "ratelimited", "message_limit_exceeded"];

fn advice(words: &'static [(&str, &str)], word: &str) -> Option<&'static str> {
    words.iter().find(|(known, _)| *known == word).map(|(_, advice)| *advice)
}

/// The whole body as a word, or the error of `{"ok": false, "error": …}`. Words inside a longer text do not
/// count.
fn word(body: &str) -> String {
    let body = body.trim();
    if !body.starts_with('{') {
        return body.to_owned();
    }
    let Ok(answer) = json::parse_object(body) else { return body.to_owned() };
    match (answer.get("error").and_then(|error| error.as_str()), answer.get("ok").and_then(|ok| ok.as_bool()))
    {
        (Some(error), _) => error.to_owned(),
        (None, Some(true)) => "ok".to_owned(),
        _ => body.to_owned(),
    }
}
