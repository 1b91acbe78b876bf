//! Bars with their numbers at the end: few values, to be read off.

use super::{
    Scale,
    lines::Side,
    scale::Fitted,
    svg::{Mark, Svg},
};
use crate::figure::Figure;

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
        let lengths = self.bars.iter().map(|bar| bar.figure.value);
        let scale = Fitted::new(Scale::Linear, lengths, (LEFT, RIGHT));
        let mut svg = Svg::new(WIDTH, height, &self.title);
        svg.text("axis-label", (8.0, 16.0), "start", &self.label);
        let mut y = TOP;
        for (index, bar) in self.bars.iter().enumerate() {
            if self.begins_group(index) {
                svg.text("group", (8.0, y + 14.0), "start", &bar.group);
                y += GROUP;
            }
            let end = scale.pixel(bar.figure.value).max(LEFT + 1.0);
            let from = bar.figure.origin.leaves.iter().cloned().collect::<Vec<_>>().join(" ");
            let title = format!("{} {}: {}", bar.group, bar.name, bar.figure.with_unit());
            svg.text("legend", (LEFT - 10.0, y + 13.0), "end", &bar.name);
            svg.rectangle(&format!("bar {}", bar.side.class()), (LEFT, y), (end - LEFT, BAR), &Mark { title, from });
            let text = format!("{}{}", bar.figure.with_unit(), bar.figure.marks.sign());
            svg.text("value", (end + 8.0, y + 13.0), "start", &text);
            y += STEP;
        }
        svg.finish()
    }

    fn begins_group(&self, index: usize) -> bool {
        let group = |index: usize| &self.bars[index].group;
        !group(index).is_empty() && (index == 0 || group(index - 1) != group(index))
    }
}
