//! Is the database ready for a sidecar? Asked by `orbhook check`, and by `orbhook run` each time it connects.

use std::time::{Duration, SystemTime};

use tokio_postgres::types::Type;

use crate::{
    config::CheckConfig,
    db::{Connector, Db},
    error::{DatabaseError, Error},
};

/// Everything the sidecar calls. Its role may do nothing else.
const FUNCTIONS: [&str; 12] = [
    "register",
    "deregister",
    "doze",
    "rouse",
    "look",
    "claim",
    "settle",
    "tend",
    "gauges",
    "start_test",
    "test_result",
    "standing",
];

/// Receivers refuse signatures whose timestamp is 5 minutes off; this leaves time to notice.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(30);

const VERSION: &str = env!("CARGO_PKG_VERSION");

const STATE: &str = "\
SELECT (SELECT e.extversion FROM pg_catalog.pg_extension e WHERE e.extname = 'orbhook'),
       pg_catalog.current_database()::pg_catalog.text,
       pg_catalog.current_setting('fsync'),
       pg_catalog.current_setting('full_page_writes'),
       pg_catalog.current_setting('server_version'),
       extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8,
       (SELECT a.default_version FROM pg_catalog.pg_available_extensions() a WHERE a.name = 'orbhook')";

const PRIVILEGES: &str = "\
SELECT p.proname::pg_catalog.text,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'orbhook' AND p.proname = ANY ($1)";

/// What the database says of the environment, the keys and its log.
const STANDING: &str = "SELECT subject, severity, message, hint FROM orbhook.standing($1, $2)";

/// `orbhook check`: lines for a person to read, or what is wrong.
pub async fn check(check: &CheckConfig) -> Result<Vec<String>, Error> {
    let connector = Connector::new(&check.database)?;
    let (db, _) = connector.connect().await?;
    let key_ids: Vec<String> = check.keys.ids().map(ToString::to_string).collect();
    let findings = examine(&db, &check.environment, &key_ids).await?;
    db.close().await;
    findings.refuse_silenced()?;
    findings.refuse_missing_keys()?;
    let mut lines = vec![
        format!(
            "OK       connected to {}, a primary (PostgreSQL {})",
            findings.database, findings.server_version
        ),
        format!("OK       extension orbhook {}, sidecar {VERSION}", findings.extension),
        "OK       the role may call everything the sidecar needs".to_owned(),
    ];
    lines.extend(findings.good().map(|message| format!("OK       {message}")));
    lines.extend(findings.warnings().into_iter().map(|warning| format!("WARNING  {warning}")));
    Ok(lines)
}

/// What a working database looks like, with what is odd about it.
#[derive(Debug)]
pub(crate) struct Findings {
    database: String,
    /// Version of the schema in the database.
    extension: String,
    /// Version of the files on the server; `None`: they are gone.
    files: Option<String>,
    server_version: String,
    is_durable: bool,
    /// This machine's clock minus the database's.
    clock_skew_seconds: f64,
    standing: Vec<Standing>,
}

/// A row of `orbhook.standing`.
#[derive(Debug, Clone)]
struct Standing {
    severity: String,
    message: String,
    hint: Option<String>,
}

impl Findings {
    /// Err: nothing is sent from here for this environment.
    pub(crate) fn refuse_silenced(&self) -> Result<(), DatabaseError> {
        match self.first("stop") {
            Some((reason, hint)) => Err(DatabaseError::Silenced { reason, hint }),
            None => Ok(()),
        }
    }

    fn refuse_missing_keys(&self) -> Result<(), DatabaseError> {
        match self.first("missing") {
            Some((reason, hint)) => Err(DatabaseError::KeyMissing { reason, hint }),
            None => Ok(()),
        }
    }

    fn first(&self, severity: &str) -> Option<(String, String)> {
        let found = self.standing.iter().find(|row| row.severity == severity)?;
        Some((found.message.clone(), found.hint.clone().unwrap_or_default()))
    }

    fn good(&self) -> impl Iterator<Item = &str> {
        self.standing.iter().filter(|row| row.severity == "ok").map(|row| row.message.as_str())
    }

