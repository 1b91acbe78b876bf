//! `powertrain bench self`: the client's own error.

use super::arguments::Arguments;
use crate::interrupt::stop_on_interrupt;
use crate::print;
use anyhow::{Context, ensure};
use powertrain_load::{
    Clock, Stop,
    proof::{self, RemoteTruth, Script, TruthServer, Verdict, WRITTEN_SHARE_MIN},
};
use std::{process::ExitCode, time::Duration};

/// Ends with this code when everything was right, but a rate that was asked for was not written.
const BELOW_RATE: u8 = 3;
/// With so many clients their own work is shown, too.
const MANY: u32 = 100;

/// The built-in server alone, until Ctrl-C.
pub(super) fn serve_truth(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    let address = arguments.listen;
    let server = TruthServer::listen(address, arguments.threads(), Script::default(), Clock::start());
    let server = server.with_context(|| format!("cannot listen on {address}; --listen takes another address"))?;
    print(&format!("ground truth on http://{}; Ctrl-C ends it\n", server.address()))?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(stop.requested());
    Ok(())
}

/// Runs every trap against the built-in server. Failing one fails the command; one that was right below the rate asked ends it with
/// a code of its own.
pub(super) fn prove_itself(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let stop = Stop::new();
    stop_on_interrupt(&stop);
    let streams = arguments.concurrency.first().copied().unwrap_or(1000);
    let rate = arguments.request_rate.first().copied().unwrap_or(100.0);
    ensure!(
        (1.0..=10_000.0).contains(&rate),
        "--request-rate {rate}: of `self` it is tokens per second and stream, 1 to 10000"
    );
    let duration = Duration::from_secs_f64(arguments.duration.unwrap_or(5.0).clamp(0.1, 600.0));
    let threads = arguments.threads();
    let remote = arguments.ground_truth.as_ref().map(RemoteTruth::new);
    let mut cases = proof::cases(streams, rate, duration);
    if let Some(text) = &arguments.case {
        let names: Vec<_> = cases.iter().map(|case| case.name).collect();
        cases.retain(|case| case.name.contains(text.as_str()));
        ensure!(!cases.is_empty(), "--case {text}: no case's name holds that; they are `{}`", names.join("`, `"));
    }
    let (mut wrong, mut late, mut below) = (0, 0, 0);
    for case in cases {
        if stop.is_requested() {
            break;
        }
        let result = proof::prove(&case, threads, remote.as_ref(), &stop)?;
        let verdict = match result.verdict {
            Verdict::Right => "right",
            Verdict::BelowRate => "BELOW",
            Verdict::Late => "LATE ",
            Verdict::Wrong => "WRONG",
        };
        let client = &result.client;
        wrong += usize::from(result.verdict == Verdict::Wrong);
        late += usize::from(result.verdict == Verdict::Late);
        below += usize::from(result.verdict == Verdict::BelowRate);
        let mut text = format!("{verdict}  {} ({} clients)\n       {}\n", result.name, case.concurrency, result.found);
        if let (Verdict::BelowRate, Some(share)) = (result.verdict, result.written_share) {
            text.push_str(&format!(
                "       the ground truth wrote {:.0} % of the rate asked: right at that rate, NOT SHOWN at the rate asked\n",
                share * 100.0
            ));
        }
        if result.verdict == Verdict::Late || case.concurrency >= MANY {
            text.push_str(&format!(
                "       {} client threads, the busiest used {:.0} % of a CPU and waited for one {:.1} % of the time (with {}), while other programs \
                 used {:.1} CPU s; chunks were read p99 {:.2} max {:.2} ms after they came, in rounds {:.0} % of the time\n",
                client.threads,
                client.cpu_share_max * 100.0,
                client.cpu_wait_share_max * 100.0,
                client.priority_text(),
                client.others_cpu_s.unwrap_or(0.0),
                client.socket_wait_ms_p99.unwrap_or(f64::NAN),
                client.socket_wait_ms_max.unwrap_or(f64::NAN),
                client.in_rounds_share * 100.0,
            ));
        }
        for reason in &client.client_limited {
            text.push_str(&format!("       client-limited: {reason}\n"));
        }
        print(&text)?;
    }
    ensure!(wrong == 0 && late == 0, "{wrong} cases were measured wrong and {late} late, on this machine now");
    if below == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "{below} cases are right, but not shown at the rate asked: the ground truth wrote less than {:.0} % of it; give it CPUs of its own \
         (--ground-truth), or ask for less (--concurrency, --request-rate)",
        WRITTEN_SHARE_MIN * 100.0
    );
    Ok(ExitCode::from(BELOW_RATE))
}
