//! Lines over a load, and curves of distributions.

use super::{
    Axis,
    canvas::{Canvas, Marked, Shape, UNDRAWN, colour, units},
    scale::{Fitted, tick_text},
    svg::{Mark, Svg},
};
use crate::figure::Figure;
use plotters::{
    chart::{ChartBuilder, ChartContext},
    coord::cartesian::Cartesian2d,
    drawing::{DrawingAreaErrorKind, IntoDrawingArea},
    element::PathElement,
    style::{FontDesc, FontFamily, FontStyle},
};
use std::{convert::Infallible, iter::once};

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
/// Between the frame's sides and the first and last place in it.
const MARGIN: f64 = 14.0;
/// Length of a tick.
const TICK: f64 = 4.0;
/// Around the sweet spot.
const RING: Shape = Shape::Circle(9.0);
/// Pixels of a character of the legend, on the safe side.
const CHARACTER: f64 = 6.2;

type Plot<'a, 'b> = ChartContext<'a, Canvas<'b>, Cartesian2d<Fitted, Fitted>>;

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

    /// A mark that tells the sides apart without colour: a hollow square before, a full circle after.
    fn shape(self) -> Shape {
        match self {
            Self::Before => Shape::Square(3.5),
            Self::After => Shape::Circle(4.0),
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
        let legend = self.legend();
        let drop = legend.last().map_or(0.0, |entry| entry.at.1 - LEGEND_TOP);
        let size = (WIDTH, HEIGHT + drop);
        let mut svg = Svg::new(size.0, size.1, &self.title);
        legend.iter().for_each(|entry| entry.draw(&mut svg));
        svg.text("axis-label", (LEFT - 48.0, TOP + drop - 16.0), "start", self.y.label);
        svg.text("axis-label", (RIGHT, BOTTOM + drop + 36.0), "end", self.x.label);
        // Nothing here can fail: the canvas never does, and there are no fonts to be found.
        _ = self.plot(Canvas::new(&mut svg, size), drop);
        svg.finish()
    }

    /// All that stands within the frame and at it.
    fn plot(&self, canvas: Canvas<'_>, drop: f64) -> Result<(), DrawingAreaErrorKind<Infallible>> {
        let dots = || self.lines.iter().flat_map(|line| &line.dots);
        let heights = dots().flat_map(|dot| {
            // An interval that dwarfs its values would flatten the lines: it is drawn to the edge.
            let high = dot.interval.map(|(_, high)| high.min(dot.y * 1.5));
            [Some(dot.y), high].into_iter().flatten()
        });
        let heights = heights.chain(self.rules.iter().map(|rule| rule.y));
        let x = Fitted::new(self.x.scale, dots().map(|dot| dot.x), self.x.ticks.as_deref(), MARGIN);
        let y = Fitted::new(self.y.scale, heights, self.y.ticks.as_deref(), 0.0);
        let area = canvas.into_drawing_area();
        let mut plot: Plot<'_, '_> = ChartBuilder::on(&area)
            .margin_top(units(TOP + drop))
            .margin_right(units(WIDTH - RIGHT))
            .x_label_area_size(units(HEIGHT - BOTTOM))
            .y_label_area_size(units(LEFT))
            .build_cartesian_2d(x, y)?;
        let font = FontDesc::new(FontFamily::SansSerif, f64::from(units(12.0)), FontStyle::Normal);
        let label = font.color(&colour("tick"));
        // Lines and labels at heights, no axis; then the axis below.
        plot.configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .bold_line_style(colour("grid"))
            .axis_style(colour(UNDRAWN))
            .set_all_tick_mark_size(units(TICK))
            .label_style(label.clone())
            .y_label_formatter(&|value| tick_text(*value, self.y.unit))
            .draw()?;
        plot.configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .axis_style(colour("axis"))
            .set_all_tick_mark_size(units(TICK))
            .label_style(label)
            .x_label_formatter(&|value| tick_text(*value, self.x.unit))
            .draw()?;
        let ends = plot.x_range();
        for rule in &self.rules {
            let at = [(ends.start, rule.y), (ends.end, rule.y)];
            plot.draw_series(once(Marked::new("limit", Shape::Across(MARGIN), &at)))?;
            let label = Shape::Words { across: MARGIN, up: 5.0, anchor: "end" };
            plot.draw_series(once(Marked::new("limit-label", label, &at[1..]).saying(&rule.label)))?;
        }
        for line in &self.lines {
            line.draw(&mut plot)?;
        }
        Ok(())
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
                    line.side.shape().draw(svg, &format!("dot {}", line.side.class()), &[middle], &Mark::default());
                }
            }
            None => Shape::Circle(7.0).draw(svg, "ring", &[middle], &Mark::default()),
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

impl Line {
    fn draw(&self, plot: &mut Plot<'_, '_>) -> Result<(), DrawingAreaErrorKind<Infallible>> {
        let class = self.side.class();
        let points: Vec<(f64, f64)> = self.dots.iter().map(|dot| (dot.x, dot.y)).collect();
        let style = format!("line {class}{}", if self.dashed { " dashed" } else { "" });
        plot.draw_series(once(PathElement::new(points, colour(&style))))?;
        if self.smooth {
            return Ok(());
        }
        for dot in &self.dots {
            let at = [(dot.x, dot.y)];
            if let Some((low, high)) = dot.interval {
                let ends = [(dot.x, low), (dot.x, high)];
                plot.draw_series(once(Marked::new(&format!("whisker {class}"), Shape::Whisker(4.0), &ends)))?;
            }
            if dot.ringed {
                plot.draw_series(once(Marked::new("ring", RING, &at)))?;
            }
            let mut mark = Marked::new(&format!("dot {class}"), self.side.shape(), &at);
            mark.mark = Mark { title: dot.title.clone(), from: dot.from.clone() };
            plot.draw_series(once(mark))?;
            let beside = format!("{}{}", dot.label.as_deref().unwrap_or_default(), dot.sign);
            if !beside.is_empty() {
                let words = Shape::Words { across: 9.0, up: 9.0, anchor: "start" };
                plot.draw_series(once(Marked::new("note", words, &at).saying(&beside)))?;
            }
        }
        Ok(())
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

    #[test]
    fn a_chart_has_its_ticks_grid_marks_and_limits() {
        let mut chart = lines(&["before", "after"]);
        chart.lines[0].side = Side::Before;
        chart.lines[0].dots[0] =
            Dot { x: 4.0, y: 40.0, interval: Some((30.0, 55.0)), ..chart.lines[0].dots[0].clone() };
        chart.rules.push(HorizontalRule { y: 20.0, label: "required".to_owned() });
        let svg = chart.svg();
        let count = |text: &str| svg.matches(text).count();
        // Heights 0 to 60 by tens, across 0 to 4 by ones.
        assert_eq!((count("class=\"grid\""), count("class=\"tick\"")), (7, 7 + 5), "{svg}");
        assert!(svg.contains(">60</text>") && svg.contains(">4</text>"));
        // The axis and a tick for each of its labels.
        assert_eq!(count("class=\"axis\""), 1 + 5);
        assert_eq!((count("class=\"whisker before\""), count("class=\"limit\"")), (3, 1));
        // A square and a circle, each in the legend, too.
        assert_eq!((count("<rect class=\"dot before\""), count("<circle class=\"dot after\"")), (2, 2));
        assert!(!svg.contains("undrawn"));
    }
}
