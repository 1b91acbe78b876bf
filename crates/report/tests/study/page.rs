//! Reads a page back: elements, text and numbers, and whether it is well-formed.

use std::collections::BTreeMap;

/// Elements that have no end.
const VOID: [&str; 9] = ["meta", "link", "br", "hr", "img", "input", "col", "source", "!doctype"];
/// Elements whose content is no markup.
const RAW: [&str; 2] = ["script", "style"];

/// An element where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<String, String>,
}

/// What a page consists of, in order.
#[derive(Debug)]
pub(crate) enum Part {
    /// Text, with the elements it stands in, the outermost first.
    Text(Vec<Element>, String),
    /// The beginning of an element.
    Begin(Element),
}

impl Element {
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// Reads a page; every element must end where it should, and every attribute be quoted.
pub(crate) fn parts(page: &str) -> Vec<Part> {
    let (mut parts, mut stack): (Vec<Part>, Vec<Element>) = (Vec::new(), Vec::new());
    let mut rest = page;
    while !rest.is_empty() {
        if let Some(raw) = stack.last().filter(|element| RAW.contains(&element.name.as_str())) {
            let end = rest.find(&format!("</{}", raw.name)).expect("a script or style ends");
            parts.push(Part::Text(stack.clone(), rest[..end].to_owned()));
            rest = &rest[end..];
        } else if !rest.starts_with('<') {
            let end = rest.find('<').unwrap_or(rest.len());
            let text = unescaped(&rest[..end]);
            parts.push(Part::Text(stack.clone(), text));
            rest = &rest[end..];
            continue;
        }
        if let Some(end) = rest.strip_prefix("</") {
            let (name, after) = end.split_once('>').expect("an end tag ends");
            let open = stack.pop().unwrap_or_else(|| panic!("</{name}> ends nothing"));
            assert_eq!(open.name, name, "an element ends inside another: {:?}", &rest[..rest.len().min(80)]);
            rest = after;
            continue;
        }
        let (element, closed, after) = begin(&rest[1..]);
        parts.push(Part::Begin(element.clone()));
        if !closed && !VOID.contains(&element.name.as_str()) {
            stack.push(element);
        }
        rest = after;
    }
    assert!(stack.is_empty(), "never ended: {:?}", stack.iter().map(|element| &element.name).collect::<Vec<_>>());
    parts
}

/// A start tag behind its `<`: the element, whether it is closed in itself, and what follows.
fn begin(text: &str) -> (Element, bool, &str) {
    let name_end = text.find(|c: char| c.is_whitespace() || c == '>' || c == '/').expect("a tag ends");
    let mut element = Element { name: text[..name_end].to_lowercase(), attributes: BTreeMap::new() };
    assert!(
        element.name.starts_with('!') || element.name.chars().all(char::is_alphanumeric),
        "no name of an element: {:?}",
        element.name
    );
    let mut rest = text[name_end..].trim_start();
    loop {
        if let Some(after) = rest.strip_prefix("/>") {
            return (element, true, after);
        }
        if let Some(after) = rest.strip_prefix('>') {
            return (element, false, after);
        }
        let end = rest.find(|c: char| c == '=' || c == '>' || c.is_whitespace()).expect("a tag ends");
        let name = rest[..end].to_owned();
        rest = &rest[end..];
        let value = if let Some(quoted) = rest.strip_prefix("=\"") {
            let (value, after) = quoted.split_once('"').expect("an attribute ends");
            assert!(!value.contains('<'), "markup in an attribute: {value:?}");
            rest = after;
            unescaped(value)
        } else {
            assert!(!rest.starts_with('='), "an attribute without quotes: {name}");
            String::new()
        };
        assert!(element.attributes.insert(name.clone(), value).is_none(), "{name} twice in {}", element.name);
        rest = rest.trim_start();
    }
}

fn unescaped(text: &str) -> String {
    let names = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#x27;", "'"),
        ("&#x2f;", "/"),
        ("&#39;", "'"),
        ("&#47;", "/"),
        ("&amp;", "&"),
    ];
    names.iter().fold(text.to_owned(), |text, (name, c)| text.replace(name, c))
}
