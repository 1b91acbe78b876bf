//! `powertrain pull MODEL`

use crate::print;
use powertrain_hub::{Hub, ModelReference, Settings};

/// Fetch a model into the cache; for a Hub repository, also look for a newer commit.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// `smollm2`, or a Hugging Face repository: org/repo, org/repo@revision, org/repo:file.gguf
    #[arg(default_value = "smollm2")]
    model: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let reference: ModelReference = arguments.model.parse()?;
    let resolved = Hub::new(Settings::from_env()?).pull(&reference)?;
    print(&format!("{}\n", resolved.path.display()))
}
