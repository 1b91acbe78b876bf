//! Shows how far a transfer is: a bar on a terminal, a few lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::{io::IsTerminal, time::Duration};

/// How progress is shown; always on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressMode {
    /// A bar on a terminal, one line per tenth elsewhere.
    Auto,
    /// Not at all.
    Silent,
}

/// One transfer's progress.
pub(crate) enum Progress {
    Bar(ProgressBar),
    Lines { label: String, total: Option<u64>, done: u64, tenths_said: u64 },
    Silent,
}

impl ProgressMode {
    /// Begins to show a transfer of `total` bytes.
    pub(crate) fn start(self, label: &str, total: Option<u64>) -> Progress {
        if self == Self::Silent {
            return Progress::Silent;
        }
        if !std::io::stderr().is_terminal() {
            let size = total.map_or_else(String::new, |total| format!(" ({})", megabytes(total)));
            eprintln!("fetching {label}{size}");
            return Progress::Lines { label: label.to_owned(), total, done: 0, tenths_said: 0 };
        }
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let template = "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress::Bar(bar)
    }

    /// Says something beside the transfer.
    pub(crate) fn note(self, text: &str) {
        if self != Self::Silent {
            eprintln!("{text}");
        }
    }
}

impl Progress {
    /// `done` bytes are on disk; also called with less than before, when a transfer starts over.
    pub(crate) fn set(&mut self, now_done: u64) {
        match self {
            Self::Bar(bar) => bar.set_position(now_done),
            Self::Lines { label, total: Some(total), done, tenths_said } => {
                *done = now_done;
                let tenths = now_done * 10 / (*total).max(1);
                if tenths > *tenths_said {
                    *tenths_said = tenths;
                    eprintln!("  {label}: {} of {}", megabytes(now_done), megabytes(*total));
                }
            }
            Self::Lines { done, .. } => *done = now_done,
            Self::Silent => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
