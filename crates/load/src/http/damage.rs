//! Responses of random damage: whatever arrives, the parsers end with a result or an error, and never hold more than they
//! were given.

use super::{BodyDecoder, BodyState, SseParser};
use crate::{openai::Part, random::Random};

const WHOLE: &[u8] =
    b"5a\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"h\xc3\xa9\"}}],\"usage\":{\"prompt_tokens\":1}}\n\n\
data: [DONE]\n\n\r\n1;x=y\r\n\n\r\n0\r\nt: v\r\n\r\n";

#[test]
fn damaged_responses_do_no_harm() {
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let mut bytes = WHOLE.to_vec();
        for _ in 0..random.below(6) {
            let place = random.below(bytes.len() as u64) as usize;
            match random.below(3) {
                0 => bytes[place] = random.bits() as u8,
                1 => bytes.truncate(place.max(1)),
                _ => bytes.insert(place, b"\r\n0:a;{\""[random.below(8) as usize]),
            }
        }
        let (mut decoder, mut events) = (BodyDecoder::chunked(), SseParser::default());
        let (mut content, mut data) = (0, 0);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
            rest = later;
            let state = decoder.decode(piece, |part| {
                content += part.len();
                let pushed = events.push(part, |event| {
                    data += event.len();
                    _ = Part::parse(event);
                });
                assert!(pushed.is_ok(), "seed {seed}: so few bytes exceed no limit");
            });
            match state {
                Ok(BodyState::Open) => {}
                Ok(BodyState::Complete { used }) => {
                    assert!(used <= piece.len(), "seed {seed}");
                    break;
                }
                Err(_) => break,
            }
        }
        assert!(data <= content && content <= bytes.len(), "seed {seed}: {data} {content}");
    }
}
