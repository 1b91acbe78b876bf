//! A run's files: the result as JSON, the raw events as JSON Lines, the classic table as CSV. Each is written beside its
//! name and renamed, so that a reader finds a whole file or none.

use crate::{
    record::{Nanos, RequestRecord},
    result::{LoadResult, RunResult},
    summary::{LatencySummary, Summary},
    telemetry::Sample,
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Columns of the table that many scripts know.
pub const CSV_COLUMNS: &str = "config,concurrency,request_rate,completed,failed,cut_off,requests_per_s,output_tokens_per_s,\
total_tokens_per_s,ttft_mean_ms,ttft_p50_ms,ttft_p95_ms,ttft_p99_ms,itl_mean_ms,itl_p50_ms,itl_p95_ms,itl_p99_ms,\
tpot_mean_ms,tpot_p50_ms,tpot_p95_ms,e2e_mean_ms,e2e_p50_ms,e2e_p95_ms,gpu_memory_mib,client_limited";

/// Raw events on their way to their file, level by level.
pub struct EventsFile {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
}

impl EventsFile {
    /// Begins the file; it gets its name at the end.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let partial = beside(path);
        Ok(Self { path: path.to_owned(), writer: BufWriter::new(File::create(&partial)?), partial })
    }

    /// Adds a level's requests, one line each; instants and gaps in microseconds, chunks as gaps from the one before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_level(&mut self, level: usize, records: &[RequestRecord]) -> io::Result<()> {
        for record in records {
            serde_json::to_writer(&mut self.writer, &line(level, record))?;
            self.writer.write_all(b"\n")?;
        }
        self.writer.flush()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When it cannot be written or renamed.
    pub fn finish(mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs::rename(&self.partial, &self.path)
    }
}

/// Samples taken during levels on their way to their file.
pub struct SeriesFile(EventsFile);

impl SeriesFile {
    /// Begins the file; it gets its name at the end.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        EventsFile::create(path).map(Self)
    }

    /// Adds a level's samples, one line each.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_level(&mut self, level: usize, series: &[Sample]) -> io::Result<()> {
        for Sample { at, source, values } in series {
            let line = json!({"level": level, "at_us": *at as f64 / 1e3, "source": source, "values": values});
            serde_json::to_writer(&mut self.0.writer, &line)?;
            self.0.writer.write_all(b"\n")?;
        }
        self.0.writer.flush()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When it cannot be written or renamed.
    pub fn finish(self) -> io::Result<()> {
        self.0.finish()
    }
}

/// Writes the result.
///
/// # Errors
/// When the file cannot be written.
pub fn write_result(path: &Path, result: &RunResult) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(result)?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Writes the classic table, a line per level; an empty field is a number that was not measured or that the count does
/// not support.
///
/// # Errors
/// When the file cannot be written.
pub fn write_csv(path: &Path, result: &RunResult) -> io::Result<()> {
    write_whole(path, csv(result).as_bytes())
}

/// The name of the raw events beside a result's file: `x.json` has `x.events.jsonl`.
pub fn events_path(result: &Path) -> PathBuf {
    result.with_extension("events.jsonl")
}

/// The name of the samples beside a result's file: `x.json` has `x.series.jsonl`.
pub fn series_path(result: &Path) -> PathBuf {
    result.with_extension("series.jsonl")
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = beside(path);
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn line(level: usize, record: &RequestRecord) -> Value {
    let micros = |nanos: Nanos| nanos as f64 / 1e3;
    let mut previous = record.scheduled;
    let gaps: Vec<u64> = record
        .chunks
        .iter()
        .map(|chunk| {
            // Differences of rounded instants, so that they add up without drift.
            let gap = (chunk.at / 1000).saturating_sub(previous / 1000);
            previous = chunk.at;
            gap
        })
        .collect();
    let counted = record.chunks.iter().all(|chunk| chunk.tokens.is_some());
    let tokens: Option<Vec<u32>> = counted
        .then(|| record.chunks.iter().filter_map(|chunk| chunk.tokens).collect())
        .filter(|all: &Vec<u32>| !all.is_empty());
    json!({
        "level": level,
        "index": record.index,
        "turn": record.turn,
        "warmup": record.warmup,
        "scheduled_us": micros(record.scheduled),
        "started_us": micros(record.started),
        "sent_us": record.sent.map(micros),
        "first_byte_us": record.first_byte.map(micros),
        "first_event_us": record.first_event.map(micros),
        "last_event_us": record.last_event.map(micros),
        "ended_us": micros(record.ended),
        "chunk_gaps_us": gaps,
        "chunk_characters": record.chunks.iter().map(|chunk| chunk.characters).collect::<Vec<_>>(),
        "chunk_tokens": tokens,
        "status": record.status,
        "usage": record.usage,
        "finish_reason": record.finish_reason,
        "streamed": record.streamed,
        "reused_connection": record.reused_connection,
        "prompt_tokens_asked": record.prompt_tokens_asked,
        "output_tokens_asked": record.output_tokens_asked,
        "failure": record.failure.as_ref().map(|failure| json!({"class": failure.class.name(), "message": failure.message})),
    })
}

fn csv(result: &RunResult) -> String {
    let mut text = format!("{CSV_COLUMNS}\n");
    for level in &result.levels {
        let Some(summary) = &level.summary else { continue };
        let (concurrency, rate) = match &level.load {
            LoadResult::Closed { concurrency } => (concurrency.to_string(), String::new()),
            LoadResult::Open { rate, .. } => (String::new(), rate.to_string()),
            _ => (String::new(), String::new()),
        };
        let mut fields = vec![quoted(&result.config), concurrency, rate];
        fields.extend(
            [summary.requests.completed, summary.requests.failed, summary.requests.cut_off].map(|n| n.to_string()),
        );
        let rates = &summary.throughput;
        fields.extend(
            [Some(rates.requests_per_s), Some(rates.output_tokens_per_s), rates.total_tokens_per_s].map(number),
        );
        for (name, percentiles) in [
            ("ttft_ms", &["p50", "p95", "p99"][..]),
            ("itl_ms", &["p50", "p95", "p99"]),
            ("tpot_ms", &["p50", "p95"]),
            ("e2e_ms", &["p50", "p95"]),
        ] {
            fields.push(number(summary.latency.get(name).map(|latency| latency.mean)));
            fields.extend(percentiles.iter().map(|percentile| number(percentile_of(summary, name, percentile))));
        }
        let memory = level.gpus.iter().filter_map(|gpu| gpu.memory_used_max_mib).reduce(f64::max);
        fields.push(number(memory));
        fields.push((!level.client.client_limited.is_empty()).to_string());
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

fn percentile_of(summary: &Summary, name: &str, percentile: &str) -> Option<f64> {
    let latency: &LatencySummary = summary.latency.get(name)?;
    Some(latency.percentiles.get(percentile)?.as_ref()?.value)
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| format!("{value:.3}"))
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
