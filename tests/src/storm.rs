use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio_postgres::types::ToSql;

use crate::database::{Database, Session};

/// What `orbhook_*` may answer to arguments of any kind, as their comments say it. 22P02, 22P05, 22021 and 54001 are PostgreSQL's
/// own, from turning text into jsonb before orbhook sees it.
const DOCUMENTED: &[&str] =
    &["22023", "54000", "42809", "42602", "22004", "42501", "22P02", "22P05", "22021", "54001"];

/// Random statements against the functions people call.
///
/// Types, payloads, providers, configurations and mappings that are nearly right, wrong in a detail, or noise. The same seed makes
/// the same statements.
pub struct SqlStorm {
    random: StdRng,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct StormOutcome {
    pub statements: u64,
    pub accepted: u64,
    /// By SQLSTATE.
    pub refused: BTreeMap<String, u64>,
    /// Statements whose answer is not in the list, with it; at most ten.
    pub undocumented: Vec<String>,
    /// Statements after which the session was gone; at most ten.
    pub fatal: Vec<String>,
    /// Whether the server was still the one it was at the start.
    pub same_server: bool,
}

impl SqlStorm {
    pub fn new(seed: u64) -> SqlStorm {
        SqlStorm { random: StdRng::seed_from_u64(seed) }
    }

    /// Runs so many statements, each in a transaction that is rolled back.
    pub async fn run(&mut self, database: &Database, statements: u64) -> StormOutcome {
        let started = "select pg_postmaster_start_time()::text";
        database
            .execute(
                "create table storm_users (id bigint primary key, email text, status text, plan text, last_login timestamptz, extra jsonb);
                 create table storm_odd (\"a b\" text, c xml, d int4range, e point, f bit(3))",
            )
            .await;
        let before: String = database.one(started, &[]).await;
        let mut session = database.connect().await;
        let mut outcome = StormOutcome::default();
        for _ in 0..statements {
            let (sql, arguments) = self.statement();
            outcome.statements += 1;
            match run(&session, &sql, &arguments).await {
                Ok(()) => outcome.accepted += 1,
                Err(error) => match error.code() {
                    Some(code) if !session.is_closed() => {
                        let code = code.code().to_owned();
                        if !DOCUMENTED.contains(&code.as_str()) && outcome.undocumented.len() < 10 {
                            outcome
                                .undocumented
                                .push(format!("{code}: {error:?} in {sql} with {arguments:?}"));
                        }
                        *outcome.refused.entry(code).or_default() += 1;
                    }
                    _ => {
                        outcome.fatal.push(format!("{error:?} in {sql} with {arguments:?}"));
                        if outcome.fatal.len() == 10 {
                            return outcome;
                        }
                        session = database.connect().await;
                    }
                },
            }
        }
        outcome.same_server = database.one::<String>(started, &[]).await == before;
        outcome
    }

    fn statement(&mut self) -> (String, Vec<Option<String>>) {
        match self.random.random_range(0..10) {
            0..=3 => {
                let arguments = vec![self.event_type(), self.payload(), self.text(), self.time()];
                ("select orbhook_emit($1, $2::jsonb, $3, $4::timestamptz)".to_owned(), arguments)
            }
            4 | 5 => {
                let arguments = vec![self.provider(), self.payload(), self.config(true)];
                ("select orbhook_render($1, $2::jsonb, $3::jsonb)".to_owned(), arguments)
            }
            6 | 7 => ("select orbhook_create_webhook($1::jsonb)".to_owned(), vec![self.config(false)]),
            8 => {
                let source = self.pick(&["users", "subscriptions", "payments", "", "Users", "a'b"]);
                let table = self.pick(&["storm_users", "storm_odd", "pg_catalog.pg_class", "orbhook.events"]);
                (
                    format!("select * from orbhook_watch($1, '{table}', $2::jsonb)"),
                    vec![Some(source), self.mapping()],
                )
            }
            _ => {
                let arguments = vec![self.text(), self.payload(), self.text()];
                ("select orbhook_verify($1, $2::jsonb, $3)".to_owned(), arguments)
            }
        }
    }

    fn pick(&mut self, from: &[&str]) -> String {
        from[self.random.random_range(0..from.len())].to_owned()
    }

    fn event_type(&mut self) -> Option<String> {
        match self.random.random_range(0..6) {
            0..=3 => {
                Some(self.pick(&["USER_CREATED", "PAYMENT_RECEIVED", "SUBSCRIPTION_RENEWED", "USER_ACTION"]))
            }
            4 => self.text(),
            _ => None,
        }
    }

    fn provider(&mut self) -> Option<String> {
        match self.random.random_range(0..8) {
            0 => self.text(),
            _ => Some(self.pick(&["SLACK", "GOHIGHLEVEL", "ZAPIER", "GENERIC"])),
        }
    }

    fn time(&mut self) -> Option<String> {
        match self.random.random_range(0..8) {
            0 => Some(self.pick(&[
                "infinity",
                "-infinity",
                "epoch",
                "294276-12-31 23:59:59",
                "4713-01-01 BC",
                "now",
            ])),
            _ => None,
        }
    }

    /// JSON in text, mostly an object, now and then broken.
    fn payload(&mut self) -> Option<String> {
        let depth = if self.random.random_bool(0.05) { 60 } else { 4 };
        let mut json = match self.random.random_range(0..20) {
            0 => return None,
            1 => self.value(depth),
            2 => {
                let depth = self.random.random_range(1..3_000);
                format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))
            }
            3 => format!("{{\"n\": {}}}", "9".repeat(self.random.random_range(1..3_000))),
            4 => format!("{{\"n\": 1e{}}}", self.random.random_range(0..131_071)),
            _ => self.object(depth),
        };
        if self.random.random_bool(0.03) && !json.is_empty() {
            let at = self.random.random_range(0..json.len());
            if json.is_char_boundary(at) {
                json.truncate(at);
            }
        }
        Some(json)
    }

