//! `orbhook reseal`: the second half of a change of keys. What is sealed with an older key is opened and sealed with the one that
//! was installed last. Only this can do it: the database can seal and cannot open.

use orbhook_seal::seal;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::{
    arguments::ResealArguments,
    check,
    db::{Connector, Db},
    error::{DatabaseError, Error},
    keys::read_keys,
    seal::installed_key,
};

/// Secrets asked for at once.
const BATCH: i32 = 500;

const OUTDATED: &str = "SELECT webhook_id, name, value FROM orbhook.outdated_secrets($1, $2, $3)";
const RESEAL: &str = "SELECT orbhook.reseal($1, $2, $3, $4)";

/// Returns lines for a person to read. Errors: also when a secret could not be opened, after all others are done.
pub async fn reseal(arguments: ResealArguments) -> Result<Vec<String>, Error> {
    let ring = read_keys(&arguments.keys.key_file).map_err(crate::config::ConfigError::KeyFile)?;
    let connector = Connector::new(&arguments.database.parse()?)?;
    let key = installed_key(&connector).await?;
    let (db, _) = connector.connect().await?;
    check::examine_version(&db).await?;
    let (mut done, mut failed) = (0_u64, Vec::new());
    let mut after: Option<(Uuid, String)> = None;
    loop {
        let secrets = outdated(&db, after.as_ref()).await?;
        let Some(last) = secrets.last() else { break };
        after = Some((last.webhook, last.name.clone()));
        for Outdated { webhook, name, value } in &secrets {
            let plain = match ring.open(*webhook, name, value) {
                Ok(plain) => plain,
                Err(error) => {
                    failed.push(format!("webhook {webhook}: the secret {name:?} {error}"));
                    continue;
                }
            };
            let sealed = seal(&key, *webhook, name, &plain)
                .ok_or_else(|| Error::Secret("is too large to be sealed".to_owned()))?;
            let parameters = [
                (webhook as _, Type::UUID),
                (name as _, Type::TEXT),
                (value as _, Type::TEXT),
                (&sealed as _, Type::TEXT),
            ];
            let rows = db.query(RESEAL, &parameters).await?;
            // False: somebody has set another secret meanwhile, which was sealed with the new key.
            done += u64::from(rows.first().and_then(|row| row.try_get(0).ok()) == Some(true));
        }
    }
    db.close().await;
    if failed.is_empty() {
        return Ok(vec![format!("{done} secrets sealed with key {}; none is left with another", key.id())]);
    }
    Err(Error::Unopened { done, failed: failed.join("\n") })
}

struct Outdated {
    webhook: Uuid,
    name: String,
    value: String,
}

async fn outdated(db: &Db, after: Option<&(Uuid, String)>) -> Result<Vec<Outdated>, DatabaseError> {
    let (webhook, name) = (after.map(|after| after.0), after.map(|after| after.1.as_str()));
    let parameters = [(&webhook as _, Type::UUID), (&name as _, Type::TEXT), (&BATCH as _, Type::INT4)];
    db.query(OUTDATED, &parameters)
        .await?
        .iter()
        .map(|row| Ok(Outdated { webhook: row.try_get(0)?, name: row.try_get(1)?, value: row.try_get(2)? }))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|error| DatabaseError::Unexpected { reason: error.to_string() })
}
