use orbhook_providers::{Provider, Response, Verdict, judge};

/// 2024-11-03T15:27:47Z, 30,733 s before midnight.
const NOW: i64 = 1_730_647_667;

fn verdict(
    provider: Provider,
    target: Option<&str>,
    status: u16,
    headers: &[(&str, &str)],
    body: &str,
) -> Verdict {
    let headers: Vec<(String, String)> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    judge(provider, target, &Response { status, headers: &headers, body, now_unix_seconds: NOW })
}

/// One letter each: Delivered, Retry, rate Limited, Message-permanent, Endpoint-permanent.
fn letter(verdict: &Verdict) -> char {
    match verdict {
        Verdict::Delivered { .. } => 'D',
        Verdict::Retry { rate_limited: false, .. } => 'R',
        Verdict::Retry { rate_limited: true, .. } => 'L',
        Verdict::MessagePermanent { .. } => 'M',
        Verdict::EndpointPermanent { .. } => 'E',
    }
}

fn check(provider: Provider, target: Option<&str>, table: &[(u16, &str, char)]) {
    for (status, body, expected) in table {
        let verdict = verdict(provider, target, *status, &[], body);
        assert_eq!(letter(&verdict), *expected, "{provider} {target:?} {status} {body}: {verdict:?}");
    }
}

fn reason(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Retry { reason, .. }
        | Verdict::MessagePermanent { reason }
        | Verdict::EndpointPermanent { reason } => reason,
        Verdict::Delivered { .. } => "",
    }
}