    fn object(&mut self, depth: usize) -> String {
        const KEYS: &[&str] = &[
            "userId",
            "email",
            "phone",
            "eventType",
            "amount",
            "currency",
            "metadata",
            "timestamp",
            "firstName",
            "plan",
            "reason",
            "id",
            "status",
            "country",
            "tags",
            "",
        ];
        let members: Vec<String> = (0..self.random.random_range(0..8))
            .map(|_| {
                let key = match self.random.random_bool(0.85) {
                    true => self.pick(KEYS),
                    false => self.text().unwrap_or_default(),
                };
                format!("{}:{}", Value::from(key), self.value(depth.saturating_sub(1)))
            })
            .collect();
        format!("{{{}}}", members.join(","))
    }

    fn value(&mut self, depth: usize) -> String {
        match self.random.random_range(0..if depth == 0 { 6 } else { 8 }) {
            0 => self.pick(&["null", "true", "false", "[]", "{}", "\"\""]),
            1 => self.pick(&[
                "0",
                "-0",
                "-1",
                "1e400",
                "1E-400",
                "0.1e1",
                "12345678901234567890123",
                "1e131071",
                "2147483648",
            ]),
            2 => self.pick(&[
                "\"\\ud83d\\ude00\"",
                "\"\\u0000\"",
                "\"\\ud800\"",
                "\"<!channel>\"",
                "\"=cmd|' /C calc'!A0\"",
                "\"+15550000\"",
            ]),
            3 => self.pick(&[
                "\"2026-02-30T00:00:00Z\"",
                "\"9999-12-31T23:59:60Z\"",
                "\"a@b\"",
                "1730647667",
                "-9e18",
            ]),
            4 | 5 => Value::from(self.text().unwrap_or_default()).to_string(),
            6 => {
                let elements: Vec<String> =
                    (0..self.random.random_range(0..5)).map(|_| self.value(depth - 1)).collect();
                format!("[{}]", elements.join(","))
            }
            _ => self.object(depth - 1),
        }
    }

