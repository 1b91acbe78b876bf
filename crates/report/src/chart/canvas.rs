//! Where plotters draws: a backend of it that writes [`Svg`].
//!
//! The backend that comes with plotters writes a colour into each element. A report's charts follow its page's light or dark scheme
//! and the printer's, and a mark says its number and origin when it is pointed at. So a colour here is the number of a class of
//! the style, and [`Marked`] is an element that carries words. plotters counts in whole pixels: one of its is a tenth of ours.

use super::svg::{Mark, Svg};
use plotters::{
    element::{Drawable, PointCollection},
    prelude::{DrawingBackend, RGBColor},
    style::text_anchor::{HPos, VPos},
};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};
use std::convert::Infallible;

/// Units of plotters in a pixel.
const UNITS: f64 = 10.0;
/// From a text's middle and from its top to the line it stands on, in pixels of a font of 12.
const MIDDLE_TO_BASE: f64 = 4.0;
const TOP_TO_BASE: f64 = 10.0;
/// A character's width and height, roughly.
const CHARACTER: (f64, f64) = (6.2, 12.0);

/// The class of what plotters would draw and a chart does not need.
pub(super) const UNDRAWN: &str = "undrawn";
/// Classes of the style that are drawn by colour.
const CLASSES: [&str; 8] =
    [UNDRAWN, "grid", "axis", "tick", "line before", "line after", "line before dashed", "line after dashed"];

/// The colour that stands for a class.
pub(super) fn colour(class: &str) -> RGBColor {
    let place = CLASSES.iter().position(|known| *known == class);
    // They are few.
    RGBColor(0, 0, place.unwrap_or_default() as u8)
}

/// Pixels in plotters' units.
pub(super) fn units(pixels: f64) -> i32 {
    (pixels * UNITS).round() as i32
}

/// A drawing as plotters sees it.
pub(super) struct Canvas<'a> {
    svg: &'a mut Svg,
    size: (f64, f64),
}

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

impl<'a> Canvas<'a> {
    pub(super) fn new(svg: &'a mut Svg, size: (f64, f64)) -> Self {
        Self { svg, size }
    }
}

fn class(color: BackendColor) -> &'static str {
    CLASSES[usize::from(color.rgb.2)]
}

fn pixels((x, y): BackendCoord) -> (f64, f64) {
    (f64::from(x) / UNITS, f64::from(y) / UNITS)
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (units(self.size.0).unsigned_abs(), units(self.size.1).unsigned_abs())
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn {
        self.svg.circle(class(color), pixels(point), 0.5, &Mark::default());
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.draw_path([from, to], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn {
        let points: Vec<(f64, f64)> = path.into_iter().map(pixels).collect();
        match (class(style.color()), &points[..]) {
            (UNDRAWN, _) => {}
            (class, &[from, to]) => self.svg.line(class, from, to),
            (class, points) => self.svg.polyline(class, points),
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn {
        let (across, down) = pixels(at);
        let anchor = match style.anchor().h_pos {
            HPos::Left => "start",
            HPos::Center => "middle",
            HPos::Right => "end",
        };
        let base = match style.anchor().v_pos {
            VPos::Top => TOP_TO_BASE,
            VPos::Center => MIDDLE_TO_BASE,
            VPos::Bottom => 0.0,
        };
        self.svg.text(class(style.color()), (across, down + base), anchor, text);
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        let width = CHARACTER.0 * text.chars().count() as f64;
        Ok((units(width).unsigned_abs(), units(CHARACTER.1).unsigned_abs()))
    }
}

/// A shape with words, at one place or from one to another.
pub(super) struct Marked {
    pub(super) mark: Mark,
    class: String,
    shape: Shape,
    at: Vec<(f64, f64)>,
}

#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// Around a place, of a radius in pixels.
    Circle(f64),
    /// Around a place, of half a side in pixels.
    Square(f64),
    /// From a place to another to its right, of a height in pixels, at least one long.
    Bar(f64),
    /// A line from a place to another to its right, and so many pixels beyond both.
    Across(f64),
    /// A line from a place to another above it, with ends of so many pixels to both sides.
    Whisker(f64),
    /// The mark's title, so many pixels right of a place and above it.
    Words { across: f64, up: f64, anchor: &'static str },
}

impl Marked {
    pub(super) fn new(class: &str, shape: Shape, at: &[(f64, f64)]) -> Self {
        Self { class: class.to_owned(), shape, at: at.to_vec(), mark: Mark::default() }
    }

    /// The same with a title.
    pub(super) fn saying(mut self, title: &str) -> Self {
        self.mark.title = title.to_owned();
        self
    }
}

impl Shape {
    /// Draws it at places in pixels; nothing where there are none.
    pub(super) fn draw(self, svg: &mut Svg, class: &str, places: &[(f64, f64)], mark: &Mark) {
        let (Some(&(x, y)), Some(&end)) = (places.first(), places.last()) else { return };
        match self {
            Self::Circle(radius) => svg.circle(class, (x, y), radius, mark),
            Self::Square(half) => svg.rectangle(class, (x - half, y - half), (2.0 * half, 2.0 * half), mark),
            Self::Bar(height) => svg.rectangle(class, (x, y), ((end.0 - x).max(1.0), height), mark),
            Self::Across(beyond) => svg.line(class, (x - beyond, y), (end.0 + beyond, y)),
            Self::Whisker(half) => {
                svg.line(class, (x, y), end);
                for height in [y, end.1] {
                    svg.line(class, (x - half, height), (x + half, height));
                }
            }
            Self::Words { across, up, anchor } => svg.text(class, (x + across, y - up), anchor, &mark.title),
        }
    }
}

impl<'a> PointCollection<'a, (f64, f64)> for &'a Marked {
    type Point = &'a (f64, f64);
    type IntoIter = &'a [(f64, f64)];

    fn point_iter(self) -> Self::IntoIter {
        &self.at
    }
}

impl Drawable<Canvas<'_>> for Marked {
    fn draw<I: Iterator<Item = BackendCoord>>(&self, at: I, canvas: &mut Canvas<'_>, _: (u32, u32)) -> Drawn {
        let places: Vec<(f64, f64)> = at.map(pixels).collect();
        self.shape.draw(canvas.svg, &self.class, &places, &self.mark);
        Ok(())
    }
}
