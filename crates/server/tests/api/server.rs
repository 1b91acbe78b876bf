//! Starts a server on a mock engine.

use crate::client::{Answer, Client};
use powertrain_engine::{Drained, Engine, EngineConfig, Handle};
use powertrain_server::{LoadStage, ModelFacts, SamplingDefaults, ServedModel, Server, ServerConfig};
use powertrain_step::{
    StepLimits, TokenId,
    mock::{Gate, MockExecutor, expected_tokens},
};
use powertrain_text::{ChatTemplate, ChatTemplateSources, GgufVocabulary, Tokenizer};
use serde_json::{Value, json};
use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{sync::oneshot, task::JoinHandle};

/// Ids below this are one printable ASCII character each; only they are generated.
pub(crate) const PRINTABLE: u32 = 95;
/// Control tokens come after the 256 bytes.
pub(crate) const IM_START: TokenId = 256;
pub(crate) const IM_END: TokenId = 257;
pub(crate) const VOCAB_SIZE: u32 = 260;
pub(crate) const KV_BLOCKS: u32 = 512;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role + '\\n' + message.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What a test wants otherwise.
pub(crate) struct Setup {
    pub(crate) config: ServerConfig,
    pub(crate) max_num_seqs: u32,
    pub(crate) max_queue: u32,
    pub(crate) max_model_len: u32,
    pub(crate) gated: bool,
    pub(crate) step_timeout: Option<Duration>,
    pub(crate) template: bool,
    pub(crate) executor: fn(MockExecutor) -> MockExecutor,
}

impl Default for Setup {
    fn default() -> Self {
        let config = ServerConfig {
            port: 0,
            served_model_names: vec!["toy".into(), "org/toy".into()],
            shutdown_timeout: Duration::from_secs(60),
            ..ServerConfig::default()
        };
        Self {
            config,
            max_num_seqs: 16,
            max_queue: 256,
            max_model_len: 2048,
            gated: false,
            step_timeout: None,
            template: true,
            executor: |executor| executor,
        }
    }
}

/// A server at work.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Handle,
    pub(crate) gate: Option<Gate>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<Drained>,
}

impl Setup {
    pub(crate) async fn start(self) -> Running {
        let limits = StepLimits {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: 256,
            max_model_len: self.max_model_len,
            block_size: 16,
        };
        let executor = (self.executor)(MockExecutor::new(limits, KV_BLOCKS, 2, PRINTABLE));
        let (executor, gate) = if self.gated {
            let (executor, gate) = executor.gated();
            (executor, Some(gate))
        } else {
            (executor, None)
        };
        let config = EngineConfig {
            limits,
            max_queue: self.max_queue,
            prefix_caching: true,
            async_scheduling: true,
            pace_prompts: true,
            vocab_size: VOCAB_SIZE,
            stall_timeout: Duration::from_secs(600),
            step_timeout: self.step_timeout,
        };
        let engine = Engine::start(config, Box::new(executor)).expect("the engine starts");
        let tokenizer = Arc::new(toy_tokenizer());
        let sources = ChatTemplateSources { default: TEMPLATE.into(), tool_use: None };
        let model = ServedModel {
            template: self.template.then(|| Arc::new(ChatTemplate::new(&sources, &tokenizer).expect("compiles"))),
            tokenizer: Arc::clone(&tokenizer),
            eos_token_ids: vec![IM_END],
            vocab_size: VOCAB_SIZE,
            defaults: SamplingDefaults::default(),
            facts: ModelFacts {
                source: "toy.gguf".into(),
                architecture: "toy".into(),
                dtype: "none".into(),
                load_seconds: 0.5,
                load_stages: vec![LoadStage { name: "weights", seconds: 0.25 }],
                workspace_bytes: Some(4096),
            },
        };
        let server = Server::bind(self.config).await.expect("a free port");
        let address = server.local_addr().expect("bound");
        let (handle, (stop, stopped)) = (engine.handle(), oneshot::channel());
        let done = tokio::spawn(server.serve(model, engine, async {
            let _ = stopped.await;
        }));
        Running { address, engine: handle, gate, tokenizer, stop: Some(stop), done }
    }
}

