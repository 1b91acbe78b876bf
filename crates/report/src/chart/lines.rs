//! Lines over a load, and curves of distributions.

use super::{
    Axis,
    scale::{Fitted, tick_text},
    svg::{Mark, Svg},
};
use crate::figure::Figure;

/// Lines in one frame.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What it shows, for those who cannot see it.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// Limits to hold.
    pub rules: Vec<HorizontalRule>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// Its colour.
    pub side: Side,
    /// Dashed: the second of two lines of one side.
    pub dashed: bool,
    /// A curve without marks.
    pub smooth: bool,
    /// From left to right.
    pub dots: Vec<Dot>,
}

/// Whose line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before.
    Before,
    /// After.
    After,
}

/// A point of a line.
#[derive(Clone, Debug)]
pub struct Dot {
    /// Its place to the right.
    pub x: f64,
    /// Its height.
    pub y: f64,
    /// The 95 % interval of its height.
    pub interval: Option<(f64, f64)>,
    /// What it says when it is pointed at.
    pub title: String,
    /// Where its height comes from.
    pub from: String,
    /// The sign of a run that is to be doubted.
    pub sign: String,
    /// The sweet spot.
    pub ringed: bool,
    /// Beside it.
    pub label: Option<String>,
}

/// A limit across the frame.
#[derive(Clone, Debug)]
pub struct HorizontalRule {
    /// Its height.
    pub y: f64,
    /// At its right end.
    pub label: String,
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 506.0;
/// Of the frame under a legend of one row; each further row moves it down by its height.
const TOP: f64 = 58.0;
const BOTTOM: f64 = 276.0;
const LEGEND_TOP: f64 = 12.0;
const LEGEND_LEFT: f64 = LEFT - 48.0;
const LEGEND_ROW: f64 = 19.0;
/// Between an entry's sign and its words, and after them.
const LEGEND_SIGN: f64 = 28.0;
const LEGEND_GAP: f64 = 12.0;
/// Pixels of a character of the legend, on the safe side.
const CHARACTER: f64 = 6.2;

impl Dot {
    /// A point whose height is a figure.
    pub fn of(x: f64, y: &Figure, title: String) -> Self {
        let from = y.origin.leaves.iter().cloned().collect::<Vec<_>>().join(" ");
        Self { x, y: y.value, interval: y.interval, title, from, sign: y.marks.sign(), ringed: false, label: None }
    }
}

impl Side {
    /// Its class in the style.
    pub fn class(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// An entry of the legend with its place.
struct Entry<'a> {
    /// None: the ring of the sweet spot.
    line: Option<&'a Line>,
    words: String,
    at: (f64, f64),
}

impl Lines {
    /// The drawing.
    pub fn svg(&self) -> String {
        let dots = || self.lines.iter().flat_map(|line| &line.dots);
        let heights = dots().flat_map(|dot| {
            // An interval that dwarfs its values would flatten the lines: it is drawn to the edge.
            let high = dot.interval.map(|(_, high)| high.min(dot.y * 1.5));
            [Some(dot.y), high].into_iter().flatten()
        });
        let heights = heights.chain(self.rules.iter().map(|rule| rule.y));
        let legend = self.legend();
        let drop = legend.last().map_or(0.0, |entry| entry.at.1 - LEGEND_TOP);
        let x = Fitted::new(self.x.scale, dots().map(|dot| dot.x), (LEFT + 14.0, RIGHT - 14.0));
        let y = Fitted::new(self.y.scale, heights, (BOTTOM + drop, TOP + drop));
        let mut svg = Svg::new(WIDTH, HEIGHT + drop, &self.title);
        self.frame(&mut svg, &x, &y, drop);
        legend.iter().for_each(|entry| entry.draw(&mut svg));
        for rule in &self.rules {
            let at = y.pixel(rule.y);
            svg.line("limit", (LEFT, at), (RIGHT, at));
            svg.text("limit-label", (RIGHT, at - 5.0), "end", &rule.label);
        }
        for line in &self.lines {
            draw(&mut svg, line, &x, &y);
        }
        svg.finish()
    }

    fn frame(&self, svg: &mut Svg, x: &Fitted, y: &Fitted, drop: f64) {
        let (top, bottom) = (TOP + drop, BOTTOM + drop);
        for tick in self.y.ticks.clone().unwrap_or_else(|| y.ticks()) {
            let at = y.pixel(tick);
            svg.line("grid", (LEFT, at), (RIGHT, at));
            svg.text("tick", (LEFT - 8.0, at + 4.0), "end", &tick_text(tick, self.y.unit));
        }
        svg.line("axis", (LEFT, bottom), (RIGHT, bottom));
        for tick in self.x.ticks.clone().unwrap_or_else(|| x.ticks()) {
            let at = x.pixel(tick);
            svg.line("axis", (at, bottom), (at, bottom + 4.0));
            svg.text("tick", (at, bottom + 18.0), "middle", &tick_text(tick, self.x.unit));
        }
        svg.text("axis-label", (LEFT - 48.0, top - 16.0), "start", self.y.label);
        svg.text("axis-label", (RIGHT, bottom + 36.0), "end", self.x.label);
    }

