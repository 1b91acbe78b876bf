//! The definitions: each a pure function of one request's record, with the text that is printed beside its numbers.
//!
//! They count from the scheduled send, so that waiting in this client, for a connection or in the server's accept queue
//! is part of the latency and overload cannot hide.

use crate::record::{Nanos, Outcome, RequestRecord};

/// What the numbers of a result mean; printed and stored with them.
pub const DEFINITIONS: &[(&str, &str)] = &[
    (
        "scheduled",
        "when a request was due: its time in the schedule (open loop), or when its client was connected and free (closed loop)",
    ),
    ("ttft_ms", "scheduled send to first chunk with content (text, reasoning or tool call; a role-only chunk is none)"),
    (
        "itl_ms",
        "gap between consecutive content chunks of one request, pooled over requests; 0 between chunks of one read",
    ),
    ("token_gap_ms", "chunk gap / tokens of the later chunk, where the server counts tokens per chunk"),
    ("tpot_ms", "(E2E - TTFT) / (output tokens - 1), per request of 2 or more tokens"),
    ("tpot_with_first_ms", "E2E / output tokens, per request; includes the first token"),
    ("e2e_ms", "scheduled send to last chunk with content or finish reason (non-streamed: end of the body)"),
    ("first_event_ms", "scheduled send to first chunk of any kind, role-only included: some tools call this TTFT"),
    ("send_delay_ms", "scheduled send to first byte handed to the socket: connecting, and the client's own lateness"),
    (
        "arrival",
        "a chunk's time is when the kernel received the packet that completed it; where it does not tell, when the read returned",
    ),
    (
        "output_tokens",
        "the server's usage.completion_tokens; where absent, or 0 beside content, content chunks, marked as estimated",
    ),
    (
        "failures",
        "counted by class, never sent twice; after a refused connection a client of a closed loop waits 20 ms, so how many are \
         refused is this client's pace",
    ),
    ("percentiles", "linear interpolation between order statistics; intervals 95 %, requests taken as independent"),
];

/// Scheduled send to first content, in nanoseconds.
pub fn ttft(record: &RequestRecord) -> Option<Nanos> {
    since_scheduled(record, record.chunks.first()?.at)
}

/// Scheduled send to the last chunk, in nanoseconds; of completed requests only.
pub fn e2e(record: &RequestRecord) -> Option<Nanos> {
    if record.outcome() != Outcome::Completed {
        return None;
    }
    since_scheduled(record, record.last_event?)
}

/// Gaps between consecutive content chunks, in nanoseconds.
pub fn chunk_gaps(record: &RequestRecord) -> impl Iterator<Item = Nanos> {
    record.chunks.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at))
}

/// Chunk gaps divided by the tokens that the later chunk brought, in nanoseconds, once per token; empty where the server
/// does not count per chunk.
pub fn token_gaps(record: &RequestRecord) -> impl Iterator<Item = f64> {
    let counted = record.chunks.iter().all(|chunk| chunk.tokens.is_some());
    record.chunks.windows(2).filter(move |_| counted).flat_map(|pair| {
        let tokens = pair[1].tokens.unwrap_or(0);
        let gap = pair[1].at.saturating_sub(pair[0].at) as f64 / f64::from(tokens.max(1));
        std::iter::repeat_n(gap, tokens as usize)
    })
}

/// Output tokens by the server's count, and by the count of content chunks where it gives none or says 0 beside content.
pub fn output_tokens(record: &RequestRecord) -> OutputTokens {
    match record.usage {
        Some(usage) if usage.completion_tokens > 0 || record.chunks.is_empty() => {
            OutputTokens { count: usage.completion_tokens, estimated: false }
        }
        _ => OutputTokens { count: record.chunks.len() as u32, estimated: true },
    }
}

/// Prompt tokens by the server's count; none where it gives none, or says 0: every prompt has some.
pub fn prompt_tokens(record: &RequestRecord) -> Option<u32> {
    record.usage.map(|usage| usage.prompt_tokens).filter(|&tokens| tokens > 0)
}

/// The server's usage says 0 of what there was: content that it sent, or a prompt that it answered.
pub fn is_usage_contradicted(record: &RequestRecord) -> bool {
    record.usage.is_some() && (output_tokens(record).estimated || prompt_tokens(record).is_none())
}

/// A number of output tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputTokens {
    /// How many.
    pub count: u32,
    /// By counting chunks, not by the server.
    pub estimated: bool,
}

