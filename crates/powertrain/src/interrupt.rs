//! Ctrl-C and SIGTERM: the first ends a measurement and keeps what was measured, the second ends the program.

use powertrain_load::Stop;
use powertrain_sweep::server;
use tokio::signal::unix::{SignalKind, signal};

/// Ends with this code at the second signal, as a shell reports Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Requests `stop` at the first signal. At the second, servers that were started are killed, not left behind.
pub(crate) fn stop_on_interrupt(stop: &Stop) {
    let stop = stop.clone();
    let watch = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            for time in 0.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
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
}
