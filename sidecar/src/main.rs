//! The command `orbhook`: reads the arguments, runs, turns the outcome into an exit code.

use std::{
    io::Write,
    process::{ExitCode, exit},
    time::Duration,
};

use clap::Parser;
use orbhook_sidecar::{
    Arguments, CheckConfig, Command, Config, Error, check, keygen, reseal, run, seal, start_log, top,
};
use tokio::signal::unix::{SignalKind, signal};

/// 128 + SIGINT, as a shell would report it.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// A DNS look-up that hangs cannot be cancelled; the process does not wait for it.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

/// How many tasks a thread goes through before it looks at timers and sockets again. A task that reads from a receiver that floods
/// it takes milliseconds; with tokio's 61, a dozen such made every timeout of the process seconds late.
const POLLS_BETWEEN_TIMERS: u32 = 4;

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match start_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start threads: {error}"), None, 1),
    };
    let outcome = runtime.block_on(execute(arguments.command));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), error.hint(), error.exit_code()),
    }
}

fn start_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().event_interval(POLLS_BETWEEN_TIMERS).build()
}

async fn execute(command: Command) -> Result<(), Error> {
    match command {
        Command::Run(arguments) => {
            let stop = stop_signal();
            start_log(&arguments.log)?;
            run(Config::from_arguments(*arguments)?, stop).await
        }
        Command::Check(arguments) => {
            start_log(&arguments.log)?;
            say(&check(&CheckConfig::from_arguments(arguments)?).await?);
            Ok(())
        }
        Command::Keygen(arguments) => {
            say(&[keygen(&arguments)?]);
            Ok(())
        }
        Command::Seal(arguments) => {
            start_log(&arguments.log)?;
            say(&[seal(arguments, std::io::stdin()).await?]);
            Ok(())
        }
        Command::Reseal(arguments) => {
            start_log(&arguments.log)?;
            say(&reseal(arguments).await?);
            Ok(())
        }
        Command::Top(arguments) => top(arguments, stop_signal()).await,
    }
}

/// Ready at the first SIGTERM or SIGINT, counted from the call on. The second ends the process.
fn stop_signal() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            tracing::error!("cannot watch for signals; SIGTERM will end the process at once");
            return std::future::pending().await;
        };
        let mut next = async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        tokio::spawn(async move {
            next().await;
            exit(EXIT_SECOND_SIGNAL);
        });
    }
}

fn say(lines: &[String]) {
    // Nobody may be reading any more; the exit code says it all.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}

fn fail(message: &str, hint: Option<&str>, code: u8) -> ExitCode {
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "orbhook: {message}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    ExitCode::from(code)
}
