//! One file from a URL to a path: resumed where it broke off, checked, then renamed into place.

use crate::{
    HubError, ProgressMode,
    http::{ATTEMPTS_MAX, Ask, Client, header, is_final, network},
    progress::Progress,
};
use sha2::{Digest, Sha256};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use ureq::{Body, http::Response};

/// Attempts for one file in all, with progress or without.
const ATTEMPTS_TOTAL_MAX: u32 = 1000;
const BUFFER_BYTES: usize = 128 << 10;

/// What is fetched and what is known of it.
pub(crate) struct Source<'a> {
    pub(crate) url: &'a str,
    pub(crate) bearer: Option<&'a str>,
    /// Name shown to the user.
    pub(crate) label: &'a str,
    pub(crate) size: Option<u64>,
    /// Lower-case hexadecimal.
    pub(crate) sha256: Option<&'a str>,
}

/// Where it goes.
pub(crate) struct Destination<'a> {
    /// Final name; the file under it is whole.
    pub(crate) target: &'a Path,
    /// Name while it is incomplete.
    pub(crate) part: PathBuf,
    /// Free space wanted beyond the file itself, for what is made of it.
    pub(crate) extra_bytes: u64,
    /// The variable that moves this cache, for the message when the disk is full.
    pub(crate) variable: &'static str,
}

/// Fetches the file unless it is there. The caller holds the [`Lock`] of the target.
pub(crate) fn fetch(
    client: &Client,
    source: &Source<'_>,
    to: &Destination<'_>,
    mode: ProgressMode,
) -> Result<(), HubError> {
    if to.target.exists() {
        return Ok(());
    }
    let mut transfer = Transfer::open(source, to)?;
    let mut progress = mode.start(source.label, source.size);
    let mut failures = 0;
    for _ in 0..ATTEMPTS_TOTAL_MAX {
        let before = transfer.done;
        match transfer.attempt(client, &mut progress) {
            Ok(()) => return transfer.finish(),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(error)) => {
                failures = if transfer.done > before { 0 } else { failures + 1 };
                if failures >= ATTEMPTS_MAX {
                    return Err(error);
                }
                client.pause(failures);
            }
        }
    }
    let reason = format!("the transfer broke off {ATTEMPTS_TOTAL_MAX} times");
    Err(HubError::Network { url: source.url.to_owned(), reason })
}

/// Why an attempt ended.
enum Failure {
    /// Asking again may help: what arrived is kept.
    Passing(HubError),
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// An incomplete file: `hasher` has seen exactly its first `done` bytes.
struct Transfer<'a> {
    source: &'a Source<'a>,
    to: &'a Destination<'a>,
    file: File,
    hasher: Sha256,
    done: u64,
    /// Whether some of it came from an earlier process, which may have been lied to.
    inherited: bool,
}

