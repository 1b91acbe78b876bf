//! `POST /v1/chat/completions`.

use crate::{
    body,
    choice::Piece,
    event_body::{self, Frames},
    generate::{Job, Sequences, TIMEOUT_HEADER, deadline},
    logprobs::Spelling,
    prompt::{ChatPrompt, Encode},
    record::{Record, random_id},
    reply::{self, Refusal},
    sequence::Progress,
    state::{App, unix_seconds},
    tally::Tally,
};
use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use futures_util::StreamExt;
use powertrain_protocol::{
    ApiError, AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatRequest, ChatResponse,
    StreamOptions, Usage, WireFinishReason, sse,
};
use powertrain_step::TokenId;
use std::sync::Arc;

/// Answers, at once or as a stream.
pub(crate) async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, Refusal> {
    app.accepts()?;
    let deadline = deadline(request.headers().get(TIMEOUT_HEADER), app.config.request_timeout, record.arrived())?;
    let body = body::read(request, app.config.request_bytes_max).await?;
    let request = ChatRequest::parse(&body)?;
    let model = app.resolve_model(request.generation.model.as_deref())?;
    let ChatRequest { messages, generation, logprobs, .. } = request;
    let prompt = ChatPrompt {
        messages,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        chat_template_kwargs: request.chat_template_kwargs,
        add_special_tokens: request.add_special_tokens,
        bytes: body.len(),
    };
    drop(body);
    let prompts = [app.encode_chat(prompt).await?];
    let id = format!("chatcmpl-{}", random_id());
    let job = Job {
        id: &id,
        prompts: &prompts,
        fields: &generation,
        logprobs,
        prompt_logprobs: generation.prompt_logprobs,
        max_tokens_default: u32::MAX,
        deadline,
    };
    let sequences = job.start(&app, &record).await?;
    let [prompt] = prompts;
    let answer = Answer {
        id,
        created: unix_seconds(),
        model,
        tally: Tally::new(std::slice::from_ref(&prompt), generation.n),
        prompt,
        n: generation.n,
        logprobs: logprobs.is_some(),
        prompt_logprobs: generation.prompt_logprobs,
        token_ids: generation.return_token_ids,
        as_ids: generation.return_tokens_as_token_ids,
        options: generation.stream_options,
        app,
    };
    if generation.stream { Ok(event_body::respond(sequences, answer, record)) } else { answer.collect(sequences).await }
}

/// What is the same in all parts of an answer.
struct Answer {
    app: App,
    id: String,
    created: u64,
    model: String,
    prompt: Arc<[TokenId]>,
    n: u32,
    logprobs: bool,
    prompt_logprobs: Option<u8>,
    token_ids: bool,
    as_ids: bool,
    options: StreamOptions,
    tally: Tally,
}

impl Answer {
    fn spelling(&self) -> Spelling<'_> {
        Spelling { tokenizer: &self.app.model.tokenizer, as_ids: self.as_ids }
    }

    /// The whole answer at once.
    async fn collect(mut self, mut sequences: Sequences) -> Result<Response, Refusal> {
        let mut wholes: Vec<Piece> = (0..self.n).map(|_| Piece::default()).collect();
        while let Some(Progress { index, generated, cached, piece }) = sequences.next().await {
            self.tally.note(index, generated, cached);
            wholes[index as usize].append(piece?);
        }
        let spelling = self.spelling();
        let of_prompt = self.prompt_logprobs.zip(wholes.first());
        let prompt_logprobs =
            of_prompt.map(|(alternatives, first)| spelling.prompt(&first.prompt_logprobs, alternatives));
        let mut choices = Vec::with_capacity(wholes.len());
        for (index, whole) in (0..).zip(wholes) {
            let end = whole.end.ok_or_else(unfinished)?;
            choices.push(ChatChoice {
                index,
                logprobs: self.logprobs.then(|| spelling.chat(&whole.logprobs)),
                message: AssistantMessage { role: "assistant", content: whole.text, refusal: None },
                finish_reason: end.finish,
                stop_reason: end.stop_reason,
                token_ids: self.token_ids.then_some(whole.tokens),
            });
        }
        Ok(reply::json(&ChatResponse {
            object: "chat.completion",
            created: self.created,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage: self.tally.total(),
            prompt_logprobs,
            prompt_token_ids: self.token_ids.then(|| self.prompt.to_vec()),
            id: self.id,
            model: self.model,
        }))
    }

    fn write(&self, choices: &[ChatChunkChoice<'_>], usage: Option<Usage>, with_prompt: bool, out: &mut Vec<u8>) {
        let usage = usage.map(Some).or(self.options.include_usage.then_some(None));
        sse::write_data(
            out,
            &ChatChunk {
                id: &self.id,
                object: "chat.completion.chunk",
                created: self.created,
                model: &self.model,
                system_fingerprint: SYSTEM_FINGERPRINT,
                choices,
                usage,
                prompt_token_ids: (with_prompt && self.token_ids).then_some(&*self.prompt),
            },
        );
    }

    fn running_usage(&self, index: u32) -> Option<Usage> {
        self.options.continuous_usage_stats.then(|| self.tally.choice(index))
    }
}

impl Frames for Answer {
    fn choices(&self) -> u32 {
        self.n
    }

    fn open(&mut self, index: u32, out: &mut Vec<u8>) {
        let delta = ChatDelta { role: Some("assistant"), content: Some("") };
        self.write(&[chunk(index, delta)], self.running_usage(index), true, out);
    }

    fn piece(&mut self, progress: Progress, out: &mut Vec<u8>) {
        let Progress { index, generated, cached, piece } = progress;
        let Ok(piece) = piece else { return };
        self.tally.note(index, generated, cached);
        let usage = self.running_usage(index);
        let logprobs = (self.logprobs && !piece.logprobs.is_empty()).then(|| self.spelling().chat(&piece.logprobs));
        let mut rest = ChatChunkChoice {
            logprobs,
            token_ids: (self.token_ids && !piece.tokens.is_empty()).then_some(&piece.tokens),
            ..chunk(index, ChatDelta::default())
        };
        if !piece.text.is_empty() {
            rest.delta.content = Some(&piece.text);
            self.write(&[std::mem::replace(&mut rest, chunk(index, ChatDelta::default()))], usage, false, out);
        }
        if let Some(end) = piece.end {
            let finish_reason: Option<WireFinishReason> = Some(end.finish);
            self.write(&[ChatChunkChoice { finish_reason, stop_reason: end.stop_reason, ..rest }], usage, false, out);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.options.include_usage {
            self.write(&[], Some(self.tally.total()), false, out);
        }
    }
}

fn chunk(index: u32, delta: ChatDelta<'_>) -> ChatChunkChoice<'_> {
    ChatChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None }
}

/// Equal for servers that give equal answers to equal seeds.
pub(crate) const SYSTEM_FINGERPRINT: &str = concat!("powertrain-", env!("CARGO_PKG_VERSION"));

/// The engine ends every sequence itself; if it did not, it is broken.
pub(crate) fn unfinished() -> ApiError {
    ApiError::Engine("the engine left a sequence without an end".to_owned())
}