/// Time per output token after the first, in nanoseconds.
pub fn tpot(record: &RequestRecord) -> Option<f64> {
    let tokens = output_tokens(record).count;
    let decode = e2e(record)?.checked_sub(ttft(record)?)?;
    (tokens >= 2).then(|| decode as f64 / f64::from(tokens - 1))
}

/// Time per output token, the first included, in nanoseconds.
pub fn tpot_with_first(record: &RequestRecord) -> Option<f64> {
    let tokens = output_tokens(record).count;
    Some(e2e(record)? as f64 / f64::from(tokens)).filter(|_| tokens > 0)
}

/// Scheduled send to the first event with a choice, in nanoseconds.
pub fn first_event(record: &RequestRecord) -> Option<Nanos> {
    since_scheduled(record, record.first_event?)
}

/// Scheduled send to the first byte handed to the socket, in nanoseconds.
pub fn send_delay(record: &RequestRecord) -> Option<Nanos> {
    since_scheduled(record, record.sent?)
}

/// Scheduled send to the moment the client turned to it, in nanoseconds.
pub fn lateness(record: &RequestRecord) -> Nanos {
    record.started.saturating_sub(record.scheduled)
}

/// Tokens that arrived by chunk within `[from, to)`: by the server's count per chunk, or else its total spread evenly
/// over the chunks.
pub fn tokens_between(record: &RequestRecord, from: Nanos, to: Nanos) -> f64 {
    if record.chunks.is_empty() {
        return 0.0;
    }
    let even = f64::from(output_tokens(record).count) / record.chunks.len() as f64;
    let counted = record.chunks.iter().all(|chunk| chunk.tokens.is_some())
        && record.chunks.iter().any(|chunk| chunk.tokens.is_some_and(|tokens| tokens > 0));
    let inside = record.chunks.iter().filter(|chunk| (from..to).contains(&chunk.at));
    inside.map(|chunk| if counted { f64::from(chunk.tokens.unwrap_or(0)) } else { even }).sum()
}

/// Limits that make a request good; unset ones do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objectives {
    /// Highest TTFT, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// Highest TPOT, in milliseconds.
    pub tpot_ms: Option<f64>,
    /// Highest E2E, in milliseconds.
    pub e2e_ms: Option<f64>,
}

impl Objectives {
    /// Whether a request completed and met every limit. A limit on what the request has not (TPOT of a single token)
    /// is met; one on what was never seen (TTFT, or TPOT of several tokens, without a stream) is not, and an answer without content meets nothing.
    pub fn met_by(&self, record: &RequestRecord) -> bool {
        let within = |value: Option<f64>, limit: Option<f64>, absent: bool| match (value, limit) {
            (_, None) => true,
            (Some(value), Some(limit)) => value / 1e6 <= limit,
            (None, Some(_)) => absent,
        };
        record.outcome() == Outcome::Completed
            && within(ttft(record).map(|nanos| nanos as f64), self.ttft_ms, false)
            && (self.is_empty() || !record.streamed || !record.chunks.is_empty())
            && within(tpot(record), self.tpot_ms, output_tokens(record).count == 1)
            && within(e2e(record).map(|nanos| nanos as f64), self.e2e_ms, false)
    }

    /// No limit is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn since_scheduled(record: &RequestRecord, at: Nanos) -> Option<Nanos> {
    // A response cannot precede its request: an instant before the schedule is a fault of the record, not a latency.
    at.checked_sub(record.scheduled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Chunk, Failure, FailureClass, Usage};

    const MS: u64 = 1_000_000;

    /// Due at 100 ms, sent at 103, role at 120, three content chunks of two tokens, finish at 200 ms.
    fn record() -> RequestRecord {
        let chunk = |at, tokens| Chunk { at: at * MS, characters: 5, tokens };
        RequestRecord {
            scheduled: 100 * MS,
            sent: Some(103 * MS),
            first_byte: Some(119 * MS),
            first_event: Some(120 * MS),
            chunks: vec![chunk(150, Some(2)), chunk(170, Some(2)), chunk(190, Some(2))],
            last_event: Some(200 * MS),
            ended: 205 * MS,
            status: Some(200),
            usage: Some(Usage { prompt_tokens: 7, completion_tokens: 6, cached_tokens: None }),
            streamed: true,
            ..RequestRecord::default()
        }
    }