#[test]
fn slacks_words_decide_before_its_status() {
    check(
        Provider::Slack,
        None,
        &[
            (200, "ok", 'D'),
            (200, "ok\n", 'D'),
            (200, r#"{"ok":true}"#, 'D'),
            (200, "", 'D'),
            (200, r#"{"ok":false,"error":"channel_not_found"}"#, 'E'),
            (200, r#"{"ok":false,"error":"something_new"}"#, 'R'),
            (200, "<html>Sign in</html>", 'R'),
            (400, "invalid_payload", 'M'),
            (400, "user_not_found", 'M'),
            (400, "invalid_blocks", 'M'),
            (400, "invalid_blocks_format", 'M'),
            (400, "no_text", 'M'),
            (400, "too_many_attachments", 'M'),
            (400, "missing_text_or_fallback_or_attachments", 'M'),
            (400, "msg_blocks_too_long", 'M'),
            (400, "no_service", 'E'),
            (403, "action_prohibited", 'E'),
            (403, "posting_to_general_channel_denied", 'E'),
            (403, "invalid_token", 'E'),
            (403, "team_disabled", 'E'),
            (404, "channel_not_found", 'E'),
            (404, "no_service", 'E'),
            (404, "no_service_id", 'E'),
            (404, "no_active_hooks", 'E'),
            (404, "no_team", 'E'),
            (410, "channel_is_archived", 'E'),
            (403, "channel_is_archived", 'E'),
            (404, "<html>not found</html>", 'E'),
            (405, "", 'M'),
            (413, "", 'M'),
            (302, "", 'M'),
            (408, "", 'R'),
            (429, "no_service", 'L'),
            (429, r#"{"ok":false,"error":"rate_limited"}"#, 'L'),
            (200, r#"{"ok":false,"error":"ratelimited"}"#, 'L'),
            (500, "rollup_error", 'R'),
            (500, "<html>no_service</html>", 'R'),
            (503, "", 'R'),
        ],
    );
    let archived = verdict(Provider::Slack, None, 410, &[], "channel_is_archived");
    assert_eq!(
        reason(&archived),
        "Slack answered 410 channel_is_archived: the channel is archived; unarchive it or use another one"
    );
}

#[test]
fn highlevels_api_is_judged_by_its_status() {
    check(
        Provider::GoHighLevel,
        Some("api"),
        &[
            (200, r#"{"new":true}"#, 'D'),
            (201, "", 'D'),
            (400, "", 'M'),
            (422, r#"{"message":["property x should not exist"]}"#, 'M'),
            (401, r#"{"message":"Invalid token: access token is invalid"}"#, 'E'),
            (403, "", 'E'),
            (404, "", 'E'),
            (410, "", 'E'),
            (408, "", 'R'),
            (413, "", 'M'),
            (301, "", 'M'),
            (429, "", 'L'),
            (500, "", 'R'),
            (502, "", 'R'),
        ],
    );
    let delivered = verdict(
        Provider::GoHighLevel,
        Some("api"),
        200,
        &[],
        r#"{"new":true,"contact":{"id":"c1"},"traceId":"t-9"}"#,
    );
    assert_eq!(delivered, Verdict::Delivered { note: Some("contact c1, trace t-9".to_owned()) });
    let refused = verdict(
        Provider::GoHighLevel,
        Some("api"),
        422,
        &[],
        r#"{"message":["property x should not exist"]}"#,
    );
    assert_eq!(
        reason(&refused),
        "HighLevel answered 422 “{\"message\":[\"property x should not exist\"]}”: it does not accept this contact"
    );
}

#[test]
fn highlevels_inbound_webhook_is_delivered_even_when_it_confirms_nothing() {
    check(
        Provider::GoHighLevel,
        Some("inbound"),
        &[
            (200, "{}", 'D'),
            (400, "", 'M'),
            (401, "", 'M'),
            (404, "", 'E'),
            (410, "", 'E'),
            (429, "", 'L'),
            (500, "", 'R'),
        ],
    );
    let queued = r#"{"status":"Success: request sent to trigger execution server","id":"x7"}"#;
    for target in [None, Some("inbound")] {
        let note = |body: &str| verdict(Provider::GoHighLevel, target, 200, &[], body);
        assert_eq!(note(queued), Verdict::Delivered { note: Some("execution x7".to_owned()) });
        for body in
            [r#"{"status":"Success: test request received"}"#, "", "[]", r#"{"id":"https://x/secret"}"#]
        {
            assert!(
                matches!(note(body), Verdict::Delivered { note: Some(note) } if note.starts_with("unconfirmed")),
                "{body}"
            );
        }
    }
}

#[test]
fn highlevels_rate_headers_say_how_long_to_wait() {
    let wait = |headers: &[(&str, &str)]| match verdict(Provider::GoHighLevel, Some("api"), 429, headers, "")
    {
        Verdict::Retry { after_seconds, rate_limited: true, pause, .. } => {
            assert_eq!(pause, after_seconds.is_some());
            after_seconds
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(&[]), None);
    assert_eq!(
        wait(&[("X-RateLimit-Interval-Milliseconds", "10000"), ("X-RateLimit-Remaining", "0")]),
        Some(10.0)
    );
    assert_eq!(wait(&[("x-ratelimit-interval-milliseconds", "10000"), ("Retry-After", "12")]), Some(12.0));
    let daily = ("X-RateLimit-Daily-Remaining", "0");
    assert_eq!(wait(&[daily, ("x-ratelimit-daily-reset", "3600000")]), Some(3_600.0));
    assert_eq!(wait(&[daily, ("X-RateLimit-Interval-Milliseconds", "10000")]), Some(30_733.0));
    assert_eq!(
        wait(&[("X-RateLimit-Daily-Remaining", "5"), ("x-ratelimit-interval-milliseconds", "2500")]),
        Some(2.5)
    );
    for hostile in ["inf", "NaN", "-1", "", "1e999"] {
        assert_eq!(wait(&[("x-ratelimit-interval-milliseconds", hostile)]), None, "{hostile}");
    }
}

#[test]
fn zapier_accepts_with_any_body_and_ends_with_410() {
    check(
        Provider::Zapier,
        None,
        &[
            (200, r#"{"status":"success","id":"x"}"#, 'D'),
            (200, "", 'D'),
            (410, "", 'E'),
            (413, "", 'M'),
            (400, "", 'R'),
            (404, "", 'R'),
            (302, "", 'R'),
            (429, "", 'L'),
            (500, "", 'R'),
        ],
    );
}

#[test]
fn a_generic_receiver_is_only_given_up_for_410() {
    check(
        Provider::Generic,
        None,
        &[
            (200, "no", 'D'),
            (204, "", 'D'),
            (299, "", 'D'),
            (301, "", 'R'),
            (400, "", 'R'),
            (401, "", 'R'),
            (404, "", 'R'),
            (408, "", 'R'),
            (410, "", 'E'),
            (422, "", 'R'),
            (425, "", 'R'),
            (429, "", 'L'),
            (500, "", 'R'),
            (599, "", 'R'),
            (100, "", 'R'),
        ],
    );
}

#[test]
fn a_known_wait_pauses_the_webhook_when_it_speaks_for_the_whole_receiver() {
    for provider in Provider::ALL {
        for (status, headers, expected) in [
            (429, [("retry-after", "7")], (Some(7.0), true, true)),
            (429, [("Retry-After", "soon")], (None, true, false)),
            (503, [("RETRY-AFTER", "Sun, 03 Nov 2024 15:29:47 GMT")], (Some(120.0), false, true)),
            (502, [("retry-after", "1")], (Some(1.0), false, true)),
            (504, [("retry-after", "1")], (Some(1.0), false, true)),
            (503, [("x-other", "1")], (None, false, false)),
            (500, [("retry-after", "1")], (Some(1.0), false, false)),
        ] {
            match verdict(provider, None, status, &headers, "") {
                Verdict::Retry { after_seconds, rate_limited, pause, .. } => {
                    assert_eq!(
                        (after_seconds, rate_limited, pause),
                        expected,
                        "{provider} {status} {headers:?}"
                    );
                }
                other => panic!("{provider} {status}: {other:?}"),
            }
        }
    }
}

#[test]
fn reasons_are_short_and_show_no_address() {
    let bodies = [
        "https://hooks.slack.com/services/T/B/SECRET".to_owned(),
        format!("no {}", "x".repeat(50_000)),
        "a\u{0}\n\u{1b}b".to_owned(),
    ];
    for provider in Provider::ALL {
        for target in [None, Some("api"), Some("inbound")] {
            for status in 100..600 {
                for body in &bodies {
                    let verdict = verdict(provider, target, status, &[], body);
                    let reason = reason(&verdict);
                    assert!(!reason.contains("SECRET") && reason.chars().count() < 260, "{reason}");
                    assert!(!reason.contains(char::is_control), "{reason}");
                    assert_eq!(reason.is_empty(), matches!(verdict, Verdict::Delivered { .. }));
                }
            }
        }
    }
}

#[test]
fn a_hostile_body_is_read_without_harm() {
    let nested =
        |depth: usize| format!("{}{}", r#"{"error":"#.repeat(depth), "1".to_owned() + &"}".repeat(depth));
    for body in
        [nested(5_000), "{".to_owned(), r#"{"ok": "yes", "error": 5}"#.to_owned(), "\u{feff}ok".to_owned()]
    {
        for provider in Provider::ALL {
            let verdict = verdict(provider, Some("api"), 400, &[], &body);
            assert!(matches!(letter(&verdict), 'M' | 'R'), "{verdict:?}");
        }
    }
}