    pub(crate) fn warn(&self) {
        for warning in self.warnings() {
            tracing::warn!("{warning}");
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.files.as_ref() != Some(&self.extension) {
            let files = self.files.as_deref().unwrap_or("no version");
            warnings.push(format!(
                "the server has the files of orbhook {files}, this database has orbhook {}: run ALTER EXTENSION orbhook UPDATE, or install the files of that version or a later one",
                self.extension
            ));
        }
        if !self.is_durable {
            warnings.push(
                "fsync or full_page_writes is off: a crash of the server can lose events and corrupt the database".to_owned(),
            );
        }
        if self.clock_skew_seconds.abs() > CLOCK_SKEW_MAX.as_secs_f64() {
            warnings.push(format!(
                "this machine's clock and the database's differ by {:.0} s: signatures carry this machine's time, and receivers refuse what is 5 minutes off",
                self.clock_skew_seconds.abs()
            ));
        }
        let said = self.standing.iter().filter(|row| ["warning", "missing"].contains(&row.severity.as_str()));
        warnings.extend(said.map(|row| match &row.hint {
            Some(hint) => format!("{}; {hint}", row.message),
            None => row.message.clone(),
        }));
        warnings
    }
}

/// Errors: ExtensionMissing, VersionMismatch, NoPrivilege, or trouble with the connection.
pub(crate) async fn examine(
    db: &Db,
    environment: &str,
    key_ids: &[String],
) -> Result<Findings, DatabaseError> {
    let mut findings = examine_version(db).await?;
    examine_privileges(db, &findings.extension).await?;
    findings.standing = db
        .query(STANDING, &[(&environment, Type::TEXT), (&key_ids, Type::TEXT_ARRAY)])
        .await?
        .iter()
        .map(|row| {
            Ok(Standing { severity: row.try_get(1)?, message: row.try_get(2)?, hint: row.try_get(3)? })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|error| DatabaseError::Unexpected { reason: error.to_string() })?;
    Ok(findings)
}

/// Errors: ExtensionMissing, VersionMismatch, or trouble with the connection.
pub(crate) async fn examine_version(db: &Db) -> Result<Findings, DatabaseError> {
    let rows = db.query(STATE, &[]).await?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let read = |error: tokio_postgres::Error| DatabaseError::Unexpected { reason: error.to_string() };
    let row = rows.first().ok_or_else(|| DatabaseError::Unexpected { reason: "no row".to_owned() })?;
    let database: String = row.try_get(1).map_err(read)?;
    let Some(extension) = row.try_get::<_, Option<String>>(0).map_err(read)? else {
        return Err(DatabaseError::ExtensionMissing { database });
    };
    if !is_compatible(VERSION, &extension) {
        return Err(DatabaseError::VersionMismatch { extension, sidecar: VERSION.to_owned() });
    }
    let settings: [String; 2] = [row.try_get(2).map_err(read)?, row.try_get(3).map_err(read)?];
    Ok(Findings {
        database,
        extension,
        files: row.try_get(6).map_err(read)?,
        server_version: row.try_get(4).map_err(read)?,
        is_durable: settings.iter().all(|setting| setting == "on"),
        clock_skew_seconds: now - row.try_get::<_, f64>(5).map_err(read)?,
        standing: Vec::new(),
    })
}

async fn examine_privileges(db: &Db, extension: &str) -> Result<(), DatabaseError> {
    let rows = db.query(PRIVILEGES, &[(&FUNCTIONS.as_slice(), Type::TEXT_ARRAY)]).await?;
    let granted = |name: &str| {
        rows.iter()
            .find(|row| row.try_get::<_, &str>(0).is_ok_and(|function| function == name))
            .and_then(|row| row.try_get::<_, bool>(1).ok())
    };
    for name in FUNCTIONS {
        match granted(name) {
            Some(true) => {}
            Some(false) => return Err(DatabaseError::NoPrivilege { action: format!("call orbhook.{name}") }),
            None => {
                return Err(DatabaseError::VersionMismatch {
                    extension: format!("{extension} (without orbhook.{name})"),
                    sidecar: VERSION.to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// Extension and sidecar are updated one after the other, so one minor version apart must work; a major version need not.
fn is_compatible(sidecar: &str, extension: &str) -> bool {
    match (major_and_minor(sidecar), major_and_minor(extension)) {
        (Some(ours), Some(theirs)) => ours.0 == theirs.0 && ours.1.abs_diff(theirs.1) <= 1,
        _ => false,
    }
}

fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_apart_works_together() {
        for (sidecar, extension, compatible) in [
            ("0.1.0", "0.1.0", true),
            ("0.1.0", "0.1.7", true),
            ("0.1.0", "0.2.0", true),
            ("0.2.0", "0.1.9", true),
            ("0.1.0", "0.3.0", false),
            ("1.0.0", "0.9.0", false),
            ("1.0.0", "2.0.0", false),
            ("0.1.0", "nonsense", false),
            ("0.1.0", "", false),
        ] {
            assert_eq!(is_compatible(sidecar, extension), compatible, "{sidecar} {extension}");
        }
    }

    #[test]
    fn a_clock_that_is_off_and_a_server_that_forgets_are_mentioned() {
        let mut findings = Findings {
            database: "shop".to_owned(),
            extension: "0.1.0".to_owned(),
            files: Some("0.1.0".to_owned()),
            server_version: "15.15".to_owned(),
            is_durable: true,
            clock_skew_seconds: -29.0,
            standing: Vec::new(),
        };
        assert!(findings.warnings().is_empty());
        findings.clock_skew_seconds = -31.0;
        findings.is_durable = false;
        assert_eq!(findings.warnings().len(), 2);
        findings.files = Some("0.2.0".to_owned());
        assert!(findings.warnings()[0].contains("ALTER EXTENSION"));
    }
}
