//! Elements of SVG as text.

use std::fmt::Write;

/// A drawing.
pub(super) struct Svg {
    text: String,
}

impl Svg {
    /// A drawing of that size, which scales with what it stands in.
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let mut text = format!("<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" font-size=\"12\"");
        // A file of its own needs a size; in a page, style overrides it.
        _ = writeln!(text, " width=\"{width}\" height=\"{height}\"><title>{}</title>", escape(title));
        Self { text }
    }

    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        _ = writeln!(
            self.text,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    pub(super) fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        _ = writeln!(self.text, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "));
    }

    pub(super) fn rectangle(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), more: &Mark) {
        _ = writeln!(
            self.text,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"{}>{}</rect>",
            more.attributes(),
            more.title()
        );
    }

    pub(super) fn circle(&mut self, class: &str, (x, y): (f64, f64), radius: f64, more: &Mark) {
        _ = writeln!(
            self.text,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"{}>{}</circle>",
            more.attributes(),
            more.title()
        );
    }

    /// Text; `anchor` is `start`, `middle` or `end`.
    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        _ = writeln!(
            self.text,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        );
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// What a mark on a chart says when it is pointed at, and where it comes from.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    pub(super) title: String,
    pub(super) from: String,
}

impl Mark {
    fn attributes(&self) -> String {
        if self.from.is_empty() { String::new() } else { format!(" data-from=\"{}\"", escape(&self.from)) }
    }

    fn title(&self) -> String {
        if self.title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(&self.title)) }
    }
}

/// Text as XML has it.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Control characters are not allowed in XML, escaped or not.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