impl<'a> Transfer<'a> {
    fn open(source: &'a Source<'a>, to: &'a Destination<'a>) -> Result<Self, HubError> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&to.part);
        let file = options.map_err(|error| HubError::io(&to.part, "create", &error))?;
        let mut transfer = Self { source, to, file, hasher: Sha256::new(), done: 0, inherited: false };
        let length = transfer.file.metadata().map_err(|error| HubError::io(&to.part, "read", &error))?.len();
        if source.size.is_some_and(|size| length > size) {
            transfer.restart()?;
        } else if length > 0 {
            let hashed = hash_file(&mut transfer.file, &mut transfer.hasher);
            transfer.done = hashed.map_err(|error| HubError::io(&to.part, "read", &error))?;
            transfer.inherited = true;
        }
        if let Some(size) = source.size {
            let needed = (size - transfer.done).saturating_add(to.extra_bytes);
            require_space(&to.part, needed, to.variable)?;
        }
        Ok(transfer)
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<(), HubError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|error| HubError::io(&self.to.part, "truncate", &error))?;
        self.hasher = Sha256::new();
        self.done = 0;
        self.inherited = false;
        Ok(())
    }

    fn attempt(&mut self, client: &Client, progress: &mut Progress) -> Result<(), Failure> {
        progress.set(self.done);
        if self.source.size != Some(self.done) {
            self.receive(client, progress)?;
        }
        let Some(expected) = self.source.sha256 else { return Ok(()) };
        let found = hexadecimal(&std::mem::take(&mut self.hasher).finalize());
        if found == expected {
            return Ok(());
        }
        let error = self.corrupt("sha256", found, expected.to_owned());
        let was_inherited = self.inherited;
        self.restart()?;
        // Bytes left over from an earlier run may be the wrong ones: once more from the start.
        if was_inherited { Err(Failure::Passing(error)) } else { Err(Failure::Final(self.discard(error))) }
    }

    fn receive(&mut self, client: &Client, progress: &mut Progress) -> Result<(), Failure> {
        let url = self.source.url;
        let range = format!("bytes={}-", self.done);
        let header = (self.done > 0).then_some(("range", range.as_str()));
        let response = client.get(Ask { url, bearer: self.source.bearer, header }).map_err(|error| {
            let told = network(url, &error);
            if is_final(&error) { Failure::Final(told) } else { Failure::Passing(told) }
        })?;
        let end = self.accept(&response)?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Failure::Passing(HubError::Network { url: url.to_owned(), reason: error.to_string() }));
                }
            };
            if end.is_some_and(|end| self.done + read as u64 > end) {
                let error = self.corrupt("size", format!("more than {}", self.done), end.unwrap_or(0).to_string());
                return Err(Failure::Final(self.discard(error)));
            }
            self.append(&buffer[..read])?;
            progress.set(self.done);
        }
        match end {
            Some(end) if self.done < end => {
                let reason = format!("the connection ended at byte {} of {end}", self.done);
                Err(Failure::Passing(HubError::Network { url: url.to_owned(), reason }))
            }
            _ => Ok(()),
        }
    }

    /// Looks at status and headers; after it the body continues at `done`. Returns the file's size, if anyone told it.
    fn accept(&mut self, response: &Response<Body>) -> Result<Option<u64>, Failure> {
        let url = self.source.url;
        let told = match response.status().as_u16() {
            206 => {
                let range = header(response.headers(), "content-range").and_then(parse_content_range);
                let Some((start, total)) = range.filter(|&(start, _)| start == self.done) else {
                    self.restart()?;
                    let reason = "a Content-Range other than the one asked for".to_owned();
                    return Err(Failure::Passing(HubError::Answer { url: url.to_owned(), reason }));
                };
                total.or_else(|| Some(start + response.body().content_length()?))
            }
            200 => {
                // The server does not know ranges: the file begins anew.
                self.restart()?;
                response.body().content_length()
            }
            416 if self.done > 0 => {
                self.restart()?;
                let reason = "the rest of the file is not to be had, it begins anew".to_owned();
                return Err(Failure::Passing(HubError::Answer { url: url.to_owned(), reason }));
            }
            status => {
                let error = HubError::Status { url: url.to_owned(), status, hint: hint(status).to_owned() };
                let passing = status >= 500 || status == 429 || status == 408;
                return Err(if passing { Failure::Passing(error) } else { Failure::Final(error) });
            }
        };
        match (self.source.size, told) {
            (Some(expected), Some(found)) if expected != found => {
                let error = self.corrupt("size", found.to_string(), expected.to_string());
                Err(Failure::Final(self.discard(error)))
            }
            (expected, found) => Ok(expected.or(found)),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|error| {
            let missing = self.source.size.map_or(bytes.len() as u64, |size| size - self.done);
            write_error(&self.to.part, &error, missing, self.to.variable)
        })?;
        self.hasher.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<(), HubError> {
        let synced = self.file.sync_all();
        synced.map_err(|error| write_error(&self.to.part, &error, 0, self.to.variable))?;
        std::fs::rename(&self.to.part, self.to.target).map_err(|error| HubError::io(self.to.target, "write", &error))
    }

    fn corrupt(&self, what: &'static str, found: String, expected: String) -> HubError {
        HubError::Corrupt { url: self.source.url.to_owned(), what, found, expected }
    }

    /// Deletes the incomplete file: nothing of it can be used.
    fn discard(&self, error: HubError) -> HubError {
        // The error to tell is the one in hand; a part file that stays is found wrong again next time.
        _ = std::fs::remove_file(&self.to.part);
        error
    }
}

/// Held while a file is fetched: another process that wants the same one waits here. Released when dropped, also by a
/// crash. The empty file stays: deleting it would let two processes hold a lock of the same name.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn acquire(path: &Path, label: &str, mode: ProgressMode) -> Result<Self, HubError> {
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(|error| HubError::io(path, "create", &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                mode.note(&format!("another process is fetching {label}; waiting for it"));
                file.lock().map_err(|error| HubError::io(path, "lock", &error))?;
            }
            Err(TryLockError::Error(error)) => return Err(HubError::io(path, "lock", &error)),
        }
        Ok(Self { _file: file })
    }
}

/// Creates a folder and those above it.
pub(crate) fn create_folder(path: &Path) -> Result<(), HubError> {
    std::fs::create_dir_all(path).map_err(|error| HubError::io(path, "create the folder", &error))
}

/// Says that the disk is full before it is.
fn require_space(path: &Path, needed: u64, variable: &'static str) -> Result<(), HubError> {
    match free_bytes(path) {
        Some(free) if free < needed => Err(HubError::DiskFull { path: path.to_owned(), needed, free, variable }),
        _ => Ok(()),
    }
}

/// A failed write, told as a full disk when it was one.
pub(crate) fn write_error(path: &Path, error: &io::Error, needed: u64, variable: &'static str) -> HubError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let free = free_bytes(path).unwrap_or(0);
        return HubError::DiskFull { path: path.to_owned(), needed, free, variable };
    }
    HubError::io(path, "write", error)
}

/// Bytes this user may still write there; unknown on a file system that does not say.
fn free_bytes(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}

/// Reads from the start to the end; leaves the file's position there.
fn hash_file(file: &mut File, hasher: &mut Sha256) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            read => {
                hasher.update(&buffer[..read]);
                total += read as u64;
            }
        }
    }
}

/// `bytes START-END/TOTAL`; the total may be `*`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a status means for a file that was listed.
pub(crate) fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "access was refused; set HF_TOKEN to a token that may read it",
        404 | 410 => "there is no such file there",
        407 => "the proxy wants a login; give it in HTTPS_PROXY as http://user:password@host:port",
        429 => "too many requests; try again later",
        500.. => "the server failed; try again later",
        _ => "not an answer that can be used",
    }
}
