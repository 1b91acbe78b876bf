//! A level as text for a terminal: every number with its count, intervals where there are any.

use crate::{
    capacity::{CapacityResult, Unit},
    definitions::DEFINITIONS,
    record::FailureClass,
    result::{LevelResult, LoadResult},
    run::REFUSED_PAUSE,
    summary::{LatencySummary, Summary},
};
use std::fmt::Write;

/// The distributions of the table, in order.
const ROWS: [(&str, &str); 5] = [
    ("ttft_ms", "TTFT"),
    ("itl_ms", "ITL (chunks)"),
    ("token_gap_ms", "token gap"),
    ("tpot_ms", "TPOT"),
    ("e2e_ms", "E2E"),
];

/// One level as a block of lines.
pub fn level_table(level: &LevelResult) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    _ = write(&mut text, level);
    text
}

/// How load was offered, in a few words.
pub fn load_name(load: &LoadResult) -> String {
    match load {
        LoadResult::Closed { concurrency: 1 } => "closed loop, 1 client".to_owned(),
        LoadResult::Closed { concurrency } => format!("closed loop, {concurrency} clients"),
        LoadResult::Open { rate, arrivals, burstiness, .. } => {
            let shape = burstiness.map(|shape| format!(" of shape {shape}")).unwrap_or_default();
            format!("open loop, {rate} requests/s, {arrivals}{shape}")
        }
        LoadResult::Stages { unit, stages, .. } if unit == "clients" => format!("clients by stages, {stages}"),
        LoadResult::Stages { stages, arrivals, burstiness, .. } => {
            let arrivals = arrivals.as_ref().map(|arrivals| format!(", {arrivals}")).unwrap_or_default();
            let shape = burstiness.map(|shape| format!(" of shape {shape}")).unwrap_or_default();
            format!("open loop by stages, {stages} requests/s{arrivals}{shape}")
        }
        LoadResult::Trace { file, requests, time_scale, .. } => {
            format!("{requests} requests of the trace {file}, times multiplied by {time_scale}")
        }
        LoadResult::Unknown => "a load this version does not know".to_owned(),
    }
}

fn write(text: &mut String, level: &LevelResult) -> std::fmt::Result {
    writeln!(text, "\n{}{}", load_name(&level.load), if level.interrupted { " — INTERRUPTED" } else { "" })?;
    let Some(summary) = &level.summary else {
        return writeln!(text, "  no request was measured");
    };
    requests(text, summary)?;
    if summary.failures.contains_key(FailureClass::Refused.name()) && matches!(level.load, LoadResult::Closed { .. }) {
        let pause = REFUSED_PAUSE / 1_000_000;
        writeln!(
            text,
            "           a client waits {pause} ms after a refusal: how many were refused is this client's pace"
        )?;
    }
    rates(text, summary)?;
    latencies(text, summary)?;
    lengths(text, summary)?;
    parts(text, level)?;
    client(text, level)
}

/// Stages and turns, a line each.
fn parts(text: &mut String, level: &LevelResult) -> std::fmt::Result {
    let stages = level.stages.iter().map(|stage| {
        let values =
            if stage.from == stage.to { stage.from.to_string() } else { format!("{}-{}", stage.from, stage.to) };
        let seconds = stage.to_s - stage.from_s;
        (format!("{}-{} s: {values}", stage.from_s, stage.to_s), &stage.summary, Some(seconds))
    });
    let turns = level.turns.iter().map(|turn| (format!("turn {}", turn.turn + 1), &turn.summary, None));
    for (name, summary, seconds) in stages.chain(turns) {
        let Some(summary) = summary else {
            writeln!(text, "  {name:22} no request")?;
            continue;
        };
        let counts = summary.requests;
        write!(text, "  {name:22} {} sent, {} completed", counts.sent, counts.completed)?;
        for (measure, title) in [("ttft_ms", "TTFT"), ("itl_ms", "ITL")] {
            let Some(latency) = summary.latency.get(measure) else { continue };
            write!(text, ", {title} mean {:.2}", latency.mean)?;
            for percentile in ["p50", "p95"] {
                if let Some((value, ..)) = value(latency, percentile) {
                    write!(text, " {percentile} {value:.2}")?;
                }
            }
        }
        // A part's own window reaches from its first request to its last answer, into others' time: its rate is over the time it has.
        let tokens = summary.throughput.output_tokens_per_s * summary.window_s;
        match seconds {
            Some(seconds) => writeln!(text, " ms, {:.1} tokens/s of the stage", tokens / seconds)?,
            None => writeln!(text, " ms, {tokens:.0} tokens")?,
        }
    }
    Ok(())
}

