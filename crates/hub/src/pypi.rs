//! Finds a file's address on a Python package index (PEP 503 pages, PEP 691 JSON).

use crate::{
    HubError,
    http::{Ask, Client, header, join},
};
use serde::Deserialize;

const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// The address of `file_name` among the files of `project`.
pub(crate) fn file_url(client: &Client, index: &str, project: &str, file_name: &str) -> Result<String, HubError> {
    let page = format!("{}/{project}/", index.trim_end_matches('/'));
    let ask = Ask { url: &page, bearer: None, header: Some(("accept", ACCEPT)) };
    let (headers, document) = client.document(ask).map_err(|error| with_hint(error, index))?;
    let is_json = header(&headers, "content-type").is_some_and(|kind| kind.contains("json"));
    let link = if is_json { from_json(&page, &document, file_name)? } else { from_html(&document, file_name) };
    link.map(|link| join(&page, &link)).ok_or_else(|| {
        let reason = format!("this index does not list {file_name}; name another one in POWERTRAIN_PYPI_URL");
        HubError::Answer { url: page, reason }
    })
}

#[derive(Deserialize)]
struct Project {
    files: Vec<ProjectFile>,
}

#[derive(Deserialize)]
struct ProjectFile {
    filename: String,
    url: String,
}

fn from_json(page: &str, document: &str, file_name: &str) -> Result<Option<String>, HubError> {
    let project: Project = serde_json::from_str(document)
        .map_err(|error| HubError::Answer { url: page.to_owned(), reason: format!("not an index page: {error}") })?;
    Ok(project.files.into_iter().find(|file| file.filename == file_name).map(|file| file.url))
}

/// The `href` whose last part is the file's name.
fn from_html(document: &str, file_name: &str) -> Option<String> {
    document.split("href=").skip(1).find_map(|rest| {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let link = rest[1..].split(quote).next()?.replace("&amp;", "&");
        let path = link.split(['#', '?']).next()?;
        (path.rsplit('/').next() == Some(file_name)).then_some(link)
    })
}

fn with_hint(error: HubError, index: &str) -> HubError {
    match error {
        HubError::Status { url, status, .. } => {
            let hint = format!("the package index {index} does not have it; name another one in POWERTRAIN_PYPI_URL");
            HubError::Status { url, status, hint }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_file_in_html() {
        let page = r#"<a href="https://f/a-1.whl#sha256=00" data-requires-python="&gt;=3.9">a-1.whl</a>
            <a href='../x/a-2.whl?t=1&amp;u=2#sha256=00'>a-2.whl</a>"#;
        assert_eq!(from_html(page, "a-1.whl").as_deref(), Some("https://f/a-1.whl#sha256=00"));
        assert_eq!(from_html(page, "a-2.whl").as_deref(), Some("../x/a-2.whl?t=1&u=2#sha256=00"));
        assert_eq!(from_html(page, "1.whl"), None);
    }
}
