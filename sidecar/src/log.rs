//! Log lines: text for people, JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::{
    arguments::{LogArguments, LogFormat},
    error::Error,
};

/// Starts logging to standard error. A process does it once.
pub fn start(arguments: &LogArguments) -> Result<(), Error> {
    let filter = EnvFilter::try_new(&arguments.log_level)
        .map_err(|_| Error::LogFilter(arguments.log_level.clone()))?;
    // Only what this project says itself, whatever the filter asks for: at trace level the HTTP libraries print paths and
    // headers, and those hold secrets.
    let ours = filter_fn(|metadata| metadata.target().starts_with("orbhook"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match arguments.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // A second subscriber in one process (tests) is refused; the first one stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(ours)).with(filter).try_init();
    std::panic::set_hook(Box::new(|panic| {
        // Where, and not what: a panic's message can hold the value it stumbled over.
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, "panic; this is a bug");
    }));
    Ok(())
}