fn requests(text: &mut String, summary: &Summary) -> std::fmt::Result {
    let counts = &summary.requests;
    write!(
        text,
        "  requests      {} sent, {} completed, {} failed, {} cut off",
        counts.sent, counts.completed, counts.failed, counts.cut_off
    )?;
    for (count, what) in [(counts.interrupted, "interrupted"), (counts.without_content, "without content")] {
        if count > 0 {
            write!(text, ", {count} {what}")?;
        }
    }
    writeln!(text, " in {:.2} s after {} of warm-up", summary.window_s, counts.warmup)?;
    for (class, failure) in &summary.failures {
        writeln!(text, "    {:>6} × {class}: {}", failure.count, failure.example)?;
    }
    Ok(())
}

fn rates(text: &mut String, summary: &Summary) -> std::fmt::Result {
    let rates = &summary.throughput;
    let estimated = if rates.estimated { " (tokens estimated: some answers have no usage, or one of 0)" } else { "" };
    write!(
        text,
        "  throughput    {:.2} requests/s, {:.1} output tokens/s",
        rates.requests_per_s, rates.output_tokens_per_s
    )?;
    if let Some(total) = rates.total_tokens_per_s {
        write!(text, ", {total:.1} with prompts")?;
    }
    writeln!(text, "{estimated}")?;
    if let Some(offered) = &summary.while_offered {
        write!(text, "  while offered {:.2} requests/s due", offered.offered_per_s)?;
        if let Some(tokens) = offered.output_tokens_per_s {
            write!(text, ", {tokens:.1} output tokens/s arriving")?;
        }
        writeln!(text, " ({:.2} s)", offered.window_s)?;
    }
    if let Some(goodput) = &summary.goodput {
        let share = goodput.share * 100.0;
        writeln!(
            text,
            "  goodput       {:.2} requests/s ({share:.1} %, {} good)",
            goodput.requests_per_s, goodput.good
        )?;
    }
    Ok(())
}

