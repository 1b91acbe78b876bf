//! A run's files: the result as JSON, the samples as JSON Lines; raw events and the table stand in [`crate::events`] and
//! [`crate::csv`]. Each is written beside its name and renamed, so that a reader finds a whole file or none.

use crate::{result::RunResult, telemetry::Sample};
use serde::Serialize;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// JSON Lines on their way to their file, which gets its name at the end.
pub(crate) struct Lines {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
}

impl Lines {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let partial = beside(path);
        Ok(Self { path: path.to_owned(), writer: BufWriter::new(File::create(&partial)?), partial })
    }

    pub(crate) fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, line)?;
        self.writer.write_all(b"\n")
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs::rename(&self.partial, &self.path)
    }
}

/// Samples taken during levels on their way to their file.
pub struct SeriesFile(Lines);

impl SeriesFile {
    /// Begins the file; it gets its name at the end.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Lines::create(path).map(Self)
    }

    /// Adds a level's samples, one line each.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_level(&mut self, level: usize, series: &[Sample]) -> io::Result<()> {
        for Sample { at, source, values } in series {
            self.0.write(&json!({"level": level, "at_us": *at as f64 / 1e3, "source": source, "values": values}))?;
        }
        self.0.flush()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When it cannot be written or renamed.
    pub fn finish(self) -> io::Result<()> {
        self.0.finish()
    }
}

/// Writes the result.
///
/// # Errors
/// When the file cannot be written.
pub fn write_result(path: &Path, result: &RunResult) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(result)?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// The name of the raw events beside a result's file: `x.json` has `x.events.jsonl`.
pub fn events_path(result: &Path) -> PathBuf {
    result.with_extension("events.jsonl")
}

/// The name of the samples beside a result's file: `x.json` has `x.series.jsonl`.
pub fn series_path(result: &Path) -> PathBuf {
    result.with_extension("series.jsonl")
}

pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link keeps its place; a device or a pipe cannot be replaced by a file, only written to.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
        return File::options().write(true).open(&target)?.write_all(bytes);
    }
    let path = target.as_path();
    let partial = beside(path);
    let mut file = File::create(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn links_and_what_is_no_file_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("run.json"), folder.path().join("latest.json"));
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
        write_whole(Path::new("/dev/null"), b"gone").unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        // A full device is told, and stays.
        assert!(write_whole(Path::new("/dev/full"), b"x").is_err());
        assert!(fs::metadata("/dev/full").unwrap().file_type().is_char_device());
    }
}
