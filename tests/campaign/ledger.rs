//! What the emitters intended and what became of it, kept outside the database by a process that nobody kills.
//!
//! An event is known by its token, a number that is part of its payload. Each step is in the file before the next begins.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::clock::{Clock, Micros};

pub(crate) type Token = u64;

/// What became of an event, as far as its emitter can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Written down before the first statement; still so at the end only if the emitter was stopped before it began.
    Intended,
    /// The commit was acknowledged by a session that waits for its record to be durable.
    Acked,
    /// Acknowledged with synchronous_commit = off: a crash may take it back.
    AckedEarly,
    /// Rolled back, to a savepoint or as a whole, or never committed.
    RolledBack,
    /// The session died during the commit.
    Ambiguous,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) fate: Fate,
    /// When that was known.
    pub(crate) at: Micros,
    pub(crate) event_type: &'static str,
}

/// Counts and entries.
pub(crate) struct Ledger {
    clock: Clock,
    book: Mutex<Book>,
}

struct Book {
    entries: HashMap<Token, Entry>,
    file: File,
    transactions: u64,
    /// What the database refused although nothing was wrong with it.
    refusals: Vec<String>,
}

impl Ledger {
    pub(crate) fn create(directory: &Path, clock: Clock) -> Ledger {
        let file = File::create(directory.join("ledger")).expect("the ledger's file");
        let book = Book { entries: HashMap::new(), file, transactions: 0, refusals: Vec::new() };
        Ledger { clock, book: Mutex::new(book) }
    }

    /// Before a transaction begins: the events it will emit.
    pub(crate) fn intend(&self, events: &[(Token, &'static str)]) {
        let at = self.clock.now();
        let mut book = self.book();
        book.transactions += 1;
        let mut lines = String::new();
        for (token, event_type) in events {
            lines.push_str(&format!("{at} {token} {:?} {event_type}\n", Fate::Intended));
            book.entries.insert(*token, Entry { fate: Fate::Intended, at, event_type });
        }
        book.file.write_all(lines.as_bytes()).expect("the ledger is written");
    }

    /// After it: what became of them.
    pub(crate) fn record(&self, tokens: &[Token], fate: Fate) {
        let at = self.clock.now();
        let mut book = self.book();
        let mut lines = String::new();
        for token in tokens {
            lines.push_str(&format!("{at} {token} {fate:?}\n"));
            let entry = book.entries.get_mut(token).expect("it was intended");
            (entry.fate, entry.at) = (fate, at);
        }
        book.file.write_all(lines.as_bytes()).expect("the ledger is written");
    }

    pub(crate) fn refuse(&self, what: String) {
        self.book().refusals.push(what);
    }

    pub(crate) fn entries(&self) -> HashMap<Token, Entry> {
        self.book().entries.clone()
    }

    pub(crate) fn transactions(&self) -> u64 {
        self.book().transactions
    }

    pub(crate) fn refusals(&self) -> Vec<String> {
        self.book().refusals.clone()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with it")
    }
}
