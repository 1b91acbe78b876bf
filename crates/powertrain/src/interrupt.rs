//! Ctrl-C, SIGTERM and a terminal that is gone: the first ends a measurement and keeps what was measured, the second ends the program.

use powertrain_load::Stop;
use powertrain_sweep::server;
use tokio::signal::unix::{SignalKind, signal};

/// Ends with this code at the second signal, as a shell reports Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Requests `stop` at the first signal. At the second, servers that were started are killed, not left behind. Signals that come after this call are
/// not lost.
pub(crate) fn stop_on_interrupt(stop: &Stop) {
    let stop = stop.clone();
    let (watches, watching) = std::sync::mpsc::channel::<()>();
    let watch = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            let mut hangup = if ignores_hangup() { None } else { signal(SignalKind::hangup()).ok() };
            drop(watches);
            for time in 0.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    Some(_) = async { hangup.as_mut()?.recv().await }, if hangup.is_some() => {}
                }
                if time > 0 {
                    server::kill_all();
                    std::process::exit(INTERRUPTED);
                }
                eprintln!("\nending; what is finished is kept (again: at once)");
                stop.request();
            }
        });
    };
    // Without this thread a signal ends the program at once, as it would any other.
    _ = std::thread::Builder::new().name("interrupt".to_owned()).spawn(watch);
    // Until the thread watches, or is gone: its end of the channel is dropped.
    _ = watching.recv();
}

/// Whether whoever started this wants it to outlive the terminal, as nohup does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal 1 is the lowest bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
