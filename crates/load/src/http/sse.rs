//! Server-sent events, as the HTML standard parses them (section 9.2.6), fed in pieces of any size.

use memchr::memchr2;

/// Longest accepted event.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// How much of a line that is none of an event's is kept.
const UNKNOWN_BYTES_MAX: usize = 1 << 10;
/// Comments and fields that are of no use here.
const KNOWN: [&[u8]; 4] = [b":", b"event", b"id", b"retry"];

/// Splits a stream into the data of its events. Names, ids and retry times are of no use here and are dropped.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The unfinished line.
    line: Vec<u8>,
    /// The data of the unfinished event, a line feed after each line.
    data: Vec<u8>,
    /// The last line ended with a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    begun: bool,
    /// The last line that is none of an event's, a comment or field of the standard.
    unknown: Option<Vec<u8>>,
}

impl SseParser {
    /// Takes the next piece and hands over the data of each event it completes.
    ///
    /// # Errors
    /// When an event or line is longer than 4 MiB.
    pub fn push(&mut self, mut piece: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), &'static str> {
        while !piece.is_empty() {
            if self.after_return {
                self.after_return = false;
                if piece[0] == b'\n' {
                    piece = &piece[1..];
                    continue;
                }
            }
            let end = memchr2(b'\n', b'\r', piece);
            let part = &piece[..end.unwrap_or(piece.len())];
            if self.line.len() + self.data.len() + part.len() > EVENT_BYTES_MAX {
                return Err("an event is longer than 4 MiB");
            }
            let Some(end) = end else {
                self.line.extend_from_slice(part);
                return Ok(());
            };
            self.after_return = piece[end] == b'\r';
            if self.line.is_empty()
                && self.data.is_empty()
                && self.begun
                && piece[end..].starts_with(b"\n\n")
                && let Some(value) = part.strip_prefix(b"data:")
            {
                // A whole event of one line, as nearly all are: its data need not be kept.
                event(value.strip_prefix(b" ").unwrap_or(value));
                piece = &piece[end + 2..];
                continue;
            }
            if self.line.is_empty() {
                self.line_done(part, &mut event);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(part);
                self.line_done(&line, &mut event);
                line.clear();
                self.line = line;
            }
            piece = &piece[end + 1..];
        }
        Ok(())
    }

    fn line_done(&mut self, mut line: &[u8], event: &mut impl FnMut(&[u8])) {
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            // An event without data is none.
            if !self.data.is_empty() {
                self.data.pop();
                event(&self.data);
                self.data.clear();
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.data.push(b'\n');
        } else if line == b"data" {
            self.data.push(b'\n');
        } else if !KNOWN.iter().any(|known| line.starts_with(known)) {
            self.unknown = Some(line[..line.len().min(UNKNOWN_BYTES_MAX)].to_vec());
        }
    }

    /// The last line that is none of an event's: servers that do not keep to the standard say there what went wrong.
    pub fn unknown_line(&self) -> Option<&[u8]> {
        self.unknown.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: &[u8], size: usize) -> Vec<String> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        for piece in bytes.chunks(size) {
            parser.push(piece, |data| events.push(String::from_utf8(data.to_vec()).unwrap())).unwrap();
        }
        events
    }

    #[track_caller]
    fn check(bytes: &str, expected: &[&str]) {
        for size in 1..=bytes.len() {
            assert_eq!(events(bytes.as_bytes(), size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn events_are_the_same_wherever_the_pieces_end() {
        check("data: {\"a\": 1}\n\ndata: [DONE]\n\n", &["{\"a\": 1}", "[DONE]"]);
        check("data: x\r\n\r\ndata: y\r\n\r\n", &["x", "y"]);
        check("data: x\r\rdata: y\r\r", &["x", "y"]);
        check(": ping\n\nevent: e\nid: 7\ndata:no space\nretry: 3\n\n", &["no space"]);
        check("data: one\ndata:  two\ndata\n\n", &["one\n two\n"]);
        check("\u{feff}data: é🙂\n\n", &["é🙂"]);
        check("data:\n\nevent: nothing\n\ndatabase: no\n\n", &[""]);
        // An event that the stream does not finish is dropped.
        check("data: x\n\ndata: y\n", &["x"]);
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut parser = SseParser::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; 1 << 20], b"\n"].concat();
        let error = (0..5).find_map(|_| parser.push(&line, |_| panic!("no event ends here")).err());
        assert_eq!(error, Some("an event is longer than 4 MiB"));
    }
}
