//! `render_cases TEMPLATE_FOLDER CASES.json`: compares our rendering with what `make_chat_template_fixture.py` wrote, for any
//! folder of templates. Exits with 1 if any differs.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::{error::Error, path::PathBuf, process::ExitCode};

#[path = "../tests/chat_templates/cases.rs"]
mod cases;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, file] = arguments.as_slice() else {
        return Err("usage: render_cases TEMPLATE_FOLDER CASES.json".into());
    };
    let outcome = cases::compare(folder, file)?;
    for difference in &outcome.differences {
        println!("{difference}");
    }
    println!("{} cases, {} differ", outcome.cases, outcome.differences.len());
    Ok(if outcome.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
