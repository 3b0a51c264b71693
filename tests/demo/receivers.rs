use orbhook_tests::{Answer, Receiver};
use serde_json::{Value, json};

/// One of the services, played by a path of the loopback receiver.
pub(crate) struct Service {
    pub(crate) provider: &'static str,
    pub(crate) path: &'static str,
    /// Content type and body of the service's own answer to a good request.
    answer: (&'static str, &'static str),
    /// `providerSpecificConfig`, as JSON.
    config: &'static str,
    /// What the webhook is signed with. A real one comes from a random generator.
    secret: &'static str,
}

pub(crate) const RECEIVERS: &[Service] = &[
    Service {
        provider: "SLACK",
        path: "/slack",
        answer: ("text/html", "ok"),
        config: r##"{"channel": "#user-events", "username": "OrbVPN Monitor", "icon_emoji": ":shield:"}"##,
        secret: "whsec_c2xhY2stZGVtby1zZWNyZXQtMDEyMzQ1Njc4OWFi",
    },
    Service {
        provider: "GOHIGHLEVEL",
        path: "/ghl",
        answer: (
            "application/json",
            r#"{"status":"Success: request sent to trigger execution server","id":"7c9e6679-7425-40de-944b-e07fc1f90ae7"}"#,
        ),
        config: r#"{"locationId": "your-location-id", "apiKey": "your-api-key", "source": "OrbVPN"}"#,
        secret: "whsec_Z2hsLWRlbW8tc2VjcmV0LTAxMjM0NTY3ODlhYmNk",
    },
    Service {
        provider: "ZAPIER",
        path: "/zapier",
        answer: (
            "application/json",
            r#"{"status":"success","attempt":"0190b6d1-52a4","id":"0190b6d1-52a4","request_id":"0190b6d1-52a4"}"#,
        ),
        config: r#"{"api_key": "your-zapier-key", "source": "OrbVPN", "version": "1.0"}"#,
        secret: "whsec_emFwaWVyLWRlbW8tc2VjcmV0LTAxMjM0NTY3ODlh",
    },
    Service {
        provider: "GENERIC",
        path: "/generic",
        answer: ("application/json", "{}"),
        config: "{}",
        secret: "whsec_Z2VuZXJpYy1kZW1vLXNlY3JldC0wMTIzNDU2Nzg5",
    },
];

pub(crate) fn answer_as_they_do(receiver: &Receiver, service: &Service) {
    let (content_type, body) = service.answer;
    receiver.answer(service.path, Answer::status(200).header("content-type", content_type).body(body));
}

/// The configuration object of the product document.
pub(crate) fn configuration(receiver: &Receiver, service: &Service) -> Value {
    let provider_config: Value =
        serde_json::from_str(service.config).expect("the configurations above are JSON");
    json!({
        "name": format!("{} in the demo", service.provider),
        "providerType": service.provider,
        "endpoint": receiver.url(service.path),
        "active": true,
        "subscribedEvents": ["USER_*", "SUBSCRIPTION_CREATED", "PAYMENT_RECEIVED"],
        "providerSpecificConfig": provider_config,
        "rateLimit": null,
        "signingSecret": service.secret,
    })
}

/// The signing secret of the webhook whose requests come to this path.
pub(crate) fn secret_of(path: &str) -> String {
    RECEIVERS
        .iter()
        .find(|service| service.path == path)
        .map(|service| service.secret.to_owned())
        .unwrap_or_default()
}
