//! `tokenize MODEL TEXT_FILE` (a GGUF file or a folder with tokenizer.json): the text's ids in brackets on standard output, what it took on standard error. The other
//! side of `compare_llama_cpp.py`.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use powertrain_model::Checkpoint;
use powertrain_text::{AddSpecial, ParseSpecial, Tokenizer};
use std::{error::Error, path::PathBuf, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, text] = arguments.as_slice() else { return Err("usage: tokenize MODEL TEXT_FILE".into()) };
    let start = Instant::now();
    let tokenizer = if model.is_dir() {
        Tokenizer::from_folder(model)?
    } else {
        let checkpoint = Checkpoint::open(model)?;
        Tokenizer::from_gguf(checkpoint.metadata().ok_or("not a GGUF file")?)?
    };
    eprintln!("{} tokens loaded in {:.1} ms", tokenizer.vocab_size(), start.elapsed().as_secs_f64() * 1e3);
    let text = String::from_utf8(std::fs::read(text)?)?;
    for round in ["first", "second"] {
        let start = Instant::now();
        let ids = tokenizer.encode(&text, AddSpecial::Yes, ParseSpecial::Yes)?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{round}: {} ids in {:.1} ms, {:.1} MB/s",
            ids.len(),
            seconds * 1e3,
            text.len() as f64 / seconds / 1e6
        );
        if round == "second" {
            println!("{ids:?}");
        }
    }
    Ok(())
}