    /// A webhook's configuration with some keys wrong, or a provider's part of it.
    fn config(&mut self, provider_part: bool) -> Option<String> {
        if self.random.random_bool(0.1) {
            return self.payload();
        }
        let mut keys: Vec<(&str, String)> = vec![
            ("name", "\"x\"".to_owned()),
            ("providerType", format!("\"{}\"", self.pick(&["SLACK", "GOHIGHLEVEL", "ZAPIER", "GENERIC"]))),
            ("endpoint", "\"https://hooks.example.com/x\"".to_owned()),
            ("subscribedEvents", "[\"*\"]".to_owned()),
        ];
        if provider_part {
            keys = vec![("channel", "\"#ops\"".to_owned()), ("locationId", "\"l\"".to_owned())];
        }
        for key in [
            "endpoint",
            "retryDelay",
            "maxRetries",
            "rateLimit",
            "headers",
            "filter",
            "signingSecret",
            "timeoutSeconds",
            "maxInFlight",
            "maxAgeSeconds",
            "providerSpecificConfig",
            "active",
            "subscribedEvents",
            "apiKey",
            "username",
            "customFields",
            "tags",
            "x",
        ] {
            if self.random.random_bool(0.12) {
                let value = match self.random.random_range(0..6) {
                    0 => self.pick(&[
                        "\"http://127.1/\"",
                        "\"https://u:p@h/\"",
                        "\"https://[::ffff:7f00:1]/\"",
                        "\"file:///etc/passwd\"",
                        "\"https://\"",
                        "\"https://h:0/\"",
                        "\"//h\"",
                        "\"https://\\u3002/\"",
                    ]),
                    1 => self.pick(&[
                        "\"$.a ? (@ > 1)\"",
                        "\"$.**{99999}\"",
                        "\"$[\"",
                        "\"strict $.a.double()\"",
                        "\"$ like_regex \\\"(\\\"\"",
                    ]),
                    2 => self.pick(&[
                        "{\"A\\nb\": \"c\"}",
                        "{\"Host\": \"x\"}",
                        "{\"X-A\": \"\\r\\n\"}",
                        "{\"webhook-id\": \"1\"}",
                    ]),
                    _ => self.value(3),
                };
                keys.push((key, value));
            }
        }
        let members: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        Some(format!("{{{}}}", members.join(",")))
    }

    fn mapping(&mut self) -> Option<String> {
        if self.random.random_bool(0.2) {
            return self.payload();
        }
        let members: Vec<String> = (0..self.random.random_range(0..5))
            .map(|_| {
                let key = self.pick(&[
                    "id",
                    "email",
                    "status",
                    "plan",
                    "columns",
                    "events",
                    "when",
                    "payload_function",
                    "payload",
                    "exclude",
                    "statuses",
                    "clock",
                    "expires_at",
                    "amount",
                    "user_id",
                    "join",
                ]);
                let value = match self.random.random_bool(0.5) {
                    true => format!(
                        "\"{}\"",
                        self.pick(&["email", "status", "nope", "extra", "a b", "last_login"])
                    ),
                    false => self.value(2),
                };
                format!("\"{key}\":{value}")
            })
            .collect();
        Some(format!("{{{}}}", members.join(",")))
    }

    fn text(&mut self) -> Option<String> {
        match self.random.random_range(0..8) {
            0 => None,
            1 => Some(String::new()),
            2 => Some("x".repeat(self.random.random_range(1..2_000))),
            3 => Some(self.pick(&[
                "'; drop table orbhook.events; --",
                "%s%n",
                "$1",
                "../..",
                "NULL",
                "\u{202e}rtl",
                "\u{1F468}\u{200D}\u{1F469}",
                "\u{7f}\u{1}",
            ])),
            _ => Some(
                (0..self.random.random_range(1..30))
                    .map(|_| self.random.random::<char>())
                    .filter(|c| *c != '\0')
                    .collect(),
            ),
        }
    }
}

async fn run(
    session: &Session,
    sql: &str,
    arguments: &[Option<String>],
) -> Result<(), tokio_postgres::Error> {
    let parameters: Vec<(&(dyn ToSql + Sync), tokio_postgres::types::Type)> = arguments
        .iter()
        .map(|argument| (argument as &(dyn ToSql + Sync), tokio_postgres::types::Type::TEXT))
        .collect();
    session.batch_execute("begin").await?;
    let answer = session.query_typed(&as_text(sql), &parameters).await.map(drop);
    if !session.is_closed() {
        session.batch_execute("rollback").await?;
    }
    answer
}

/// Parameters go as text and are turned into their types by the server, with its own errors.
fn as_text(sql: &str) -> String {
    sql.replace("::jsonb", "::text::jsonb").replace("::timestamptz", "::text::timestamptz")
}

impl StormOutcome {
    /// # Panics
    ///
    /// When a backend ended, the server restarted, an answer is not documented, or nothing was accepted.
    pub fn check(&self) {
        assert!(self.fatal.is_empty(), "backends ended: {:#?}", self.fatal);
        assert!(self.same_server, "the server restarted");
        assert!(self.undocumented.is_empty(), "not documented: {:#?}", self.undocumented);
        assert!(self.accepted > self.statements / 50, "{self}: too tame, or too wild");
    }
}

impl fmt::Display for StormOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} statements, {} accepted, refused by SQLSTATE: {:?}",
            self.statements, self.accepted, self.refused
        )?;
        write!(f, "; {} undocumented, {} backends ended", self.undocumented.len(), self.fatal.len())
    }
}