    /// Entries from left to right, in as many rows as they need.
    fn legend(&self) -> Vec<Entry<'_>> {
        let lines = self.lines.iter().map(|line| (Some(line), line.name.as_str()));
        let ringed = self.lines.iter().flat_map(|line| &line.dots).any(|dot| dot.ringed);
        let mut entries: Vec<Entry<'_>> = Vec::new();
        let (mut across, mut down) = (LEGEND_LEFT, LEGEND_TOP);
        for (line, name) in lines.chain(ringed.then_some((None, "sweet spot"))) {
            let words = shortened(name);
            let width = LEGEND_SIGN + words.chars().count() as f64 * CHARACTER;
            if across > LEGEND_LEFT && across + width > RIGHT {
                (across, down) = (LEGEND_LEFT, down + LEGEND_ROW);
            }
            entries.push(Entry { line, words, at: (across, down) });
            across += width + LEGEND_GAP;
        }
        entries
    }
}

impl Entry<'_> {
    fn draw(&self, svg: &mut Svg) {
        let (across, down) = self.at;
        let middle = (across + 11.0, down);
        match self.line {
            Some(line) => {
                let dash = if line.dashed { " dashed" } else { "" };
                svg.line(&format!("line {}{dash}", line.side.class()), self.at, (across + 22.0, down));
                if !line.smooth {
                    mark(svg, line.side, middle, &Mark::default());
                }
            }
            None => svg.circle("ring", middle, 7.0, &Mark::default()),
        }
        svg.text("legend", (across + LEGEND_SIGN, down + 4.0), "start", &self.words);
    }
}

/// A name that fits into a row of its own.
fn shortened(name: &str) -> String {
    let most = ((RIGHT - LEGEND_LEFT - LEGEND_SIGN) / CHARACTER) as usize;
    match name.char_indices().nth(most) {
        Some(_) => name.chars().take(most - 1).chain(['…']).collect(),
        None => name.to_owned(),
    }
}

fn draw(svg: &mut Svg, line: &Line, x: &Fitted, y: &Fitted) {
    let class = line.side.class();
    let at = |dot: &Dot| (x.pixel(dot.x), y.pixel(dot.y));
    let points: Vec<(f64, f64)> = line.dots.iter().map(at).collect();
    svg.polyline(&format!("line {class}{}", if line.dashed { " dashed" } else { "" }), &points);
    if line.smooth {
        return;
    }
    for dot in &line.dots {
        let (across, height) = at(dot);
        if let Some((low, high)) = dot.interval {
            let (low, high) = (y.pixel(low), y.pixel(high));
            svg.line(&format!("whisker {class}"), (across, low), (across, high));
            for end in [low, high] {
                svg.line(&format!("whisker {class}"), (across - 4.0, end), (across + 4.0, end));
            }
        }
        if dot.ringed {
            svg.circle("ring", (across, height), 9.0, &Mark::default());
        }
        mark(svg, line.side, (across, height), &Mark { title: dot.title.clone(), from: dot.from.clone() });
        let beside = format!("{}{}", dot.label.as_deref().unwrap_or_default(), dot.sign);
        if !beside.is_empty() {
            svg.text("note", (across + 9.0, height - 9.0), "start", &beside);
        }
    }
}

/// A mark that tells the sides apart without colour: a hollow square before, a full circle after.
fn mark(svg: &mut Svg, side: Side, (x, y): (f64, f64), more: &Mark) {
    match side {
        Side::Before => svg.rectangle("dot before", (x - 3.5, y - 3.5), (7.0, 7.0), more),
        Side::After => svg.circle("dot after", (x, y), 4.0, more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chart::Scale, figure::Unit};

    fn lines(names: &[&str]) -> Lines {
        let dot = |ringed| Dot {
            x: 1.0,
            y: 1.0,
            interval: None,
            title: String::new(),
            from: String::new(),
            sign: String::new(),
            ringed,
            label: None,
        };
        let axis = || Axis { label: "x", scale: Scale::Linear, ticks: None, unit: Unit::Plain };
        let line = |name: &&str| Line {
            name: (*name).to_owned(),
            side: Side::After,
            dashed: false,
            smooth: false,
            dots: vec![dot(true)],
        };
        Lines { title: String::new(), x: axis(), y: axis(), lines: names.iter().map(line).collect(), rules: Vec::new() }
    }

    #[test]
    fn a_legend_stays_within_its_chart_and_above_its_frame() {
        let long = "a name that nobody would give to an engine ".repeat(4);
        for (names, rows) in [
            (vec!["before", "after"], 1),
            (vec!["llama.cpp p50", "llama.cpp p95", "Powertrain p50", "Powertrain p95"], 2),
            (vec![long.as_str(), long.as_str()], 3),
        ] {
            let chart = lines(&names);
            let legend = chart.legend();
            assert_eq!(legend.len(), names.len() + 1, "the sweet spot has an entry");
            for entry in &legend {
                let end = entry.at.0 + LEGEND_SIGN + entry.words.chars().count() as f64 * CHARACTER;
                assert!(end <= RIGHT, "{} ends at {end}", entry.words);
            }
            let last = legend.last().unwrap().at.1;
            assert_eq!(last, LEGEND_TOP + f64::from(rows - 1) * LEGEND_ROW);
            let height = HEIGHT + last - LEGEND_TOP;
            assert!(chart.svg().contains(&format!("viewBox=\"0 0 {WIDTH} {height}\"")));
        }
    }
}
