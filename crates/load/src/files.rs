//! A run's files: the result as JSON, the samples as JSON Lines; raw events and the table stand in [`crate::events`] and
//! [`crate::csv`]. Each is written beside its name and renamed, so that a reader finds a whole file or none; what a run leaves
//! unfinished is deleted, unless the run was killed.

use crate::{result::RunResult, telemetry::Sample};
use serde::Serialize;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

/// JSON Lines on their way to their file, which gets its name at the end. Dropped before, they are deleted.
pub(crate) struct Lines {
    path: PathBuf,
    /// None once it has its name.
    partial: Option<PathBuf>,
    writer: BufWriter<File>,
}

impl Lines {
    /// Fails where another run writes to the same file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let partial = beside(path);
        // What a killed run left is written over, but not before it is known that nobody writes to it.
        let file = File::options().write(true).create(true).truncate(false).open(&partial)?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other("another run writes to it now; give this one another name"));
            }
            // A file system without locks.
            Ok(()) | Err(fs::TryLockError::Error(_)) => file.set_len(0)?,
        }
        Ok(Self { path: path.to_owned(), partial: Some(partial), writer: BufWriter::new(file) })
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
        if let Some(partial) = self.partial.take() {
            fs::rename(&partial, &self.path).inspect_err(|_| _ = fs::remove_file(&partial))?;
        }
        Ok(())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // Nothing can be said of a failure here, and what stays is named for what it is.
            _ = fs::remove_file(partial);
        }
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

/// Reads a file of results. What is no regular file is refused: a pipe would be waited for, a device may never end.
///
/// # Errors
/// When it cannot be read, is no regular file, or is larger than `bytes_max`.
pub fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open_regular(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if read as u64 > bytes_max {
        let reason = format!("it has more than the {bytes_max} bytes that a result may have");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// Opens a regular file, and nothing else.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        let what = if found.is_dir() { "a folder" } else { "a pipe or device" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}; give a regular file")));
    }
    File::open(path)
}

/// The name of the raw events beside a result's file: `x.json` has `x.events.jsonl`. Only names that end in `.json` have
/// sidecars of their own, see [`has_own_sidecars`].
pub fn events_path(result: &Path) -> PathBuf {
    result.with_extension("events.jsonl")
}

/// The name of the samples beside a result's file: `x.json` has `x.series.jsonl`.
pub fn series_path(result: &Path) -> PathBuf {
    result.with_extension("series.jsonl")
}

/// Whether no result of another name shares this one's sidecars: its name ends in `.json`.
pub fn has_own_sidecars(result: &Path) -> bool {
    result.extension().is_some_and(|extension| extension == "json")
}

/// Whether [`write_whole`] could write there now, so that nothing is measured for a name that nothing can be written to.
///
/// # Errors
/// Why not.
pub fn check_writable(path: &Path) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::metadata(&target) {
        Ok(found) if found.is_dir() => Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")),
        Ok(found) if !found.is_file() => Ok(()),
        _ => {
            let partial = beside(&target);
            match File::options().write(true).create_new(true).open(&partial) {
                Ok(_) => fs::remove_file(&partial),
                // Another run's, or what a killed one left: not ours to take away.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            }
        }
    }
}

/// Writes a file so that it is there whole or as it was before.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
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

    #[test]
    fn what_can_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        check_writable(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays");
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::write(beside(&path), "another's").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(beside(&path)).unwrap(), "another's");
        assert!(check_writable(&folder.path().join("none/x.json")).is_err());
        assert!(check_writable(folder.path()).is_err());
    }

    #[test]
    fn lines_without_an_end_leave_nothing_and_two_writers_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.events.jsonl");
        let names = || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        // As a killed run leaves it.
        fs::write(beside(&path), "{\"level\": 0}\n").unwrap();
        let mut lines = Lines::create(&path).unwrap();
        lines.write(&json!({"level": 1})).unwrap();
        lines.flush().unwrap();
        let error = Lines::create(&path).err().unwrap().to_string();
        assert!(error.contains("another run writes to it"), "{error}");
        assert_eq!(fs::read_to_string(beside(&path)).unwrap(), "{\"level\":1}\n", "the other's are not touched");
        drop(lines);
        assert!(names().is_empty(), "{:?}", names());
        let mut lines = Lines::create(&path).unwrap();
        lines.write(&json!(2)).unwrap();
        lines.finish().unwrap();
        assert_eq!((names(), fs::read_to_string(&path).unwrap()), (vec!["run.events.jsonl".into()], "2\n".to_owned()));
    }

    #[test]
    fn only_results_named_json_have_sidecars_of_their_own() {
        let own = |name| has_own_sidecars(Path::new(name));
        assert!(own("a.json") && own("a.b.json"));
        // Both would write to a.events.jsonl.
        assert!(!own("a.txt") && !own("a") && !own(".json"));
    }

    #[cfg(unix)]
    #[test]
    fn pipes_devices_folders_and_what_is_too_long_are_refused_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo.json");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let file = folder.path().join("file.json");
        fs::write(&file, "1234").unwrap();
        let error = |path: &Path, most| read_regular(path, most).unwrap_err().to_string();
        assert!(error(&fifo, 10).contains("a pipe or device"));
        assert!(error(Path::new("/dev/zero"), 10).contains("a pipe or device"));
        assert!(error(folder.path(), 10).contains("a folder"));
        assert!(error(&file, 3).contains("more than the 3 bytes"));
        assert_eq!(read_regular(&file, 4).unwrap(), b"1234");
    }

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
