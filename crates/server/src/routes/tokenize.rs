//! `POST /tokenize` and `POST /detokenize`.

use crate::{
    body,
    logprobs::Spelling,
    prompt::{ChatPrompt, Encode},
    reply::{self, Refusal},
    state::App,
};
use axum::{
    extract::{Request, State},
    response::Response,
};
use powertrain_protocol::{
    ApiError, DetokenizeRequest, DetokenizeResponse, Prompt, TokenizeInput, TokenizeRequest, TokenizeResponse,
};

pub(crate) async fn encode(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let body = body::read(request, app.config.request_bytes_max).await?;
    let request = TokenizeRequest::parse(&body)?;
    app.resolve_model(request.model.as_deref())?;
    let add = request.add_special_tokens;
    let tokens = match request.input {
        TokenizeInput::Text(text) => {
            app.encode_prompts(&[Prompt::Text(text)], add.unwrap_or(true)).await?.swap_remove(0)
        }
        TokenizeInput::Chat { messages, add_generation_prompt, continue_final_message, chat_template_kwargs } => {
            let add_special_tokens = add.unwrap_or(false);
            let prompt = ChatPrompt {
                messages,
                add_generation_prompt,
                continue_final_message,
                chat_template_kwargs,
                add_special_tokens,
                bytes: body.len(),
            };
            app.encode_chat(prompt).await?
        }
    };
    let spelling = Spelling { tokenizer: &app.model.tokenizer, as_ids: false };
    let token_strs = request.return_token_strs.then(|| tokens.iter().map(|id| spelling.token(*id)).collect());
    Ok(reply::json(&TokenizeResponse {
        count: tokens.len(),
        max_model_len: app.report.max_model_len,
        tokens: tokens.to_vec(),
        token_strs,
    }))
}

pub(crate) async fn decode(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let request = DetokenizeRequest::parse(&body::read(request, app.config.request_bytes_max).await?)?;
    app.resolve_model(request.model.as_deref())?;
    if let Some(id) = request.tokens.iter().find(|id| **id >= app.model.vocab_size) {
        let limit = app.model.vocab_size;
        return Err(ApiError::field("tokens", format!("token id {id} is not below the vocabulary's {limit}")).into());
    }
    let shared = app.clone();
    let bytes = request.tokens.len() * 4;
    let prompt = app.pool.run(bytes, move || Ok(shared.model.tokenizer.decode(&request.tokens, true))).await?;
    Ok(reply::json(&DetokenizeResponse { prompt }))
}
