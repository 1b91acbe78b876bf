//! Templates to text: pages escape everything, Markdown escapes what a user's words could break.

use crate::{chart::STYLE as CHART_STYLE, error::Error};
use minijinja::{AutoEscape, Environment, Value, context, syntax::SyntaxConfig, value::Serde};

/// Templates by name.
const TEMPLATES: [(&str, &str); 4] = [
    ("case_study.html", include_str!("../templates/case_study.html")),
    ("case_study.md", include_str!("../templates/case_study.md")),
    ("index.html", include_str!("../templates/index.html")),
    ("figures.html", include_str!("../templates/figures.html")),
];

/// Renders a page. Styles and scripts are put in whole, so that it needs no network.
pub(crate) fn html(name: &str, content: &serde_json::Value) -> Result<String, Error> {
    let assets = context! {
        style => concat!(include_str!("../assets/uPlot.min.css"), include_str!("../templates/page.css")),
        chart_style => CHART_STYLE,
        uplot => include_str!("../assets/uPlot.iife.min.js"),
        uplot_licence => include_str!("../assets/uPlot.LICENSE"),
        charts_script => include_str!("../templates/charts.js"),
        tables_script => include_str!("../templates/tables.js"),
    };
    render(name, context! { ..Value::from(Serde(content.clone())), ..assets })
}

/// Renders Markdown.
pub(crate) fn markdown(name: &str, content: &serde_json::Value) -> Result<String, Error> {
    render(name, Value::from(Serde(content.clone())))
}

fn render(name: &str, content: Value) -> Result<String, Error> {
    let failed = |error| Error::Template { name: name.to_owned(), error };
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
    environment.set_syntax(syntax);
    environment
        .set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
    environment.add_filter("md", escaped_markdown);
    for (name, source) in TEMPLATES {
        environment.add_template(name, source).map_err(failed)?;
    }
    environment.get_template(name).and_then(|template| template.render(content)).map_err(failed)
}

/// Words of the user's as plain text in a line of Markdown or in a cell of its tables.
fn escaped_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' => escaped.extend(['\\', c]),
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// JSON that can stand in a script element: nothing in it ends the element.
pub(crate) fn script_json(json: &serde_json::Value) -> String {
    json.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_cannot_end_its_script() {
        let json = json!({"a": "</script><script>alert(1)</script>"});
        let text = script_json(&json);
        assert!(!text.contains('<'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), json);
    }

    #[test]
    fn a_users_words_stay_words_in_markdown() {
        assert_eq!(escaped_markdown("a|b\n<i> *c*"), "a\\|b &lt;i> \\*c\\*");
    }
}
