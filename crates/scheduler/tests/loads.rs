//! What spreading prompts over steps is for, on loads and a simulated device: more tokens a second and short gaps, with first tokens that are not much later.

#[path = "../examples/simulate/load.rs"]
mod load;

use load::{DEVICES, Load, Run, arrivals, percentile};

struct Seen {
    rate: f64,
    first: f64,
    first_p95: f64,
    per_token: f64,
    gap_p99: f64,
    requests: usize,
}

fn seen(device: usize, paced: bool, load: &Load, prompt: u32) -> Seen {
    let mut run = Run::new(&DEVICES[device], paced, prompt, 128);
    let rate = run.run(load);
    Seen {
        rate,
        first: percentile(&mut run.first_tokens, 0.5),
        first_p95: percentile(&mut run.first_tokens, 0.95),
        per_token: percentile(&mut run.per_token, 0.5),
        gap_p99: percentile(&mut run.gaps, 0.99),
        requests: run.per_token.len(),
    }
}

/// Spread, and not.
fn both(device: usize, load: &Load, prompt: u32) -> (Seen, Seen) {
    (seen(device, true, load, prompt), seen(device, false, load, prompt))
}

#[test]
fn clients_that_wait_for_their_answers_get_more_tokens_and_short_gaps() {
    for (clients, gain) in [(50, 1.18), (100, 1.11), (256, 1.03)] {
        let (auto, full) = both(0, &Load::Closed { clients, requests: clients * 8 }, 512);
        assert_eq!((auto.requests, full.requests), (clients * 8, clients * 8));
        assert!(auto.rate > gain * full.rate, "{clients} clients: {} tok/s spread, {}", auto.rate, full.rate);
        assert!(auto.first < full.first, "{clients} clients: {} ms spread, {}", auto.first, full.first);
        assert!(auto.gap_p99 < 0.35 * full.gap_p99, "{clients} clients: {} ms spread, {}", auto.gap_p99, full.gap_p99);
    }
}

#[test]
fn a_small_model_loses_nothing() {
    for clients in [10, 50, 100, 256] {
        let (auto, full) = both(1, &Load::Closed { clients, requests: clients * 8 }, 512);
        let name = DEVICES[1].name;
        assert!(auto.rate > 0.98 * full.rate, "{name}, {clients} clients: {} tok/s spread, {}", auto.rate, full.rate);
        assert!(auto.first < full.first, "{clients} clients: {} ms spread, {}", auto.first, full.first);
    }
}

#[test]
fn requests_that_come_by_themselves_get_short_gaps_and_somewhat_later_first_tokens() {
    // Three, five and eight tenths of what it can do. Who spreads prompts pays with first tokens for the time of all others.
    for (per_second, later, later_p95) in [(16.2, 1.3, 1.45), (27.0, 1.45, 1.75), (43.2, 1.65, 2.8)] {
        let (auto, full) = both(0, &Load::Open { arrivals: arrivals(per_second, 800) }, 512);
        assert_eq!((auto.requests, full.requests), (800, 800));
        assert!(auto.first < later * full.first, "{per_second}/s: {} ms spread, {}", auto.first, full.first);
        assert!(
            auto.first_p95 < later_p95 * full.first_p95,
            "{per_second}/s: {} ms, {}",
            auto.first_p95,
            full.first_p95
        );
        assert!(auto.per_token < 0.97 * full.per_token, "{per_second}/s: {} ms, {}", auto.per_token, full.per_token);
        assert!(auto.gap_p99 < 0.7 * full.gap_p99, "{per_second}/s: {} ms, {}", auto.gap_p99, full.gap_p99);
    }
}

#[test]
fn long_prompts_do_not_wait_for_the_sake_of_the_pace() {
    let (auto, full) = both(0, &Load::Open { arrivals: arrivals(2.4, 120) }, 8000);
    assert!(auto.first < 1.15 * full.first && auto.first_p95 < 1.25 * full.first_p95);
    assert!(auto.gap_p99 < 0.4 * full.gap_p99, "{} ms spread, {}", auto.gap_p99, full.gap_p99);
}
