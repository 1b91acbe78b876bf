//! `powertrain bench self`: the client's own error.

use super::{arguments::Arguments, stop_on_interrupt};
use crate::print;
use anyhow::ensure;
use powertrain_load::{
    Stop, default_threads,
    proof::{self, Verdict},
};
use std::time::Duration;

/// Runs every trap against the built-in server. Failing one fails the command.
pub(super) fn prove_itself(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    let streams = arguments.concurrency.first().copied().unwrap_or(1000);
    let rate = arguments.request_rate.first().copied().unwrap_or(100.0);
    ensure!(
        (1.0..=10_000.0).contains(&rate),
        "--request-rate {rate}: of `self` it is tokens per second and stream, 1 to 10000"
    );
    let duration = Duration::from_secs_f64(arguments.duration.unwrap_or(5.0).clamp(0.1, 600.0));
    let threads = arguments.client_threads.map_or_else(default_threads, usize::from);
    let (mut wrong, mut late) = (0, 0);
    for case in proof::cases(streams, rate, duration) {
        if stop.is_requested() {
            break;
        }
        let result = proof::prove(&case, threads, &stop)?;
        let verdict = match result.verdict {
            Verdict::Right => "right",
            Verdict::Late => "LATE ",
            Verdict::Wrong => "WRONG",
        };
        wrong += usize::from(result.verdict == Verdict::Wrong);
        late += usize::from(result.verdict == Verdict::Late);
        let mut text = format!("{verdict}  {} ({} clients)\n       {}\n", result.name, case.concurrency, result.found);
        let client = &result.client;
        if result.verdict == Verdict::Late {
            text.push_str(&format!(
                "       a client thread used {:.0} % of a CPU and waited for one {:.0} % of the time, while other programs used \
                 {:.1} CPU s\n",
                client.cpu_share_max * 100.0,
                client.cpu_wait_share_max * 100.0,
                client.others_cpu_s.unwrap_or(0.0),
            ));
        }
        for reason in &client.client_limited {
            text.push_str(&format!("       client-limited: {reason}\n"));
        }
        print(&text)?;
    }
    ensure!(wrong == 0 && late == 0, "{wrong} cases were measured wrong and {late} late, on this machine now");
    Ok(())
}
