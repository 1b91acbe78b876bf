//! Servers that die, hang or hide behind TLS: the result is still right and says so.

use super::{
    Script, TruthServer,
    cases::{chat, target, work},
    errors::{Errors, OneClock},
    tests::{FOREVER, closed, start, summary, threads},
};
use crate::{
    Clock, LevelRun, Stop,
    exchange::Target,
    http::{Connector, Limits, Trust},
    run_level,
};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpStream, runtime::Builder};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

#[test]
fn a_server_that_is_killed_leaves_cut_off_and_refused_requests() {
    let server = start(Script { stall: Some((2, FOREVER)), ..Script::default() });
    let target = Arc::new(target(&chat(server.address()).unwrap(), server.clock()).unwrap());
    let run = std::thread::scope(|scope| {
        let shared = &target;
        let run =
            scope.spawn(move || run_level(shared, &Arc::new(work()), closed(3, 20), threads(1), &Stop::new()).unwrap());
        while target.live.counts().chunks < 6 {
            std::thread::yield_now();
        }
        drop(server);
        run.join().unwrap()
    });
    let summary = summary(&run);
    assert_eq!((summary.requests.sent, summary.requests.cut_off, summary.requests.failed), (20, 3, 17));
    // Its port may be open a moment longer than its connections.
    let (closed, refused) = (summary.failures["closed"].count, summary.failures["refused"].count);
    assert!(closed >= 3 && refused > 0 && closed + refused == 20, "{closed} {refused}");
    assert!(summary.latency.is_empty(), "nothing completed");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let server = start(Script { stall: Some((0, FOREVER)), role_first: false, ..Script::default() });
    let mut target = target(&chat(server.address()).unwrap(), server.clock()).unwrap();
    target.timeout = Duration::from_millis(100);
    let run = run_level(&Arc::new(target), &Arc::new(work()), closed(2, 4), threads(1), &Stop::new()).unwrap();
    let summary = summary(&run);
    assert_eq!((summary.requests.sent, summary.requests.failed, summary.failures["timed_out"].count), (4, 4, 4));
}

/// A TLS server before the ground-truth server, and the file of its certificate.
struct Relay {
    address: SocketAddr,
    authority: tempfile::NamedTempFile,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    fn start(behind: SocketAddr) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let authority = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(authority.path(), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut front) = acceptor.accept(stream).await else { return };
                    let mut back = TcpStream::connect(behind).await.unwrap();
                    // Whoever hangs up ends it.
                    _ = tokio::io::copy_bidirectional(&mut front, &mut back).await;
                });
            }
        });
        Self { address, authority, _runtime: runtime }
    }

    fn target(&self, trust: Trust, clock: Clock) -> Result<Target, String> {
        let mut target = target(&chat(self.address).unwrap(), clock).unwrap();
        target.url = format!("https://{}/v1/chat/completions", self.address).parse().unwrap();
        let limits = Limits { connect: Duration::from_secs(10), trust };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        target.connector = runtime.block_on(Connector::new(&target.url, &limits)).map_err(|failure| failure.message)?;
        Ok(target)
    }

    fn run(&self, trust: Trust, server: &TruthServer) -> LevelRun {
        let target = self.target(trust, server.clock()).unwrap();
        run_level(&Arc::new(target), &Arc::new(work()), closed(2, 8), threads(1), &Stop::new()).unwrap()
    }
}

#[test]
fn tls_is_measured_as_plain_http_is() {
    for write_bytes in [None, Some(7)] {
        let server = start(Script { write_bytes, ..Script::default() });
        let relay = Relay::start(server.address());
        let run = relay.run(Trust::Authorities(relay.authority.path().to_owned()), &server);
        let summary = summary(&run);
        assert_eq!((summary.requests.completed, summary.chunks.count), (8, 32));
        let errors = Errors::of(&run.records, &work(), &server.truths(), OneClock::Yes);
        assert_eq!((errors.unmatched, errors.before_written), (0, 0), "writes of {write_bytes:?}");
    }
}

#[test]
fn certificates_nobody_vouches_for_are_believed_on_request_only() {
    let server = start(Script::default());
    let relay = Relay::start(server.address());
    let refused = summary(&relay.run(Trust::Machine, &server));
    assert_eq!((refused.requests.failed, refused.failures["tls"].count), (8, 8));
    assert!(refused.failures["tls"].example.contains("certificate"), "{:?}", refused.failures);
    assert_eq!(summary(&relay.run(Trust::Anyone, &server)).requests.completed, 8);
    let absent = Trust::Authorities(Path::new("nowhere.pem").to_owned());
    assert!(relay.target(absent, server.clock()).err().unwrap().contains("nowhere.pem"));
    let empty = tempfile::NamedTempFile::new().unwrap();
    let error = relay.target(Trust::Authorities(empty.path().to_owned()), server.clock()).err().unwrap();
    assert!(error.contains("no usable certificate"), "{error}");
}
