//! The engine's log-probabilities in the API's shapes.

use powertrain_protocol::{
    ChatLogprobs, CompletionLogprobs, Finite, PromptLogprob, PromptLogprobs, PromptPosition, TokenAlternative,
    TokenLogprob, TopLogprobs,
};
use powertrain_step::{TokenId, TokenLogprobs};
use powertrain_text::Tokenizer;

/// How tokens are written.
#[derive(Clone, Copy)]
pub(crate) struct Spelling<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// As `token_id:N` instead of as text.
    pub(crate) as_ids: bool,
}

impl Spelling<'_> {
    pub(crate) fn token(&self, id: TokenId) -> String {
        if self.as_ids {
            format!("token_id:{id}")
        } else {
            String::from_utf8_lossy(self.tokenizer.token_bytes(id)).into_owned()
        }
    }

    /// For chat.
    pub(crate) fn chat(&self, logprobs: &[TokenLogprobs]) -> ChatLogprobs {
        let alternative = |id: TokenId, logprob: f32| TokenAlternative {
            token: self.token(id),
            logprob,
            bytes: self.tokenizer.token_bytes(id).to_vec(),
        };
        let content = logprobs.iter().map(|position| TokenLogprob {
            chosen: alternative(position.token, position.logprob),
            top_logprobs: position.top.iter().map(|(id, logprob)| alternative(*id, *logprob)).collect(),
        });
        ChatLogprobs { content: content.collect() }
    }

    /// For plain completions. `offset` is where the first token starts, in characters; it moves to the end.
    pub(crate) fn completion(&self, logprobs: &[TokenLogprobs], offset: &mut u32) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        for position in logprobs {
            let token = self.token(position.token);
            let mut top: Vec<_> = position.top.iter().map(|(id, logprob)| (self.token(*id), *logprob)).collect();
            // The chosen token is always among them, as with OpenAI.
            if position.top.iter().all(|(id, _)| *id != position.token) {
                top.push((token.clone(), position.logprob));
            }
            push(&mut lists, token, Some(position.logprob), Some(top), offset);
        }
        lists
    }

    /// For an echoed prompt: its first token, then those that something predicts.
    pub(crate) fn echo(&self, first: TokenId, rest: &[TokenLogprobs], offset: &mut u32) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        push(&mut lists, self.token(first), None, None, offset);
        extend(&mut lists, self.completion(rest, offset));
        lists
    }

    /// vLLM's `prompt_logprobs`.
    pub(crate) fn prompt(&self, rest: &[TokenLogprobs]) -> PromptLogprobs {
        let candidate =
            |id: TokenId, logprob: f32, rank: u32| (id, PromptLogprob { logprob, rank, decoded_token: self.token(id) });
        let positions = rest.iter().map(|position| {
            let mut candidates = vec![candidate(position.token, position.logprob, position.rank)];
            for (rank, (id, logprob)) in (1..).zip(&position.top) {
                if *id != position.token {
                    candidates.push(candidate(*id, *logprob, rank));
                }
            }
            Some(PromptPosition(candidates))
        });
        std::iter::once(None).chain(positions).collect()
    }
}

/// Appends lists to lists.
pub(crate) fn extend(lists: &mut CompletionLogprobs, mut more: CompletionLogprobs) {
    lists.text_offset.append(&mut more.text_offset);
    lists.token_logprobs.append(&mut more.token_logprobs);
    lists.tokens.append(&mut more.tokens);
    lists.top_logprobs.append(&mut more.top_logprobs);
}

fn push(
    lists: &mut CompletionLogprobs,
    token: String,
    logprob: Option<f32>,
    top: Option<Vec<(String, f32)>>,
    offset: &mut u32,
) {
    lists.text_offset.push(*offset);
    *offset += token.chars().count() as u32;
    lists.token_logprobs.push(logprob.map(Finite));
    lists.top_logprobs.push(top.map(TopLogprobs));
    lists.tokens.push(token);
}
