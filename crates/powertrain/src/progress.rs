//! The progress line of a measurement.

use powertrain_load::{Live, LiveCounts, result::LoadResult, schedule::Load, table};
use std::{
    io::{IsTerminal, Write},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Time between two states of the line.
const PERIOD: Duration = Duration::from_millis(250);

/// A line that says what is happening, on a terminal; nothing elsewhere. Ends when dropped.
pub(crate) struct Progress {
    done: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins to draw; whoever counts goes on counting.
    pub(crate) fn begin(load: Load, live: Arc<Live>) -> Self {
        let (done, ended) = mpsc::channel();
        let draw = move || {
            let name = table::load_name(&LoadResult::from(&load));
            let (began, mut last) = (Instant::now(), 0);
            while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(PERIOD) {
                let counts = live.counts();
                let chunks = counts.chunks - last;
                last = counts.chunks;
                eprint!("\r\x1b[K{}", line(&name, began.elapsed(), chunks, &counts));
                _ = std::io::stderr().flush();
            }
            eprint!("\r\x1b[K");
        };
        let thread = std::io::stderr().is_terminal().then(|| thread::spawn(draw));
        Self { done, thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        _ = self.done.send(());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn line(name: &str, elapsed: Duration, chunks: u64, counts: &LiveCounts) -> String {
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1} ms"));
    format!(
        "{name}  {:.0} s  {} running  {} done  {} failed  {:.0} chunks/s  TTFT {}  ITL {}",
        elapsed.as_secs_f64(),
        counts.running,
        counts.completed,
        counts.failed + counts.cut_off,
        chunks as f64 / PERIOD.as_secs_f64(),
        ms(counts.ttft_ms),
        ms(counts.itl_ms),
    )
}
