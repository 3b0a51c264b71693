//! What is wrong with the database, said once however many connections notice it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::DatabaseError;

/// Different errors of one outage that are said. A server that goes down has three or four ways to put it.
const ERRORS_SAID_MAX: usize = 16;

/// Shared by all connections to one database. Over as soon as one of them has served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outage(Arc<Mutex<Vec<DatabaseError>>>);

impl Outage {
    /// Whether this is worth a line in the log.
    pub(crate) fn is_news(&self, error: &DatabaseError) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = said.len() < ERRORS_SAID_MAX && !said.contains(error);
        if is_news {
            said.push(error.clone());
        }
        is_news
    }

    /// A connection has served.
    pub(crate) fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(number: usize) -> DatabaseError {
        DatabaseError::Lost { reason: number.to_string() }
    }

    #[test]
    fn an_error_is_news_once_until_the_outage_is_over() {
        let outage = Outage::default();
        assert!(outage.is_news(&error(1)));
        assert!(!outage.clone().is_news(&error(1)), "another connection has said it");
        assert!(outage.is_news(&error(2)));
        outage.end();
        assert!(outage.is_news(&error(1)), "a new outage");
    }

    #[test]
    fn no_more_than_sixteen_are_said() {
        let outage = Outage::default();
        let said = (0..100).filter(|number| outage.is_news(&error(*number))).count();
        assert_eq!(said, ERRORS_SAID_MAX);
    }
}
