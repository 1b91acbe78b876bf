//! Which package index this machine uses: what works for `pip` works for us.

use crate::settings::{folder, text};
use std::{env, path::PathBuf};

/// The public index.
const PUBLIC_INDEX: &str = "https://pypi.org/simple";

/// Index addresses to try, first to last: `POWERTRAIN_PYPI_URL` alone; else pip's own setting, then the public index.
/// The package is pinned by its hash, so any of them is as good as another.
pub(crate) fn indexes() -> Vec<String> {
    if let Some(url) = text("POWERTRAIN_PYPI_URL") {
        return vec![url];
    }
    let configured = text("PIP_INDEX_URL")
        .or_else(|| config_files().iter().find_map(|path| index_url(&std::fs::read_to_string(path).ok()?)));
    let mut indexes: Vec<String> = configured.into_iter().collect();
    if !indexes.iter().any(|url| url.trim_end_matches('/') == PUBLIC_INDEX) {
        indexes.push(PUBLIC_INDEX.to_owned());
    }
    indexes
}

/// pip's configuration files, the strongest first.
fn config_files() -> Vec<PathBuf> {
    let home = env::home_dir();
    let user = folder("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    [
        folder("PIP_CONFIG_FILE"),
        user.map(|config| config.join("pip/pip.conf")),
        home.map(|home| home.join(".pip/pip.conf")),
        Some(PathBuf::from("/etc/pip.conf")),
        Some(PathBuf::from("/etc/xdg/pip/pip.conf")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// `index-url` of the `[global]` or `[install]` section.
fn index_url(config: &str) -> Option<String> {
    let mut section = "";
    for line in config.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        }
        let Some((key, value)) = line.split_once(['=', ':']) else { continue };
        if matches!(section, "global" | "install") && matches!(key.trim(), "index-url" | "index_url") {
            return Some(value.trim().to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::index_url;

    #[test]
    fn reads_pip_configuration() {
        let config = "[list]\nindex-url = https://no\n# c\n[global]\ntimeout = 3\nindex-url = https://mirror/simple \n";
        assert_eq!(index_url(config).as_deref(), Some("https://mirror/simple"));
        assert_eq!(index_url("[global]\ncert = x\n"), None);
    }
}
