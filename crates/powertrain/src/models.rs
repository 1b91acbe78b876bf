//! `powertrain models` and `powertrain models rm MODEL`

use crate::{print, size::Bytes};
use powertrain_hub::{CachedModel, Hub, ModelReference, Settings};
use std::fmt::Write;

/// List the cached models with their sizes, or delete one.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Delete a cached model; of a Hub repository, all its revisions
    Rm {
        /// As the list names it
        model: String,
    },
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let hub = Hub::new(Settings::from_env()?);
    match &arguments.action {
        None => print(&table(&hub.list()?)),
        Some(Action::Rm { model }) => {
            let freed = hub.remove(&ModelReference::cached(model)?)?;
            print(&format!("deleted {model}, {} freed\n", Bytes(freed)))
        }
    }
}

fn table(models: &[CachedModel]) -> String {
    if models.is_empty() {
        return "no model is cached; `powertrain pull` fetches one\n".to_owned();
    }
    let width = models.iter().map(|model| model.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for CachedModel { name, path, bytes, incomplete } in models {
        let size = Bytes(*bytes).to_string();
        let state = if *incomplete { "  (incomplete: pull it again)" } else { "" };
        // Writing to a String cannot fail.
        _ = writeln!(text, "{name:width$}  {size:>10}  {}{state}", path.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_names_sizes_and_what_is_incomplete() {
        let model = |name: &str, bytes, incomplete| CachedModel {
            name: name.to_owned(),
            path: format!("/c/{name}").into(),
            bytes,
            incomplete,
        };
        let text = table(&[model("smollm2", 98_362_432, false), model("org/repository", 3 << 30, true)]);
        assert_eq!(
            text,
            "smollm2           93.8 MiB  /c/smollm2\n\
             org/repository    3.00 GiB  /c/org/repository  (incomplete: pull it again)\n"
        );
        assert!(table(&[]).contains("powertrain pull"));
    }
}
