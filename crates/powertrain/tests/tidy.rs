//! House rules that no lint knows, as a test over the files git tracks.

use std::{fs, path::Path, process::Command};

/// More lines than this are not read in one sitting; most files have fewer than 400.
const LINES_MAX: usize = 650;

/// Crates that may hold unsafe code, each site with a SAFETY comment (a lint sees to that).
const MAY_BE_UNSAFE: &[&str] = &["cpu", "cuda", "model"];

/// Names for files that say nothing.
const EMPTY_NAMES: &[&str] = &["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"];

/// What must not be committed, and why. Built from halves, so that this file passes.
fn forbidden() -> Vec<(String, &'static str)> {
    let words: [(&[&str], &str); 6] = [
        (&["/ro", "ot/"], "a path of somebody's machine"),
        (&["/wo", "rk/"], "a path of somebody's machine"),
        (&["/ho", "me/"], "a path of somebody's machine"),
        (&["#[ign", "ore"], "a test that does not run proves nothing"),
        (&["todo", "!("], "an unfinished path"),
        (&["unimplemented", "!("], "an unfinished path"),
    ];
    words.into_iter().map(|(halves, reason)| (halves.concat(), reason)).collect()
}

struct File {
    path: String,
    text: String,
}

/// Every tracked text file of the repository.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let listed =
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(&root).output().unwrap();
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).unwrap();
    let files = names.lines().filter_map(|path| {
        let text = fs::read_to_string(root.join(path)).ok()?;
        Some(File { path: path.to_owned(), text })
    });
    files.collect()
}

fn check(rule: impl Fn(&File) -> Option<String>) {
    let files = files();
    assert!(files.len() > 50, "only {} files found", files.len());
    let broken: Vec<String> = files.iter().filter_map(|file| Some(format!("{}: {}", file.path, rule(file)?))).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

fn is_rust(file: &File) -> bool {
    file.path.ends_with(".rs")
}

#[test]
fn files_are_short() {
    check(|file| {
        let lines = file.text.lines().count();
        (is_rust(file) && lines > LINES_MAX).then(|| format!("{lines} lines, at most {LINES_MAX}"))
    });
}

#[test]
fn files_are_named_for_what_they_hold() {
    check(|file| {
        let name = file.path.rsplit('/').next()?;
        EMPTY_NAMES.contains(&name).then(|| "a name that says nothing".to_owned())
    });
}

#[test]
fn files_begin_with_what_they_are() {
    check(|file| (is_rust(file) && !file.text.starts_with("//!")).then(|| "no `//!` line at the top".to_owned()));
}

#[test]
fn crates_forbid_unsafe_code() {
    check(|file| {
        let name = file.path.strip_prefix("crates/")?.split('/').next()?;
        let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|root| file.path == format!("crates/{name}/{root}"));
        let forbids = file.text.contains("#![forbid(unsafe_code)]");
        (is_root && !forbids && !MAY_BE_UNSAFE.contains(&name)).then(|| "no #![forbid(unsafe_code)]".to_owned())
    });
}

/// A closure lacks the features of the function around it, and calls take the place of instructions.
#[test]
fn lanes_are_written_out() {
    check(|file| {
        let is_lanes =
            ["avx2", "avx512", "neon"].iter().any(|level| file.path == format!("crates/cpu/src/simd/{level}.rs"));
        (is_lanes && file.text.contains(".map(|")).then(|| "a closure around intrinsics: use each!".to_owned())
    });
}

#[test]
fn nothing_forbidden_is_committed() {
    let forbidden = forbidden();
    check(|file| {
        let found = forbidden.iter().find(|(word, _)| file.text.contains(word.as_str()))?;
        Some(format!("contains {:?}: {}", found.0, found.1))
    });
}