    #[test]
    fn latencies_count_from_the_schedule_and_from_content() {
        let record = record();
        assert_eq!(ttft(&record), Some(50 * MS));
        assert_eq!(first_event(&record), Some(20 * MS));
        assert_eq!(send_delay(&record), Some(3 * MS));
        assert_eq!(e2e(&record), Some(100 * MS));
        assert_eq!(tpot(&record), Some(50.0 / 5.0 * MS as f64));
        assert_eq!(tpot_with_first(&record), Some(100.0 * MS as f64 / 6.0));
        assert_eq!(chunk_gaps(&record).collect::<Vec<_>>(), [20 * MS, 20 * MS]);
        assert_eq!(token_gaps(&record).collect::<Vec<_>>(), [10.0 * MS as f64; 4]);
    }

    #[test]
    fn what_a_request_has_not_is_absent_not_zero() {
        let role_only = RequestRecord { chunks: vec![], usage: None, ..record() };
        assert_eq!((ttft(&role_only), tpot(&role_only)), (None, None));
        let one_token = RequestRecord { usage: Some(Usage { completion_tokens: 1, ..Usage::default() }), ..record() };
        assert_eq!(tpot(&one_token), None);
        let uncounted = RequestRecord { usage: None, ..record() };
        assert_eq!(output_tokens(&uncounted), OutputTokens { count: 3, estimated: true });
        assert!(!is_usage_contradicted(&uncounted) && !is_usage_contradicted(&record()));
        let zeros = RequestRecord { usage: Some(Usage::default()), ..record() };
        assert_eq!((output_tokens(&zeros).count, output_tokens(&zeros).estimated), (3, true));
        assert_eq!((prompt_tokens(&zeros), tpot(&zeros)), (None, tpot(&uncounted)));
        assert!(is_usage_contradicted(&zeros));
        let empty = Usage { prompt_tokens: 7, ..Usage::default() };
        assert!(!is_usage_contradicted(&RequestRecord { usage: Some(empty), chunks: vec![], ..record() }));
        assert!(is_usage_contradicted(&RequestRecord { usage: Some(empty), ..record() }));
        let failure = Some(Failure { class: FailureClass::Closed, message: String::new() });
        let cut_off = RequestRecord { failure: failure.clone(), ..record() };
        assert_eq!((cut_off.outcome(), e2e(&cut_off), tpot(&cut_off)), (Outcome::CutOff, None, None));
        let failed = RequestRecord { failure, chunks: vec![], ..record() };
        assert_eq!(failed.outcome(), Outcome::Failed);
    }

    #[test]
    fn tokens_of_a_window_follow_the_chunks() {
        let mut record = record();
        assert_eq!(tokens_between(&record, 0, 1000 * MS), 6.0);
        assert_eq!(tokens_between(&record, 150 * MS, 190 * MS), 4.0);
        record.chunks[2].tokens = None;
        assert_eq!(tokens_between(&record, 150 * MS, 170 * MS), 2.0);
        record.usage = None;
        assert_eq!(tokens_between(&record, 0, 1000 * MS), 3.0);
    }

    #[test]
    fn good_is_completed_within_every_limit() {
        let limits = |ttft, tpot, e2e| Objectives { ttft_ms: ttft, tpot_ms: tpot, e2e_ms: e2e };
        assert!(limits(Some(50.0), Some(10.0), Some(100.0)).met_by(&record()));
        assert!(!limits(Some(49.9), None, None).met_by(&record()));
        assert!(!limits(None, Some(9.9), None).met_by(&record()));
        assert!(!limits(None, None, Some(99.0)).met_by(&record()));
        let single = RequestRecord { usage: Some(Usage { completion_tokens: 1, ..Usage::default() }), ..record() };
        assert!(limits(None, Some(1.0), None).met_by(&single));
        let whole = RequestRecord { streamed: false, chunks: Vec::new(), ..record() };
        assert!(limits(None, None, Some(150.0)).met_by(&whole));
        assert!(!limits(None, Some(1e9), None).met_by(&whole) && !limits(Some(1e9), None, None).met_by(&whole));
        let failure = Some(Failure { class: FailureClass::Closed, message: String::new() });
        assert!(!Objectives::default().met_by(&RequestRecord { failure, ..record() }));
        assert!(!limits(None, Some(1.0), None).met_by(&RequestRecord { chunks: Vec::new(), ..record() }));
    }
}
