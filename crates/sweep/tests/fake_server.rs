//! Sweeps over a server that behaves as its environment says: this test's own program, started again.

use powertrain_load::Stop;
use powertrain_sweep::{
    Event, Folder, FolderError, Matrix, Options, Source, Turns, Workload,
    failure::FailureKind,
    interleave, proposal,
    server::Server,
    sweep,
    table::{Row, Table},
    tune::{Search, tune},
};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

/// Requests that the server which dies answers.
const ANSWERED_BEFORE_DEATH: u32 = 25;

/// Not a test but the server: does nothing unless it was started as one.
#[test]
fn fake_server() {
    let say = |line: &str| writeln!(std::io::stdout(), "{line}").unwrap();
    let (Ok(mode), Ok(port)) = (env::var("FAKE_SERVER_MODE"), env::var("FAKE_SERVER_PORT")) else { return };
    match mode.as_str() {
        "fails" => {
            eprintln!("error: no such model");
            std::process::exit(3);
        }
        "memory" => {
            say("Model loading took 14.99 GiB memory and 2.8 seconds");
            say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.");
            std::process::exit(1);
        }
        "hangs" => loop {
            thread::park();
        },
        _ => {}
    }
    say("Available KV cache memory: 2.50 GiB");
    say("GPU KV cache size: 40,960 tokens");
    say("Maximum concurrency for 4,096 tokens per request: 10.00x");
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
    static ANSWERED: AtomicU32 = AtomicU32::new(0);
    for stream in listener.incoming().flatten() {
        // Small writes must not wait for acknowledgements.
        stream.set_nodelay(true).unwrap();
        let mode = mode.clone();
        thread::spawn(move || {
            let gap = Duration::from_millis(if mode == "slow" { 40 } else { 1 });
            let tokens = if mode == "brief" { 1 } else { 4 };
            while let Some(generates) = answer(&stream, gap, tokens) {
                if generates && ANSWERED.fetch_add(1, Ordering::Relaxed) >= ANSWERED_BEFORE_DEATH && mode == "dies" {
                    eprintln!("fatal: an illegal memory access was encountered");
                    std::process::abort();
                }
            }
        });
    }
}

