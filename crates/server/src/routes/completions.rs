//! `POST /v1/completions`.

use crate::{
    body,
    choice::Piece,
    event_body::{self, Frames},
    generate::{Job, Sequences, TIMEOUT_HEADER, deadline},
    logprobs::{self, Spelling},
    prompt::Encode,
    record::{Record, random_id},
    reply::{self, Refusal},
    routes::chat::{SYSTEM_FINGERPRINT, unfinished},
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
    CompletionChoice, CompletionChunk, CompletionChunkChoice, CompletionLogprobs, CompletionRequest,
    CompletionResponse, Prompt, StreamOptions, Usage, sse,
};
use powertrain_step::TokenId;
use std::sync::Arc;

/// Tokens generated when the request does not say, as with OpenAI.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// Answers, at once or as a stream.
pub(crate) async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, Refusal> {
    app.accepts()?;
    let deadline = deadline(request.headers().get(TIMEOUT_HEADER), app.config.request_timeout, record.arrived())?;
    let request = CompletionRequest::parse(&body::read(request, app.config.request_bytes_max).await?)?;
    let model = app.resolve_model(request.generation.model.as_deref())?;
    let CompletionRequest { prompts: texts, generation, logprobs, echo, add_special_tokens } = request;
    let prompts = app.encode_prompts(&texts, add_special_tokens).await?;
    let echo_logprobs = logprobs.filter(|_| echo);
    let id = format!("cmpl-{}", random_id());
    let job = Job {
        id: &id,
        prompts: &prompts,
        fields: &generation,
        logprobs,
        prompt_logprobs: generation.prompt_logprobs.max(echo_logprobs),
        max_tokens_default: MAX_TOKENS_DEFAULT,
        deadline,
    };
    let sequences = job.start(&app, &record).await?;
    let show_special = !generation.skip_special_tokens;
    let echoed = texts.into_iter().map(|text| match text {
        Prompt::Text(text) => text,
        Prompt::Tokens(ids) => app.model.tokenizer.decode(&ids, show_special),
    });
    let answer = Answer {
        id,
        created: unix_seconds(),
        model,
        tally: Tally::new(&prompts, generation.n),
        echoed: if echo { echoed.collect() } else { Vec::new() },
        prompts,
        n: generation.n,
        logprobs,
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
    prompts: Vec<Arc<[TokenId]>>,
    n: u32,
    /// The prompts' texts, with `echo`; else empty.
    echoed: Vec<String>,
    /// Alternatives to tell.
    logprobs: Option<u8>,
    /// Those of `prompt_logprobs`; the engine was asked for the more of both.
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

    fn prompt_of(&self, index: usize) -> usize {
        index / self.n as usize
    }

    /// The whole answer at once.
    async fn collect(mut self, mut sequences: Sequences) -> Result<Response, Refusal> {
        let mut wholes: Vec<Piece> = (0..self.choices()).map(|_| Piece::default()).collect();
        while let Some(Progress { index, generated, cached, piece }) = sequences.next().await {
            self.tally.note(index, generated, cached);
            wholes[index as usize].append(piece?);
        }
        let mut choices = Vec::with_capacity(wholes.len());
        for index in 0..wholes.len() {
            choices.push(self.choice(index, &wholes)?);
        }
        Ok(reply::json(&CompletionResponse {
            object: "text_completion",
            created: self.created,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage: self.tally.total(),
            id: self.id,
            model: self.model,
        }))
    }

    fn choice(&self, index: usize, wholes: &[Piece]) -> Result<CompletionChoice, Refusal> {
        let (whole, prompt) = (&wholes[index], self.prompt_of(index));
        let end = whole.end.clone().ok_or_else(unfinished)?;
        // The prompt's were asked for once, with its first choice.
        let of_prompt = &wholes[prompt * self.n as usize].prompt_logprobs;
        let echoed = self.echoed.get(prompt);
        let logprobs = self.logprobs.map(|alternatives| {
            let mut before = 0;
            let mut lists = CompletionLogprobs::default();
            if let Some(echoed) = echoed {
                before = echoed.chars().count() as u32;
                lists = self.spelling().echo(echoed, &self.prompts[prompt], of_prompt, alternatives);
            }
            logprobs::extend(&mut lists, self.spelling().completion(whole, before, alternatives));
            lists
        });
        Ok(CompletionChoice {
            index: index as u32,
            text: echoed.map_or_else(|| whole.text.clone(), |echoed| format!("{echoed}{}", whole.text)),
            logprobs,
            finish_reason: end.finish,
            stop_reason: end.stop_reason,
            token_ids: self.token_ids.then(|| whole.tokens.clone()),
            prompt_token_ids: self.token_ids.then(|| self.prompts[prompt].to_vec()),
            prompt_logprobs: self.prompt_logprobs.map(|alternatives| self.spelling().prompt(of_prompt, alternatives)),
        })
    }

    fn write(&self, choices: &[CompletionChunkChoice<'_>], usage: Option<Usage>, out: &mut Vec<u8>) {
        let usage = usage.map(Some).or(self.options.include_usage.then_some(None));
        sse::write_data(
            out,
            &CompletionChunk {
                id: &self.id,
                object: "text_completion",
                created: self.created,
                model: &self.model,
                system_fingerprint: SYSTEM_FINGERPRINT,
                choices,
                usage,
            },
        );
    }

    fn running_usage(&self, index: u32) -> Option<Usage> {
        self.options.continuous_usage_stats.then(|| self.tally.choice(index))
    }
}

impl Frames for Answer {
    fn choices(&self) -> u32 {
        self.prompts.len() as u32 * self.n
    }

    fn open(&mut self, index: u32, out: &mut Vec<u8>) {
        if self.echoed.is_empty() && !self.token_ids {
            return;
        }
        let prompt = self.prompt_of(index as usize);
        let mut opening = chunk(index, self.echoed.get(prompt).map_or("", String::as_str));
        opening.prompt_token_ids = self.token_ids.then_some(&*self.prompts[prompt]);
        self.write(&[opening], self.running_usage(index), out);
    }

    fn piece(&mut self, progress: Progress, out: &mut Vec<u8>) {
        let Progress { index, generated, cached, piece } = progress;
        let Ok(piece) = piece else { return };
        self.tally.note(index, generated, cached);
        // An echo is not before them: with log-probabilities it is not available as a stream.
        let asked = self.logprobs.filter(|_| !piece.logprobs.is_empty());
        let logprobs = asked.map(|alternatives| self.spelling().completion(&piece, 0, alternatives));
        let (finish_reason, stop_reason) = match piece.end {
            Some(end) => (Some(end.finish), end.stop_reason),
            None => (None, None),
        };
        let last = CompletionChunkChoice {
            logprobs,
            finish_reason,
            stop_reason,
            token_ids: (self.token_ids && !piece.tokens.is_empty()).then_some(&piece.tokens),
            ..chunk(index, &piece.text)
        };
        self.write(&[last], self.running_usage(index), out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.options.include_usage {
            self.write(&[], Some(self.tally.total()), out);
        }
    }
}

fn chunk(index: u32, text: &str) -> CompletionChunkChoice<'_> {
    CompletionChunkChoice {
        index,
        text,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
        prompt_token_ids: None,
    }
}