impl Running {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One POST on a connection of its own.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.client().await.post(path, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.client().await.get(path).await
    }

    /// Lets one step after another complete until the future does.
    pub(crate) async fn stepping<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            let (gate, (blocked, door)) = (self.gate.clone().expect("gated"), oneshot::channel());
            // Not one of the runtime's threads: with nothing to run, nobody ever comes to the door.
            std::thread::spawn({
                let gate = gate.clone();
                move || {
                    gate.wait_until_blocked();
                    let _ = blocked.send(());
                }
            });
            tokio::select! {
                output = &mut future => return output,
                _ = door => gate.allow(1),
            }
        }
    }

    /// Sends the signal to stop.
    pub(crate) fn signal(&mut self) {
        drop(self.stop.take());
    }

    /// The end of the server.
    pub(crate) async fn ended(self) -> Drained {
        self.done.await.expect("serving does not panic")
    }

    /// The prompt of one user message.
    pub(crate) fn chat_ids(&self, content: &str) -> Vec<TokenId> {
        let prompt = format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n");
        self.ids(&prompt)
    }

    pub(crate) fn ids(&self, text: &str) -> Vec<TokenId> {
        use powertrain_text::{AddSpecial, ParseSpecial};
        self.tokenizer.encode(text, AddSpecial::No, ParseSpecial::Yes).expect("short")
    }

    /// What the mock generates after a prompt.
    pub(crate) fn expected(&self, prompt: &[TokenId], seed: u64, count: usize) -> String {
        self.tokenizer.decode(&expected_tokens(prompt, seed, PRINTABLE, count), false)
    }

    /// Waits until nothing runs or waits; then no block may be held.
    pub(crate) async fn assert_idle_and_whole(&self) {
        let mut client = self.client().await;
        loop {
            let now = client.get("/v1/engine").await.json()["now"].clone();
            if now["requests_running"] == 0 && now["requests_waiting"] == 0 {
                assert_eq!(now["kv_blocks_used"], 0, "a block leaked: {now}");
                assert_eq!(now["kv_blocks_total"], KV_BLOCKS);
                return;
            }
        }
    }
}

/// A chat body with one user message, a seed, and what else is given.
pub(crate) fn chat_body(content: &str, more: Value) -> Value {
    let mut body = json!({"model": "toy", "messages": [{"role": "user", "content": content}], "seed": 7});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// One token per byte, printable ones first, and the three of ChatML.
fn toy_tokenizer() -> Tokenizer {
    let printable = (b' '..=b'~').collect::<Vec<u8>>();
    let others = (0..=255).filter(|byte| !printable.contains(byte));
    let mut tokens: Vec<String> = printable.iter().copied().chain(others).map(byte_name).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>", "<|endoftext|>"].map(String::from));
    // A vocabulary of this kind has merges; this one is of two bytes that no test sends.
    let merge = format!("{} {}", byte_name(0), byte_name(1));
    tokens.push(merge.replace(' ', ""));
    let control = 3;
    let mut token_types = vec![1; 256];
    token_types.extend([control, control, control, 1]);
    Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
        model: "gpt2",
        pre: Some("smollm"),
        tokens: tokens.iter().map(String::as_str).collect(),
        merges: vec![&merge],
        scores: Vec::new(),
        token_types,
        bos: Some(IM_START),
        eos: Some(IM_END),
        end_of_turn: None,
        end_of_message: None,
        unknown: None,
        padding: None,
        add_bos: Some(false),
        add_eos: None,
        add_space_prefix: None,
    })
    .expect("a valid vocabulary")
}

/// GPT-2's name of a byte: itself where it is visible, else a letter from U+0100 on, in order.
fn byte_name(byte: u8) -> String {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = if visible(byte) {
        u32::from(byte)
    } else {
        0x100 + (0..byte).filter(|earlier| !visible(*earlier)).count() as u32
    };
    char::from_u32(code).expect("a letter").to_string()
}
