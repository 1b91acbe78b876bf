//! Perplexity and questions over HTTP, against a server whose answers are known.

use powertrain_eval::{Asking, Endpoint, EndpointError, Scoring, WindowsOf, divergence, perplexity};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    thread,
    time::Duration,
};

/// Bytes that the server tokenizes at once.
const TOKENIZED_MAX: usize = 20_000;

/// What the server offers.
#[derive(Clone, Copy, PartialEq)]
enum Offers {
    PromptLogprobs,
    Echo,
    EchoWithoutTokenize,
    /// Alternatives for a next token, by id: the one that stands in the text is never the most probable.
    Continuations,
    Nothing,
}

/// A server for which token n has the log-probability -n, and a character is a token.
fn serve(offers: Offers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
            reader.read_line(&mut first).unwrap();
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (status, answer) = answer(offers, &first, &body);
            let text = answer.to_string();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", text.len());
            stream.write_all((head + &text).as_bytes()).unwrap();
        }
    });
    url
}

fn answer(offers: Offers, first: &str, body: &Value) -> (&'static str, Value) {
    if first.contains("/v1/models") {
        return ("200 OK", json!({"data": [{"id": "m"}]}));
    }
    let tokens_of = |text: &str| text.chars().map(u32::from).collect::<Vec<_>>();
    if first.contains("/tokenize") && offers != Offers::EchoWithoutTokenize {
        let Some(prompt) = body["prompt"].as_str().filter(|prompt| prompt.len() <= TOKENIZED_MAX) else {
            return ("400 Bad Request", json!({"error": "too long"}));
        };
        let mut tokens = tokens_of(prompt);
        // A model with a first token of its own.
        if body["add_special_tokens"] == true {
            tokens.insert(0, 1);
        }
        return ("200 OK", json!({"tokens": tokens, "count": tokens.len()}));
    }
    if first.contains("/v1/chat/completions") {
        return ("200 OK", json!({"choices": [{"message": {"content": "It is 56."}}]}));
    }
    if first.contains("/v1/completions") {
        let tokens: Vec<u32> = match &body["prompt"] {
            Value::String(text) => tokens_of(text),
            ids => serde_json::from_value(ids.clone()).unwrap(),
        };
        let logprob = |token: &u32| -f64::from(*token) / 100.0;
        if body.get("prompt_logprobs").is_some() && offers == Offers::PromptLogprobs {
            // Another candidate before the prompt's own.
            let candidates =
                |token: &u32| json!({"7": {"logprob": -0.1}, token.to_string(): {"logprob": logprob(token)}});
            let list: Vec<Value> = std::iter::once(Value::Null).chain(tokens[1..].iter().map(candidates)).collect();
            return ("200 OK", json!({"choices": [{"text": "x", "prompt_logprobs": list}]}));
        }
        if offers == Offers::Continuations && body["logprobs"].is_u64() && body["echo"] != true {
            // The same distribution as above, which depends on the token before alone.
            let next = tokens.last().map_or(0, |last| last + 1);
            let told = |id: u32, logprob: f64| json!({"id": id, "token": "t", "logprob": logprob});
            let content = json!([{"top_logprobs": [told(7, -0.1), told(next, logprob(&next))]}]);
            return ("200 OK", json!({"choices": [{"text": "x", "logprobs": {"content": content}}]}));
        }
        if body["echo"] == true && matches!(offers, Offers::Echo | Offers::EchoWithoutTokenize) {
            let mut list = vec![Value::Null];
            list.extend(tokens[1..].iter().map(|token| json!(logprob(token))));
            list.push(json!(-0.5));
            let usage = json!({"prompt_tokens": tokens.len(), "completion_tokens": 1});
            return (
                "200 OK",
                json!({"choices": [{"text": "x", "logprobs": {"token_logprobs": list}}], "usage": usage}),
            );
        }
        return ("200 OK", json!({"choices": [{"text": "x", "logprobs": null}]}));
    }
    ("404 Not Found", json!({"error": "no such route"}))
}

fn endpoint(offers: Offers) -> Endpoint {
    Endpoint::new(&serve(offers), None, None, Duration::from_secs(20)).unwrap()
}

