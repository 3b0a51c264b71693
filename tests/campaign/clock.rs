use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since the campaign began, by the monotonic clock. Everything that is logged has such a time.
pub(crate) type Micros = i64;

pub(crate) const MILLISECOND: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// The campaign's clock, which also knows where the database's times lie on it.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    began: Instant,
    began_unix_us: i64,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        Clock { began: Instant::now(), began_unix_us: i64::try_from(unix.as_micros()).expect("it fits") }
    }

    pub(crate) fn now(&self) -> Micros {
        i64::try_from(self.began.elapsed().as_micros()).expect("a campaign lasts less than an age")
    }

    /// A time of the database's, in microseconds since 1970, which is the same machine's wall clock.
    pub(crate) fn at_unix(&self, unix_us: i64) -> Micros {
        unix_us - self.began_unix_us
    }
}