fn latencies(text: &mut String, summary: &Summary) -> std::fmt::Result {
    if summary.latency.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "  {:14}{:>8}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "milliseconds", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"
    )?;
    for (name, title) in ROWS {
        let Some(latency) = summary.latency.get(name) else { continue };
        write!(text, "  {title:14}{:>8}{:>11.2}", latency.count, latency.mean)?;
        for percentile in ["p50", "p90", "p95", "p99", "p99.9"] {
            match value(latency, percentile) {
                Some((value, ..)) => write!(text, "{value:>11.2}")?,
                None => write!(text, "{:>11}", "-")?,
            }
        }
        writeln!(text, "{:>11.2}", latency.max)?;
        write!(text, "  {:14}{:>8}{:>11}", "  95 %", "", interval(latency.mean_interval))?;
        for percentile in ["p50", "p90", "p95", "p99", "p99.9"] {
            write!(text, "{:>11}", interval(value(latency, percentile).map(|(_, low, high)| (low, high))))?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn lengths(text: &mut String, summary: &Summary) -> std::fmt::Result {
    let prompts = &summary.prompts;
    if let Some(mean) = prompts.counted_mean {
        write!(text, "  prompts       {mean:.1} tokens on average")?;
        if prompts.compared > 0 {
            write!(text, ", {} of {} exactly as asked", prompts.exact, prompts.compared)?;
            if prompts.difference_max > 0 {
                write!(text, " (off by up to {})", prompts.difference_max)?;
            }
        }
        if let Some(cached) = prompts.cached_share {
            write!(text, ", {:.1} % from the prefix cache", cached * 100.0)?;
        }
        writeln!(text)?;
    }
    if let Some(mean) = summary.outputs.mean {
        let (at_limit, completed) = (summary.outputs.at_limit, summary.requests.completed);
        writeln!(text, "  answers       {mean:.1} tokens on average, {at_limit} of {completed} at their limit")?;
    }
    let (contradicted, completed) = (summary.requests.usage_contradicted, summary.requests.completed);
    if contradicted > 0 {
        writeln!(
            text,
            "  USAGE WRONG   {contradicted} of {completed} answers say 0 tokens of a prompt or of content that there was; where \
             that is the content, its chunks are counted"
        )?;
    }
    let chunks = &summary.chunks;
    if let Some(tokens) = chunks.tokens_per_chunk {
        write!(
            text,
            "  chunks        {tokens:.2} tokens each, {:.1} % joined in one read",
            chunks.joined_share * 100.0
        )?;
        writeln!(text, ", longest gap {:.1} ms", chunks.longest_gap_ms)?;
    }
    Ok(())
}

fn client(text: &mut String, level: &LevelResult) -> std::fmt::Result {
    let client = &level.client;
    let ms = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.2}"));
    writeln!(
        text,
        "  client        loop lag p50 {} p99 {} max {} ms, late p99 {} ms, {:.0} % of a CPU ({:.0} % waiting), {}",
        ms(client.lag_ms_p50),
        ms(client.lag_ms_p99),
        ms(client.lag_ms_max),
        ms(client.lateness_ms_p99),
        client.cpu_share_max * 100.0,
        client.cpu_wait_share_max * 100.0,
        client.priority_text()
    )?;
    if client.socket_wait_ms_p99.is_some() {
        write!(
            text,
            "  arrivals      stamped by the kernel; read p50 {} p99 {} max {} ms later",
            ms(client.socket_wait_ms_p50),
            ms(client.socket_wait_ms_p99),
            ms(client.socket_wait_ms_max)
        )?;
        if client.in_rounds_share > 0.0 {
            write!(text, ", in rounds {:.0} % of the time", client.in_rounds_share * 100.0)?;
        }
        writeln!(text)?;
    }
    if let (Some(own), Some(others)) = (client.own_cpu_s, client.others_cpu_s) {
        writeln!(text, "  this machine  {own:.1} CPU s by this client, {others:.1} CPU s by all else")?;
    }
    let metrics = &level.metrics;
    if let (Some(server), Some(client)) = (metrics.server_ttft_ms_mean, metrics.client_ttft_ms_mean) {
        writeln!(
            text,
            "  TTFT's way    {server:.2} ms mean by the server's metrics ({} requests, warm-up too), {client:.2} ms by this client",
            metrics.server_ttft_count
        )?;
    }
    for gpu in &level.gpus {
        let shown =
            |value: Option<f64>, unit: &str| value.map_or(String::new(), |value| format!(", {value:.0} {unit}"));
        write!(text, "  GPU {}         {} samples", gpu.index, gpu.samples)?;
        write!(text, "{}{}", shown(gpu.utilisation_mean, "% busy"), shown(gpu.memory_used_max_mib, "MiB at most"))?;
        write!(text, "{}{}", shown(gpu.power_mean_w, "W"), shown(gpu.sm_clock_mean_mhz, "MHz"))?;
        for (reason, share) in &gpu.throttled {
            write!(text, ", {reason} {:.0} % of the time", share * 100.0)?;
        }
        writeln!(text)?;
    }
    for reason in &client.client_limited {
        writeln!(text, "  CLIENT-LIMITED: {reason}")?;
    }
    Ok(())
}

/// What a search found, in a few lines.
pub fn capacity_text(capacity: &CapacityResult) -> String {
    let unit = match capacity.unit {
        Unit::Concurrency => "clients",
        Unit::Rate => "requests/s",
    };
    let shown = |load: f64| if load.fract() == 0.0 { load.to_string() } else { format!("{load:.3}") };
    let share = capacity.attainment * 100.0;
    let mut text = match (capacity.found, capacity.confirmed) {
        (Some(found), true) => {
            format!("\ncapacity: {} {unit} with {share} % of requests good, confirmed by a second run", shown(found))
        }
        (Some(found), false) => {
            format!("\nat least {} {unit} with {share} % of requests good, NOT confirmed by a second run", shown(found))
        }
        (None, _) => format!("\nno load was found under which {share} % of requests are good"),
    };
    match capacity.failed_at {
        Some(failed) => text += &format!("; failed at {}", shown(failed)),
        None => text += "; no load failed: the limit of the search was reached",
    }
    if !capacity.monotonic {
        text += "\ntrials contradict each other: a load failed at or below one that passed";
    }
    text.push('\n');
    text
}

/// The definitions, for below the last table.
pub fn definitions_text() -> String {
    let mut text = "\n".to_owned();
    for (name, meaning) in DEFINITIONS {
        text.push_str(&format!("  {name:20} {meaning}\n"));
    }
    text.push_str(
        "  -                    too few values for a 95 % interval: p90 needs 36, p95 72, p99 368, p99.9 3688\n",
    );
    text
}

fn value(latency: &LatencySummary, percentile: &str) -> Option<(f64, f64, f64)> {
    let summary = latency.percentiles.get(percentile)?.as_ref()?;
    Some((summary.value, summary.low, summary.high))
}

fn interval(ends: Option<(f64, f64)>) -> String {
    let short = |value: f64| if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    ends.map_or(String::new(), |(low, high)| format!("{}-{}", short(low), short(high)))
}
