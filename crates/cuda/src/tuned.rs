//! What tuning found, kept on disk: the next start on the same GPU with the same libraries and the same build measures nothing again.
//!
//! A text file per identity: a line that names it, a line per shape, a line with a checksum. Written whole beside its place and renamed there, so
//! that a reader sees all of it or the one before. A file that is not as it should be is ignored, with a warning, and written anew.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

const MAGIC: &str = "powertrain kernel choices 1";

/// Choices by shape, both as their owners write them; neither holds tabs or line ends.
#[derive(Debug, Default)]
pub(crate) struct Tuned {
    /// `None`: kept nowhere.
    path: Option<PathBuf>,
    identity: String,
    choices: BTreeMap<String, String>,
    /// Whether there is what the file lacks.
    grown: bool,
}

impl Tuned {
    /// What `folder` holds for this identity: everything that choices depend on beside the shape.
    pub(crate) fn open(folder: &Path, identity: &str) -> Self {
        let path = folder.join(format!("kernels-{:016x}.txt", fnv1a(identity.as_bytes())));
        let choices = match fs::read_to_string(&path).map_err(|error| (error.kind(), error.to_string())) {
            Ok(text) => parse(&text, identity),
            Err((io::ErrorKind::NotFound, _)) => Ok(BTreeMap::new()),
            Err((_, said)) => Err(said),
        };
        let choices = choices.unwrap_or_else(|reason| {
            let path = path.display();
            tracing::warn!(%path, reason, "the file of kernel choices is ignored; all shapes are measured again");
            BTreeMap::new()
        });
        Self { path: Some(path), identity: identity.to_owned(), choices, grown: false }
    }

    pub(crate) fn get(&self, shape: &str) -> Option<&str> {
        self.choices.get(shape).map(String::as_str)
    }

    pub(crate) fn set(&mut self, shape: String, choice: String) {
        self.grown |= self.choices.get(&shape) != Some(&choice);
        self.choices.insert(shape, choice);
    }

    /// Writes what is new. A folder that cannot be written is told once, and no error.
    pub(crate) fn save(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| self.grown) else { return };
        if let Err(error) = write(path, &text(&self.identity, &self.choices)) {
            let path = path.display();
            tracing::warn!(%path, %error, "kernel choices cannot be kept; the next start measures them again");
            self.path = None;
        }
        self.grown = false;
    }
}

fn text(identity: &str, choices: &BTreeMap<String, String>) -> String {
    let mut text = format!("{MAGIC}\n{identity}\n");
    for (shape, choice) in choices {
        text.extend([shape, "\t", choice, "\n"]);
    }
    let sum = fnv1a(text.as_bytes());
    text + &format!("sum {sum:016x}\n")
}

fn parse(text: &str, identity: &str) -> Result<BTreeMap<String, String>, String> {
    let (body, sum) = text.rsplit_once("sum ").ok_or("it has no checksum")?;
    if sum != format!("{:016x}\n", fnv1a(body.as_bytes())) {
        return Err("its checksum is not that of its content".to_owned());
    }
    let mut lines = body.lines();
    if lines.next() != Some(MAGIC) || lines.next() != Some(identity) {
        return Err("it is of another format or machine".to_owned());
    }
    let entry = |line: &str| line.split_once('\t').map(|(shape, choice)| (shape.to_owned(), choice.to_owned()));
    lines.map(|line| entry(line).ok_or_else(|| format!("a line without a tab: {line:?}"))).collect()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Two servers that start at once each rename a whole file; either will do.
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        // It may not be there at all.
        let _ = fs::remove_file(&beside);
    })
}

/// FNV-1a: not against malice, but against damage.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("powertrain-tuned-{}-{name}", std::process::id())))
        }

        fn file(&self) -> PathBuf {
            fs::read_dir(&self.0).expect("it was written").next().expect("one file").expect("readable").path()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn filled(folder: &Folder) -> Tuned {
        let mut tuned = Tuned::open(&folder.0, "a GPU");
        tuned.set("1 2 3 Element Store".into(), "Library 0f".into());
        tuned.set("4 5 6 F32 Logits".into(), "Streaming".into());
        tuned.save();
        tuned
    }

    #[test]
    fn what_was_saved_is_found_by_the_same_identity_alone() {
        let folder = Folder::new("found");
        assert_eq!(Tuned::open(&folder.0, "a GPU").get("1 2 3 Element Store"), None, "nothing is there yet");
        filled(&folder);
        let tuned = Tuned::open(&folder.0, "a GPU");
        assert_eq!(tuned.get("1 2 3 Element Store"), Some("Library 0f"));
        assert_eq!(tuned.get("4 5 6 F32 Logits"), Some("Streaming"));
        assert_eq!(tuned.get("4 5 7 F32 Logits"), None);
        assert_eq!(Tuned::open(&folder.0, "another GPU").get("1 2 3 Element Store"), None);
        // As when two identities had the same hash.
        let own = Tuned::open(&folder.0, "another GPU").path.expect("one");
        fs::rename(folder.file(), &own).expect("renamed");
        assert_eq!(Tuned::open(&folder.0, "another GPU").get("1 2 3 Element Store"), None);
    }

    #[test]
    fn any_damage_is_noticed() {
        let folder = Folder::new("damage");
        filled(&folder);
        let path = folder.file();
        let whole = fs::read(&path).expect("readable");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).expect("writable");
            assert_eq!(Tuned::open(&folder.0, "a GPU").get("4 5 6 F32 Logits"), None, "byte {at}");
            fs::write(&path, &whole[..at]).expect("writable");
            assert_eq!(Tuned::open(&folder.0, "a GPU").get("4 5 6 F32 Logits"), None, "cut at {at}");
        }
        fs::write(&path, [0xff, 0xfe, b'\n']).expect("writable");
        assert_eq!(Tuned::open(&folder.0, "a GPU").get("4 5 6 F32 Logits"), None, "no text");
        filled(&folder);
        assert!(Tuned::open(&folder.0, "a GPU").get("4 5 6 F32 Logits").is_some(), "written anew");
    }

    #[test]
    fn only_what_is_new_is_written_and_a_folder_that_cannot_be_is_no_error() {
        let folder = Folder::new("new");
        let mut tuned = filled(&folder);
        fs::remove_file(folder.file()).expect("removed");
        tuned.set("4 5 6 F32 Logits".into(), "Streaming".into());
        tuned.save();
        assert_eq!(fs::read_dir(&folder.0).expect("there").count(), 0, "nothing was new");
        let file = folder.0.join("file");
        fs::write(&file, "").expect("writable");
        let mut tuned = Tuned::open(&file, "a GPU");
        tuned.set("1".into(), "2".into());
        tuned.save();
        assert_eq!(tuned.get("1"), Some("2"));
        Tuned::default().save();
    }
}