/// Answers one request of a connection; whether it generated. None at its end.
fn answer(stream: &TcpStream, gap: Duration, tokens: u32) -> Option<bool> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|&bytes| bytes > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8_lossy(&body);
    let mut out = stream;
    let mut plain = |status: &str, body: &str| {
        write!(out, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).ok()
    };
    if first.starts_with("GET /health") {
        return plain("200 OK", "").map(|()| false);
    }
    if first.starts_with("GET /v1/models") {
        return plain("200 OK", r#"{"data": [{"id": "fake"}]}"#).map(|()| false);
    }
    if !first.starts_with("POST /v1/chat/completions") {
        return plain("404 Not Found", "{}").map(|()| false);
    }
    // One token a word; a thing a real server would take longer for.
    let prompt = body.split("\"content\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("");
    let words = prompt.split_whitespace().count();
    let usage = format!(r#""usage":{{"prompt_tokens":{words},"completion_tokens":{tokens}}}"#);
    if !body.contains("\"stream\":true") {
        let answer = format!(r#"{{"choices":[{{"message":{{"content":"a"}},"finish_reason":"length"}}],{usage}}}"#);
        return plain("200 OK", &answer).map(|()| true);
    }
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").ok()?;
    let mut event = |text: &str| {
        let text = format!("data: {text}\n\n");
        write!(out, "{:x}\r\n{text}\r\n", text.len()).ok()
    };
    for _ in 0..tokens {
        thread::sleep(gap);
        event(r#"{"choices":[{"delta":{"content":"a"}}]}"#)?;
    }
    event(&format!(r#"{{"choices":[{{"delta":{{}},"finish_reason":"length"}}],{usage}}}"#))?;
    event("[DONE]")?;
    write!(out, "0\r\n\r\n").ok()?;
    Some(true)
}

/// A matrix over these modes.
fn matrix(folder: &Path, modes: &[&str], more: &str) -> Matrix {
    let program = env::current_exe().unwrap();
    let text = format!(
        "warmup_requests = 2\n{more}
         [[server]]
         name = 'fake'
         command = ['{}', 'fake_server', '--exact', '--nocapture']
         env = {{ FAKE_SERVER_MODE = '{{mode}}', FAKE_SERVER_PORT = '{{port}}' }}
         ready_timeout_s = 20
         stop_timeout_s = 5
         parameters = {{ mode = {modes:?} }}
         [[workload]]
         name = 'chat'
         concurrency = [1, 4]
         num_requests = 12
         input_tokens = '5'
         output_tokens = '4'
         timeout_s = 20\n",
        program.display(),
    );
    let path = folder.join("matrix.toml");
    fs::write(&path, text).unwrap();
    Matrix::open(&path).unwrap()
}

/// Sweeps and says which configurations were started.
fn started(matrix: &Matrix, folder: &Folder, options: &Options) -> Vec<String> {
    let mut started = Vec::new();
    sweep(matrix, folder, options, &Stop::new(), &mut |event| {
        if let Event::Starting { configuration, .. } = event {
            started.push(configuration.name.clone());
        }
    })
    .unwrap();
    started
}

fn row<'a>(table: &'a Table, mode: &str) -> &'a Row {
    table.rows.iter().find(|row| row.parameters[0].1 == mode).unwrap_or_else(|| panic!("no row of {mode}"))
}

#[test]
fn what_fails_is_recorded_and_the_rest_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = matrix(folder.path(), &["fast", "fails", "memory", "dies", "slow"], "");
    let kept = Folder::open(&folder.path().join("results")).unwrap();
    assert_eq!(started(&matrix, &kept, &Options::default()).len(), 5);
    let table = Table::read(&matrix, &kept).unwrap();
    let fast = row(&table, "fast");
    assert_eq!(
        (fast.startup.kv_gib, fast.startup.kv_tokens, fast.startup.max_concurrency),
        (Some(2.5), Some(40_960), Some(10.0))
    );
    assert_eq!(fast.numbers.as_ref().unwrap().completed, 12);
    assert_eq!(table.rows.iter().filter(|row| row.parameters[0].1 == "fast").count(), 2);
    for (mode, kind, said) in [
        ("fails", FailureKind::Ended, "no such model"),
        ("memory", FailureKind::OutOfMemory, "CUDA out of memory"),
        ("dies", FailureKind::Died, "illegal memory access"),
    ] {
        let failure = row(&table, mode).failure.as_ref().unwrap_or_else(|| panic!("{mode} did not fail"));
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.log_tail.iter().any(|line| line.contains(said)), "{failure:?}");
    }
    let text = table.markdown();
    assert!(text.contains("out of memory: ended with code 1") && text.contains("died while measured"), "{text}");
    assert!(table.csv().lines().next().unwrap().starts_with("server,mode,weights_gib,kv_gib"));

    // Only what was measured whole is proposed, and the slow one is neither.
    let proposals = proposal::proposals(&matrix, &table);
    assert_eq!(proposals.iter().map(|found| found.configuration.as_str()).collect::<Vec<_>>(), ["fake/mode=fast"; 2]);
    assert!(
        proposals[0].because.iter().any(|line| line.contains("3 of 5 configurations were not eligible")),
        "{proposals:?}"
    );
    let configurations = matrix.configurations().unwrap();
    let files = proposal::files(&matrix, &configurations[0], &proposals[0].because).unwrap();
    let path = folder.path().join("latency.toml");
    fs::write(&path, &files.toml).unwrap();
    let again = Matrix::open(&path).unwrap().configurations().unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].launch(7).words, configurations[0].launch(7).words);
    assert!(files.shell.contains("FAKE_SERVER_MODE=fast"), "{}", files.shell);

    // Everything is finished: nothing is started again, unless the failures are to be.
    assert!(started(&matrix, &kept, &Options::default()).is_empty());
    let retry = Options { retry_failed: true, ..Options::default() };
    assert_eq!(started(&matrix, &kept, &retry).len(), 3);
}

