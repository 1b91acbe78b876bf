//! The Hugging Face Hub: which files are fetched, how they lie in its cache, and what its refusals are told as.

use crate::loopback::{Reply, Request, Server, noise, sha256};
use powertrain_hub::{Hub, HubError, HuggingFaceSettings, ModelReference, ProgressMode, SMOLLM2, Settings};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository as the Hub serves it: small files directly, large ones from a storage of another host name.
struct FakeHub {
    hub: Server,
    storage: Server,
    commit: Arc<Mutex<String>>,
}

type Files = &'static [(&'static str, fn() -> Vec<u8>)];

const SHARDED: Files = &[
    (".gitattributes", || b"x".to_vec()),
    ("../evil.safetensors", || b"x".to_vec()),
    ("config.json", || b"{}".to_vec()),
    ("consolidated.safetensors", || noise(10, 9)),
    ("model-00001-of-00002.safetensors", || noise(50_000, 1)),
    ("model-00002-of-00002.safetensors", || noise(60_000, 2)),
    ("model.safetensors.index.json", || {
        br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#.to_vec()
    }),
    ("onnx/model.onnx", || b"x".to_vec()),
    ("tokenizer.json", || b"{\"t\":1}".to_vec()),
    ("tokenizer_config.json", || b"{\"c\":1}".to_vec()),
];

const GGUFS: Files =
    &[("README.md", Vec::new), ("q/m.Q4_K_M.gguf", || noise(40_000, 3)), ("m.Q8_0.gguf", || noise(9, 4))];

impl FakeHub {
    fn start(files: Files) -> Self {
        let storage = Server::start(move |request, _| match file(files, request.path.trim_start_matches("/blob/")) {
            Some(bytes) => Reply::range(&bytes, request),
            None => Reply::status(404),
        });
        let elsewhere = storage.url.replace("127.0.0.1", "localhost");
        let commit = Arc::new(Mutex::new(COMMIT.to_owned()));
        let now = commit.clone();
        let hub = Server::start(move |request, _| answer(files, &elsewhere, &now.lock().unwrap(), request));
        Self { hub, storage, commit }
    }

    fn client(&self, folder: &Path) -> Hub {
        Hub::new(self.settings(folder))
    }

    fn settings(&self, folder: &Path) -> Settings {
        Settings {
            cache: folder.join("cache"),
            package_indexes: Vec::new(),
            default_model: &SMOLLM2,
            hugging_face: HuggingFaceSettings {
                cache: folder.join("hub"),
                endpoint: self.hub.url.clone(),
                token: Some("hf_secret".to_owned()),
                offline: false,
            },
            progress: ProgressMode::Silent,
            retry_delay: Duration::ZERO,
        }
    }
}

fn file(files: Files, name: &str) -> Option<Vec<u8>> {
    files.iter().find(|(known, _)| *known == name).map(|(_, make)| make())
}