/// Windows of four of the text's tokens, the first of each replaced by token 1; the last of each is scored alone, since of
/// tokens 1 to 3 those from 3 on count.
#[test]
fn both_ways_of_asking_give_the_defined_perplexity() {
    let text = "abcdefghijkl";
    // With the first token in front: 1abc defg hijk, and l is left over.
    let expected = [f64::from(u32::from('c')), f64::from(u32::from('g')), f64::from(u32::from('k'))];
    let mean = expected.iter().sum::<f64>() / 3.0 / 100.0;
    for (offers, scoring) in [(Offers::PromptLogprobs, Scoring::PromptLogprobs), (Offers::Echo, Scoring::Echo)] {
        let mut told = Vec::new();
        let found = perplexity(&endpoint(offers), text, 4, None, &mut |done, of| told.push((done, of))).unwrap();
        assert_eq!((found.scoring, found.windows_of), (scoring, WindowsOf::Tokens));
        assert_eq!(found.likelihood.tokens(), 3);
        assert!((found.likelihood.perplexity().unwrap() - mean.exp()).abs() < 1e-9);
        assert_eq!(told, [(1, 3), (2, 3), (3, 3)]);
    }
    let two = perplexity(&endpoint(Offers::Echo), text, 4, Some(2), &mut |_, _| {}).unwrap();
    assert_eq!(two.likelihood.windows.len(), 2);
}

#[test]
fn a_long_text_is_tokenized_in_pieces() {
    let text = "abcdefg\n".repeat(5000);
    let found = perplexity(&endpoint(Offers::Echo), &text, 4000, None, &mut |_, _| {}).unwrap();
    assert_eq!((found.windows_of, found.likelihood.windows.len()), (WindowsOf::TokensOfPieces, 10));
    // With few windows the text's beginning is enough, and is tokenized whole.
    let found = perplexity(&endpoint(Offers::Echo), &text, 200, Some(2), &mut |_, _| {}).unwrap();
    assert_eq!((found.windows_of, found.likelihood.windows.len()), (WindowsOf::Tokens, 2));
}

#[test]
fn a_server_that_cannot_tokenize_gets_text() {
    let found = perplexity(&endpoint(Offers::EchoWithoutTokenize), &"a".repeat(40), 4, None, &mut |_, _| {}).unwrap();
    assert_eq!(found.windows_of, WindowsOf::Characters);
    assert_eq!((found.likelihood.windows.len(), found.likelihood.tokens()), (2, 14));
    assert!((found.likelihood.perplexity().unwrap() - 0.97_f64.exp()).abs() < 1e-9);
}

#[test]
fn what_cannot_be_measured_is_said() {
    let error = perplexity(&endpoint(Offers::Nothing), "abcdefgh", 4, None, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, EndpointError::NoPromptLogprobs { .. }), "{error}");
    let error = perplexity(&endpoint(Offers::Echo), "ab", 40, None, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("no window of 40"), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(
        Endpoint::new(&format!("http://{closed}"), None, None, Duration::from_secs(5)),
        Err(EndpointError::Unreachable { .. })
    ));
}

#[test]
fn questions_are_asked() {
    let endpoint = endpoint(Offers::Nothing);
    assert_eq!(endpoint.model, "m");
    assert_eq!(endpoint.chat("What is 7 * 8?", 16).unwrap(), "It is 56.");
}

/// Letters that follow each other, of which a server finds the next with the probability that its number gives.
#[test]
fn two_servers_are_compared_by_what_they_tell() {
    let text = "abcdefghijklmnopqrstuvwx";
    let (whole, single) = (endpoint(Offers::PromptLogprobs), endpoint(Offers::Continuations));
    let alike = divergence(&whole, &whole, text, 8, None, 2, &mut |_, _| {}).unwrap();
    assert_eq!((alike.reference, alike.found.windows(), alike.found.positions()), (Asking::PromptLogprobs, 3, 9));
    assert_eq!((alike.found.top1_agreement().0, alike.found.divergence_least().0), (1.0, 0.0));
    assert!(alike.found.likelihood_other.perplexity().is_some());
    // Asked in another way the same server says the same.
    let other = divergence(&whole, &single, text, 8, Some(2), 2, &mut |_, _| {}).unwrap();
    assert_eq!((other.other, other.found.windows(), other.tokenizers_alike), (Asking::Continuations, 2, Some(true)));
    assert!(other.found.divergence_least().0 < 1e-9, "{:?}", other.found.divergence_least());
    assert_eq!(other.found.likelihood_other.perplexity(), None);
    let refused = divergence(&whole, &endpoint(Offers::Nothing), text, 8, None, 2, &mut |_, _| {}).unwrap_err();
    assert!(matches!(refused, EndpointError::NoAlternatives { .. }), "{refused}");
    let refused = divergence(&endpoint(Offers::EchoWithoutTokenize), &whole, text, 8, None, 2, &mut |_, _| {});
    assert!(matches!(refused.unwrap_err(), EndpointError::NoTokenizer(_)));
}