#[test]
fn an_interrupted_sweep_goes_on_and_a_changed_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let before = matrix(folder.path(), &["fast", "slow"], "");
    let kept = Folder::open(&folder.path().join("results")).unwrap();
    // Interrupted while the second configuration is measured.
    let stop = Stop::new();
    sweep(&before, &kept, &Options::default(), &stop, &mut |event| {
        if let Event::Cell(cell) = event
            && cell.configuration.name.contains("slow")
        {
            stop.request();
        }
    })
    .unwrap();
    assert_eq!(Table::read(&before, &kept).unwrap().rows.iter().filter(|row| row.numbers.is_some()).count(), 2);
    assert_eq!(started(&before, &kept, &Options::default()), ["fake/mode=slow"]);
    assert!(Table::read(&before, &kept).unwrap().rows.iter().all(|row| row.numbers.is_some()));

    // A second sweep in the same folder is refused while the first has it.
    assert!(matches!(Folder::open(&folder.path().join("results")), Err(FolderError::Locked(_))));

    // The same names, measured under other objectives: not mixed.
    let after = matrix(folder.path(), &["fast", "slow"], "objectives = { ttft_ms = 1000 }\n");
    let refused = sweep(&after, &kept, &Options::default(), &Stop::new(), &mut |_| {}).unwrap_err().to_string();
    assert!(refused.contains("the matrix has changed") && refused.contains("--redo-changed"), "{refused}");
    let redo = Options { redo_changed: true, ..Options::default() };
    assert_eq!(started(&after, &kept, &redo).len(), 2);
    // More values keep what is finished.
    let more = matrix(folder.path(), &["fast", "slow", "other"], "objectives = { ttft_ms = 1000 }\n");
    assert_eq!(started(&more, &kept, &Options::default()), ["fake/mode=other"]);
    let good = row(&Table::read(&more, &kept).unwrap(), "other").numbers.clone().unwrap();
    assert_eq!(good.good_share, Some(1.0));
}

#[test]
fn what_answers_in_fewer_tokens_is_not_proposed_for_being_faster() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = matrix(folder.path(), &["brief", "slow"], "objectives = { e2e_ms = 60000 }\n");
    let kept = Folder::open(&folder.path().join("results")).unwrap();
    started(&matrix, &kept, &Options::default());
    let table = Table::read(&matrix, &kept).unwrap();
    let numbers = |mode| row(&table, mode).numbers.clone().unwrap();
    assert_eq!((numbers("brief").answer_tokens, numbers("brief").answer_share), (Some(1.0), Some(0.25)));
    // One chunk after a millisecond against four after 40 each: faster in all respects, and for one reason.
    assert!(numbers("brief").e2e_mean < numbers("slow").e2e_mean);
    for proposal in proposal::proposals(&matrix, &table) {
        assert_eq!(proposal.configuration, "fake/mode=slow", "{proposal:?}");
        let why = "Left out: fake/mode=brief: its answers at closed loop, ";
        let said = proposal.because.iter().find(|line| line.starts_with(why)).unwrap_or_else(|| panic!("{proposal:?}"));
        assert!(said.contains("have 1.0 tokens on average, 25 % of what was asked, where others give 100 %"), "{said}");
    }
    let search = Search { budget: Duration::from_secs(600), first_s: 0.3, seed: 1 };
    let tuning = tune(&matrix, search, &folder.path().join("tune"), &Stop::new(), &mut |_| {}).unwrap();
    assert_eq!(tuning.chosen.as_deref(), Some("fake/mode=slow"), "{tuning:?}");
    let brief = tuning.rounds[0].trials.iter().find(|trial| trial.configuration.ends_with("brief")).unwrap();
    assert!(brief.score > 0.0 && brief.left_out.as_ref().unwrap().contains("less work"), "{brief:?}");
}

#[test]
fn repeats_start_anew_to_and_fro() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = matrix(folder.path(), &["fast", "fails", "slow"], "repeats = 2\n");
    let kept = Folder::open(&folder.path().join("results")).unwrap();
    let names = started(&matrix, &kept, &Options::default());
    // What could not start the first time is not tried a second time.
    assert_eq!(names, ["fake/mode=fast", "fake/mode=fails", "fake/mode=slow", "fake/mode=slow", "fake/mode=fast"]);
    let numbers = row(&Table::read(&matrix, &kept).unwrap(), "fast").numbers.clone().unwrap();
    assert_eq!((numbers.repeats, numbers.completed), (2, 24));
    assert!(numbers.spread.is_some());
}