fn answer(files: Files, storage: &str, commit: &str, request: &Request) -> Reply {
    if request.header("authorization") != Some("Bearer hf_secret") {
        return Reply::status(401);
    }
    if request.path.starts_with("/api/models/org/repo/revision/") {
        let siblings: Vec<_> = files.iter().map(|(name, _)| format!(r#"{{"rfilename":"{name}"}}"#)).collect();
        return Reply::body(format!(r#"{{"sha":"{commit}","siblings":[{}]}}"#, siblings.join(",")));
    }
    // The repository was renamed: the Hub redirects within itself.
    if let Some(rest) = request.path.strip_prefix("/org/repo/") {
        return Reply::status(307).with("location", format!("/org/renamed/{rest}"));
    }
    let Some(name) = request.path.strip_prefix(&format!("/org/renamed/resolve/{commit}/")) else {
        return Reply::status(404);
    };
    let Some(bytes) = file(files, name) else { return Reply::status(404) };
    if name.ends_with(".json") {
        return Reply::range(&bytes, request).with("etag", format!("\"{}\"", &sha256(&bytes)[..40]));
    }
    let at = format!("{storage}/blob/{name}");
    // Without a scheme it is another host all the same.
    let at = if name.starts_with("schemeless") { at.trim_start_matches("http:") } else { &at };
    Reply::status(302)
        .with("location", at)
        .with("x-linked-etag", format!("\"{}\"", sha256(&bytes)))
        .with("x-linked-size", bytes.len().to_string())
}

fn resolve(hub: &Hub, given: &str) -> Result<PathBuf, HubError> {
    Ok(hub.resolve(&given.parse::<ModelReference>()?)?.path)
}

#[test]
fn a_sharded_model_is_fetched_whole_and_then_found_offline() {
    let (fake, folder) = (FakeHub::start(SHARDED), TempDir::new().unwrap());
    let path = resolve(&fake.client(folder.path()), "org/repo").unwrap();
    assert_eq!(path, folder.path().join("hub/models--org--repo/snapshots").join(COMMIT));
    let mut names: Vec<_> =
        std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    for name in &names {
        assert_eq!(std::fs::read(path.join(name)).unwrap(), file(SHARDED, name).unwrap(), "{name}");
    }
    let shard = std::fs::read_link(path.join("model-00001-of-00002.safetensors")).unwrap();
    assert_eq!(shard, Path::new("../../blobs").join(sha256(&noise(50_000, 1))));
    let main = folder.path().join("hub/models--org--repo/refs/main");
    assert_eq!(std::fs::read_to_string(main).unwrap(), COMMIT);
    for request in fake.storage.requests() {
        assert_eq!(request.header("authorization"), None, "the token stays with the Hub");
    }

    let asked = fake.hub.asked().len();
    let mut offline = fake.settings(folder.path());
    offline.hugging_face.offline = true;
    assert_eq!(resolve(&Hub::new(offline), "org/repo").unwrap(), path);
    assert_eq!(resolve(&fake.client(folder.path()), "org/repo").unwrap(), path);
    assert_eq!(fake.hub.asked().len(), asked, "what is cached is not asked for");
}

#[test]
fn pull_notices_a_new_commit_and_keeps_equal_files() {
    let (fake, folder) = (FakeHub::start(SHARDED), TempDir::new().unwrap());
    let hub = fake.client(folder.path());
    resolve(&hub, "org/repo").unwrap();
    let fetched = fake.storage.asked().len();
    *fake.commit.lock().unwrap() = COMMIT.replace('0', "f");
    let pulled = hub.pull(&"org/repo".parse().unwrap()).unwrap().path;
    assert!(pulled.ends_with(COMMIT.replace('0', "f")));
    assert_eq!(resolve(&hub, "org/repo").unwrap(), pulled);
    assert_eq!(fake.storage.asked().len(), fetched, "equal blobs are linked, not fetched again");
}

#[test]
fn an_interrupted_pull_is_not_taken_for_the_model() {
    let (fake, folder) = (FakeHub::start(SHARDED), TempDir::new().unwrap());
    let hub = fake.client(folder.path());
    let path = resolve(&hub, "org/repo").unwrap();
    std::fs::remove_file(path.join("model-00002-of-00002.safetensors")).unwrap();
    let mut offline = fake.settings(folder.path());
    offline.hugging_face.offline = true;
    let error = resolve(&Hub::new(offline), "org/repo").unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert_eq!(resolve(&hub, "org/repo").unwrap(), path);
    assert!(path.join("model-00002-of-00002.safetensors").is_file());
}

#[test]
fn one_gguf_is_fetched_alone() {
    let (fake, folder) = (FakeHub::start(GGUFS), TempDir::new().unwrap());
    let path = resolve(&fake.client(folder.path()), "org/repo@v1.0:q/m.Q4_K_M.gguf").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), noise(40_000, 3));
    assert!(path.ends_with("q/m.Q4_K_M.gguf"));
    assert_eq!(fake.storage.asked(), ["GET /blob/q/m.Q4_K_M.gguf"]);
    assert_eq!(fake.hub.asked()[0], "GET /api/models/org/repo/revision/v1.0");
}

#[test]
fn the_only_gguf_is_meant_and_found_again_offline() {
    const ONE: Files = &[("README.md", Vec::new), ("m.Q8_0.gguf", || noise(9, 4))];
    let (fake, folder) = (FakeHub::start(ONE), TempDir::new().unwrap());
    let path = resolve(&fake.client(folder.path()), "org/repo").unwrap();
    assert!(path.ends_with("m.Q8_0.gguf"));
    let mut settings = fake.settings(folder.path());
    settings.hugging_face.offline = true;
    assert_eq!(resolve(&Hub::new(settings), "org/repo").unwrap(), path);
}

#[test]
fn a_description_comes_without_weights() {
    let (fake, folder) = (FakeHub::start(SHARDED), TempDir::new().unwrap());
    let hub = fake.client(folder.path());
    let described = hub.resolve_description(&"org/repo".parse().unwrap()).unwrap();
    assert!(described.path.join("config.json").is_file() && described.path.join("tokenizer.json").is_file());
    assert!(fake.storage.asked().is_empty(), "no shard was fetched");
    let asked = fake.hub.asked().len();
    assert_eq!(hub.resolve_description(&"org/repo".parse().unwrap()).unwrap(), described);
    assert_eq!(fake.hub.asked().len(), asked, "what is here is not asked for again");
    // That is not the model: serving it fetches the weights.
    resolve(&hub, "org/repo").unwrap();
    assert_eq!(fake.storage.asked().len(), 2);
    let error = hub.resolve_description(&ModelReference::Default).unwrap_err().to_string();
    assert!(error.contains("give that file, its folder, or org/repo"), "{error}");
}

#[test]
fn a_choice_of_ggufs_is_listed() {
    let (fake, folder) = (FakeHub::start(GGUFS), TempDir::new().unwrap());
    for given in ["org/repo", "org/repo:other.gguf"] {
        let error = resolve(&fake.client(folder.path()), given).unwrap_err().to_string();
        assert!(error.contains("m.Q8_0.gguf, q/m.Q4_K_M.gguf"), "{error}");
    }
}

#[test]
fn a_name_that_leads_out_of_the_cache_is_refused() {
    let outside: Files = &[("../../../../../outside.gguf", || noise(10, 1))];
    let odd: Files = &[("m.gguf?x=y.gguf", || noise(10, 1))];
    for files in [outside, odd] {
        let (fake, folder) = (FakeHub::start(files), TempDir::new().unwrap());
        let error = resolve(&fake.client(&folder.path().join("a/b/c/d/e")), "org/repo").unwrap_err().to_string();
        assert!(error.contains("is not a file name"), "{error}");
        let mut links = 0;
        let mut folders = vec![folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                links += usize::from(entry.path().is_symlink() || entry.path().is_file());
                folders.extend(Some(entry.path()).filter(|path| path.is_dir()));
            }
        }
        assert_eq!((links, fake.storage.requests().len()), (0, 0), "nothing is fetched or made");
    }
}

#[test]
fn a_redirect_to_another_host_gets_no_token() {
    let files: Files = &[("schemeless.gguf", || noise(1000, 3))];
    let (fake, folder) = (FakeHub::start(files), TempDir::new().unwrap());
    let path = resolve(&fake.client(folder.path()), "org/repo").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), noise(1000, 3));
    assert!(!fake.storage.requests().is_empty());
    for request in fake.storage.requests() {
        assert_eq!(request.header("authorization"), None, "the token stays with the Hub");
    }
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    const EVIL: Files = &[
        ("config.json", || b"{}".to_vec()),
        ("model.safetensors.index.json", || br#"{"weight_map":{"a":"../../../evil.safetensors"}}"#.to_vec()),
        ("x.safetensors", || b"x".to_vec()),
    ];
    let (fake, folder) = (FakeHub::start(EVIL), TempDir::new().unwrap());
    let error = resolve(&fake.client(folder.path()), "org/repo").unwrap_err().to_string();
    assert!(error.contains("evil.safetensors\" is not a file name"), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let (fake, folder) = (FakeHub::start(SHARDED), TempDir::new().unwrap());
    let check = |token: Option<&str>, given: &str, expected: &str| {
        let mut settings = fake.settings(folder.path());
        settings.hugging_face.token = token.map(str::to_owned);
        let error = resolve(&Hub::new(settings), given).unwrap_err().to_string();
        assert!(error.contains(expected), "{given}: {error}");
    };
    check(None, "org/repo", "gated, private or does not exist");
    check(None, "org/repo", "set HF_TOKEN");
    check(Some("wrong"), "org/repo", "the token in HF_TOKEN may not read org/repo");
    check(Some("hf_secret"), "org/other", "no repository org/other with revision main");
}

#[test]
fn the_cache_is_listed_and_removed() {
    let (fake, folder) = (FakeHub::start(GGUFS), TempDir::new().unwrap());
    let hub = fake.client(folder.path());
    assert!(hub.list().unwrap().is_empty());
    resolve(&hub, "org/repo:m.Q8_0.gguf").unwrap();
    let [model] = &hub.list().unwrap()[..] else { panic!() };
    assert_eq!((model.name.as_str(), model.incomplete), ("org/repo", false));
    assert_eq!(model.bytes, 9 + COMMIT.len() as u64);
    for part in ["org/repo:m.Q8_0.gguf", "org/repo@v1"] {
        let error = hub.remove(&part.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("give org/repo to delete all of it"), "{error}");
    }
    hub.remove(&"org/repo".parse().unwrap()).unwrap();
    assert!(hub.list().unwrap().is_empty());
}

#[test]
fn local_paths_are_taken_as_they_are() {
    let (fake, folder) = (FakeHub::start(GGUFS), TempDir::new().unwrap());
    let hub = fake.client(folder.path());
    let model = folder.path().join("tiny.Q4_0.gguf");
    std::fs::write(&model, b"GGUF").unwrap();
    let resolved = hub.resolve(&ModelReference::Path(model.clone())).unwrap();
    assert_eq!((resolved.path, resolved.name.as_str()), (model, "tiny.Q4_0"));
    let error = resolve(&hub, folder.path().to_str().unwrap()).unwrap_err();
    assert!(matches!(error, HubError::NotAModelFolder { .. }), "{error}");
    std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
    assert!(resolve(&hub, folder.path().to_str().unwrap()).is_ok());
    assert!(fake.hub.asked().is_empty());
}
