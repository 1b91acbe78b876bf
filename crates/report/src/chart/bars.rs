//! Bars with their numbers at the end: few values, to be read off.

use super::{
    Scale,
    canvas::{Canvas, Marked, Shape, units},
    lines::Side,
    scale::Fitted,
    svg::{Mark, Svg},
};
use crate::figure::Figure;
use plotters::{
    chart::ChartBuilder,
    coord::types::RangedCoordf64,
    drawing::{DrawingAreaErrorKind, IntoDrawingArea},
};
use std::{convert::Infallible, iter::once};

/// Bars, from above.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What they show, for those who cannot see it.
    pub title: String,
    /// Above them: what is counted.
    pub label: String,
    /// From above; bars of one name stand together.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Above its group; printed once for bars in a row of the same group.
    pub group: String,
    /// Before it.
    pub name: String,
    /// Its colour.
    pub side: Side,
    /// Its length.
    pub figure: Figure,
}

const WIDTH: f64 = 520.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 430.0;
const TOP: f64 = 34.0;
const BAR: f64 = 18.0;
const STEP: f64 = 26.0;
const GROUP: f64 = 28.0;

impl Bars {
    /// The drawing.
    pub fn svg(&self) -> String {
        let groups = self.bars.iter().enumerate().filter(|(index, _)| self.begins_group(*index)).count();
        let height = TOP + self.bars.len() as f64 * STEP + groups as f64 * GROUP + 6.0;
        let mut svg = Svg::new(WIDTH, height, &self.title);
        svg.text("axis-label", (8.0, 16.0), "start", &self.label);
        let mut y = TOP;
        let mut tops = Vec::new();
        for (index, bar) in self.bars.iter().enumerate() {
            if self.begins_group(index) {
                svg.text("group", (8.0, y + 14.0), "start", &bar.group);
                y += GROUP;
            }
            svg.text("legend", (LEFT - 10.0, y + 13.0), "end", &bar.name);
            tops.push(y);
            y += STEP;
        }
        // The canvas never fails, and there are no fonts to be found.
        _ = self.plot(Canvas::new(&mut svg, (WIDTH, height)), &tops, height);
        svg.finish()
    }

    /// The bars, each from its top downwards, and their numbers.
    fn plot(&self, canvas: Canvas<'_>, tops: &[f64], height: f64) -> Result<(), DrawingAreaErrorKind<Infallible>> {
        let area = canvas.into_drawing_area();
        let lengths = Fitted::new(Scale::Linear, self.bars.iter().map(|bar| bar.figure.value), None, 0.0);
        let mut plot = ChartBuilder::on(&area)
            .margin_left(units(LEFT))
            .margin_right(units(WIDTH - RIGHT))
            .build_cartesian_2d(lengths, RangedCoordf64::from(height..0.0))?;
        for (bar, &top) in self.bars.iter().zip(tops) {
            let at = [(0.0, top), (bar.figure.value, top)];
            let from = bar.figure.origin.leaves.iter().cloned().collect::<Vec<_>>().join(" ");
            let title = format!("{} {}: {}", bar.group, bar.name, bar.figure.with_unit());
            let mut drawn = Marked::new(&format!("bar {}", bar.side.class()), Shape::Bar(BAR), &at);
            drawn.mark = Mark { title, from };
            plot.draw_series(once(drawn))?;
            let text = format!("{}{}", bar.figure.with_unit(), bar.figure.marks.sign());
            let words = Shape::Words { across: 9.0, up: -13.0, anchor: "start" };
            plot.draw_series(once(Marked::new("value", words, &at[1..]).saying(&text)))?;
        }
        Ok(())
    }

    fn begins_group(&self, index: usize) -> bool {
        let group = |index: usize| &self.bars[index].group;
        !group(index).is_empty() && (index == 0 || group(index - 1) != group(index))
    }
}