#[test]
fn a_server_that_hangs_is_given_up_and_nothing_of_it_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // Deaf to SIGTERM, with a child of its own.
    let script = "trap '' TERM; sleep 600 & echo child $!; wait";
    let plan = format!("name = 's'\ncommand = ['sh', '-c', \"{script}\"]\nready_timeout_s = 1.0\nstop_timeout_s = 0.2");
    let configuration =
        powertrain_sweep::Configuration::new(&toml::from_str(&plan).unwrap(), toml::Table::new()).unwrap();
    let port = powertrain_sweep::server::free_port().unwrap();
    let mut server = Server::start(configuration.launch(port), None, &log).unwrap();
    let failed = server.wait_ready(&Stop::new());
    let text = format!("{failed:?}");
    assert!(text.contains("TimedOut") && text.contains("ready_timeout_s"), "{text}");
    server.stop();
    let child = fs::read_to_string(&log).unwrap();
    let child = child.trim().strip_prefix("child ").unwrap().to_owned();
    // Gone by now, or dead and not yet collected by whoever inherited it.
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

#[test]
fn a_worker_that_outlives_its_leader_ends_in_its_own_time() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // The leader goes at once; its worker has something to do first.
    let worker = "trap 'n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; echo done; exit' TERM\necho up\nwhile :; do :; done\n";
    fs::write(folder.path().join("worker.sh"), worker).unwrap();
    let plan = format!(
        "name = 's'\ncommand = ['sh', '-c', 'sh {}/worker.sh & wait']\nstop_timeout_s = 60",
        folder.path().display()
    );
    let configuration =
        powertrain_sweep::Configuration::new(&toml::from_str(&plan).unwrap(), toml::Table::new()).unwrap();
    let port = powertrain_sweep::server::free_port().unwrap();
    let server = Server::start(configuration.launch(port), None, &log).unwrap();
    while !fs::read_to_string(&log).unwrap().contains("up") {
        thread::yield_now();
    }
    assert_eq!(server.stop(), None);
    assert_eq!(fs::read_to_string(&log).unwrap(), "up\ndone\n");
}

#[test]
fn a_program_that_is_not_there_and_a_taken_port_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let start = |command: &str, port: u16| {
        let plan = toml::from_str(&format!("name = 's'\ncommand = '{command}'")).unwrap();
        let configuration = powertrain_sweep::Configuration::new(&plan, toml::Table::new()).unwrap();
        Server::start(configuration.launch(port), None, &folder.path().join("log")).err().unwrap()
    };
    // Another test's connection may take a port that was free.
    let mut failures =
        std::iter::repeat_with(|| start("no-such-program --x", powertrain_sweep::server::free_port().unwrap()));
    let failure = failures.find(|failure| failure.kind != FailureKind::PortTaken).unwrap();
    assert_eq!(failure.kind, FailureKind::CannotRun);
    assert!(failure.reason.contains("no-such-program"));
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let failure = start("true", holder.local_addr().unwrap().port());
    assert_eq!(failure.kind, FailureKind::PortTaken);
    assert!(failure.reason.contains("cannot be used"));
}

