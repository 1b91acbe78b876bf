//! Charts as SVG by plotters: colours are classes that follow the page's light or dark scheme, every mark carries its number
//! and origin, and nothing is drawn that a reader of the report does not need.
//!
//! In reading order: `scale.rs` (values to pixels, ticks), `svg.rs` (elements), `canvas.rs` (plotters' way to them), `lines.rs`,
//! `bars.rs`.

mod bars;
mod canvas;
mod lines;
mod scale;
mod svg;

pub use bars::{Bar, Bars};
pub use lines::{Dot, HorizontalRule, Line, Lines, Side};
pub use scale::Scale;

use crate::figure::Unit;

/// Style of charts, for the page and for files of their own.
pub const STYLE: &str = include_str!("../../templates/chart.css");

/// What an axis shows.
#[derive(Clone, Debug)]
pub struct Axis {
    /// In words, with the unit.
    pub label: &'static str,
    /// How values become pixels.
    pub scale: Scale,
    /// Ticks at these values; by default at round ones.
    pub ticks: Option<Vec<f64>>,
    /// How ticks are printed.
    pub unit: Unit,
}

/// An SVG that stands in a file of its own.
pub fn standalone(svg: &str) -> String {
    svg.replacen('>', &format!(" xmlns=\"http://www.w3.org/2000/svg\">\n<style>{STYLE}</style>"), 1)
}