#[test]
fn turns_are_taken_and_kept_in_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let source = |mode: &str| {
        matrix(folder.path(), &[mode], "");
        Source::open(&folder.path().join("matrix.toml")).unwrap()
    };
    let ((fast, workload, _), (slow, ..)) = (source("fast"), source("slow"));
    let turns =
        Turns { a: &fast, b: &slow, workload: &workload, limits: None, pairs: 2, warmup_requests: 1, command: &[] };
    let results = folder.path().join("results");
    // Stopped within a pair: nothing of it stays that would be taken for a result.
    let (stop, mut ready) = (Stop::new(), 0);
    let pairs = interleave(&turns, &results, &stop, &mut |_, event| {
        ready += u32::from(matches!(event, Event::Ready(_)));
        if ready == 2 {
            stop.request();
        }
    });
    assert_eq!((pairs.unwrap(), ready), (0, 2));
    let left = |side: &str| fs::read_dir(results.join(side)).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left("a").chain(left("b")).collect();
    assert_eq!(left, ["0.server.log", "0.server.log"]);
    let mut order = Vec::new();
    let pairs = interleave(&turns, &results, &Stop::new(), &mut |side, event| {
        if let Event::Ready(_) = event {
            order.push(side.name());
        }
    });
    assert_eq!((pairs.unwrap(), order.join(" ")), (2, "A B B A".to_owned()));
    for file in ["a/0.json", "a/1.json", "b/0.json", "b/1.events.jsonl"] {
        assert!(results.join(file).exists(), "{file}");
    }
    // What is there is not mixed with what comes.
    assert!(interleave(&turns, &results, &Stop::new(), &mut |_, _| {}).unwrap_err().to_string().contains("--output"));
    matrix(folder.path(), &["fast", "slow"], "");
    let several = Source::open(&folder.path().join("matrix.toml")).unwrap_err().to_string();
    assert!(several.contains("2 configurations"), "{several}");
}

#[test]
fn tuning_drops_what_fails_and_what_is_slow() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = matrix(folder.path(), &["slow", "fails", "fast"], "objectives = { e2e_ms = 60000 }\n");
    let search = Search { budget: Duration::from_secs(600), first_s: 0.3, seed: 1 };
    let tuning = tune(&matrix, search, folder.path(), &Stop::new(), &mut |_| {}).unwrap();
    assert_eq!(tuning.chosen.as_deref(), Some("fake/mode=fast"), "{tuning:?}");
    assert!(tuning.met);
    assert_eq!(tuning.rounds[0].trials.len(), 3);
    assert_eq!(tuning.rounds[0].trials[2].failure.as_ref().unwrap().kind, FailureKind::Ended);
    assert_eq!(tuning.rounds[1].trials.len(), 2);
    assert!(tuning.rounds[1].seconds > tuning.rounds[0].seconds);
    assert!(folder.path().join("round-1/fake/mode=fast/chat.json").exists());

    // Nothing to spend: the first is tried, and why it ended is said.
    let search = Search { budget: Duration::ZERO, ..search };
    let tuning = tune(&matrix, search, folder.path(), &Stop::new(), &mut |_| {}).unwrap();
    assert_eq!(tuning.rounds[0].untried.len(), 2);
    assert_eq!(tuning.rounds.len(), 1);
    assert!(!tuning.stopped_because.contains("is left"), "{}", tuning.stopped_because);

    // A limit that nothing meets is said, too.
    let strict = matrix_with_limit(folder.path());
    let search = Search { budget: Duration::from_secs(600), first_s: 0.2, seed: 1 };
    let tuning = tune(&strict, search, folder.path(), &Stop::new(), &mut |_| {}).unwrap();
    assert!(!tuning.met && tuning.chosen.is_some(), "{tuning:?}");
    assert!(tuning.stopped_because.contains("one configuration"));
}

fn matrix_with_limit(folder: &Path) -> Matrix {
    matrix(folder, &["slow"], "objectives = { ttft_ms = 0.001 }\n")
}

#[test]
fn workloads_say_what_is_wrong() {
    let check = |text: &str, expected: &str| {
        let workload: Workload = toml::from_str(text).unwrap();
        let error = workload.check(None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("name = 'w'", "concurrency = [clients");
    check("name = 'w'\nconcurrency = [8, 1, 8]", "8 is there twice");
    check("name = 'a/b'\nconcurrency = [1]", "letters, digits");
    check("name = 'w'\nconcurrency = [0]", "1 to 100000");
    check("name = 'w'\nconcurrency = [1]\ninput_tokens = 'x'", "input_tokens = x");
    check("name = 'w'\nconcurrency = [1]\nendpoint = 'tea'", "chat or completions");
}

#[test]
fn the_examples_of_the_documentation_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    for (file, configurations) in
        [("powertrain-cpu.toml", 6), ("vllm.toml", 24), ("vllm-cpu.toml", 2), ("llama.cpp.toml", 6)]
    {
        let matrix = Matrix::open(&folder.join(file)).unwrap();
        assert_eq!(matrix.configurations().unwrap().len(), configurations, "{file}");
    }
}
