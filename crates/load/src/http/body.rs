//! Where a response's body ends, and its bytes without the framing (RFC 9112, sections 6 and 7).

/// Longest accepted line of a chunk's size with its extensions, and of a trailer.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Decodes one body, fed in pieces of any size.
#[derive(Debug)]
pub struct BodyDecoder {
    framing: Framing,
}

/// What follows after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyState {
    /// More of the body.
    Open,
    /// The body is complete; so many bytes of the piece belonged to it.
    Complete {
        /// Bytes of the last piece that were used.
        used: usize,
    },
}

#[derive(Debug)]
enum Framing {
    Length { left: u64 },
    Chunked(Chunked),
    UntilClose,
}

#[derive(Debug)]
enum Chunked {
    Size { size: Option<u64>, extension: bool, line_bytes: usize },
    Data { left: u64 },
    DataEnd,
    Trailer { line_bytes: usize, total_bytes: usize },
    Done,
}

const SIZE: Chunked = Chunked::Size { size: None, extension: false, line_bytes: 0 };

impl BodyDecoder {
    /// A body of a known length.
    pub fn length(bytes: u64) -> Self {
        Self { framing: Framing::Length { left: bytes } }
    }

    /// A body in chunks.
    pub fn chunked() -> Self {
        Self { framing: Framing::Chunked(SIZE) }
    }

    /// A body that ends with the connection.
    pub fn until_close() -> Self {
        Self { framing: Framing::UntilClose }
    }

    /// The body ends where the connection does, and whether it is whole cannot be known.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.framing, Framing::UntilClose)
    }

    /// There is no body: nothing more is to be read.
    pub fn is_empty(&self) -> bool {
        matches!(self.framing, Framing::Length { left: 0 })
    }

    /// Takes the next piece and hands the content in it to `content`, in order.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub fn decode(&mut self, piece: &[u8], mut content: impl FnMut(&[u8])) -> Result<BodyState, &'static str> {
        match &mut self.framing {
            Framing::UntilClose => {
                content(piece);
                Ok(BodyState::Open)
            }
            Framing::Length { left } => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                content(&piece[..take]);
                *left -= take as u64;
                Ok(if *left == 0 { BodyState::Complete { used: take } } else { BodyState::Open })
            }
            Framing::Chunked(state) => {
                let mut used = 0;
                while used < piece.len() && !matches!(state, Chunked::Done) {
                    used += state.step(&piece[used..], &mut content)?;
                }
                Ok(if matches!(state, Chunked::Done) { BodyState::Complete { used } } else { BodyState::Open })
            }
        }
    }
}

impl Chunked {
    /// Uses one byte of a line, or as much of a chunk as there is; returns how many bytes.
    fn step(&mut self, piece: &[u8], content: &mut impl FnMut(&[u8])) -> Result<usize, &'static str> {
        let byte = piece[0];
        match self {
            Self::Size { size, extension, line_bytes } => {
                *line_bytes += 1;
                if *line_bytes > LINE_BYTES_MAX {
                    return Err("the line of a chunk's size is too long");
                }
                match (byte, char::from(byte).to_digit(16)) {
                    (b'\n', _) => {
                        *self = match size.ok_or("a chunk has no size")? {
                            0 => Self::Trailer { line_bytes: 0, total_bytes: 0 },
                            left => Self::Data { left },
                        }
                    }
                    (b'\r', _) => {}
                    (_, Some(digit)) if !*extension => {
                        let grown = size.unwrap_or(0).checked_mul(16).ok_or("a chunk's size is too large")?;
                        *size = Some(grown + u64::from(digit));
                    }
                    (b';' | b' ' | b'\t', _) if size.is_some() => *extension = true,
                    _ if *extension => {}
                    _ => return Err("a chunk's size is no hexadecimal number"),
                }
                Ok(1)
            }
            Self::Data { left } => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                content(&piece[..take]);
                *left -= take as u64;
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                Ok(take)
            }
            Self::DataEnd => {
                match byte {
                    b'\r' => {}
                    b'\n' => *self = SIZE,
                    _ => return Err("a chunk is longer than its size"),
                }
                Ok(1)
            }
            Self::Trailer { line_bytes, total_bytes } => {
                *total_bytes += 1;
                match byte {
                    b'\n' if *line_bytes == 0 => *self = Self::Done,
                    b'\n' => *line_bytes = 0,
                    b'\r' => {}
                    _ => *line_bytes += 1,
                }
                if matches!(self, Self::Trailer { total_bytes, .. } if *total_bytes > LINE_BYTES_MAX) {
                    return Err("the trailer is too long");
                }
                Ok(1)
            }
            Self::Done => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `bytes` cut into pieces of `size`; returns the content, the bytes used, and whether it was complete.
    fn decode(mut decoder: BodyDecoder, bytes: &[u8], size: usize) -> Result<(String, usize, bool), &'static str> {
        let (mut content, mut used) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            match decoder.decode(piece, |part| content.extend_from_slice(part))? {
                BodyState::Open => used += piece.len(),
                BodyState::Complete { used: last } => {
                    return Ok((String::from_utf8(content).unwrap(), used + last, true));
                }
            }
        }
        Ok((String::from_utf8(content).unwrap(), used, false))
    }

    #[test]
    fn chunks_are_joined_wherever_the_pieces_end() {
        let bytes = b"5\r\nhello\r\n1;name=\"v\"\r\n \r\n00A \r\nworld\r\n\r\n!\r\n0\r\nx: y\r\n\r\nHTTP/1.1";
        for size in 1..=bytes.len() {
            let decoded = decode(BodyDecoder::chunked(), bytes, size).unwrap();
            assert_eq!(decoded, ("hello world\r\n\r\n!".to_owned(), bytes.len() - 8, true), "pieces of {size}");
        }
        assert_eq!(decode(BodyDecoder::chunked(), b"5\r\nhel", 2), Ok(("hel".to_owned(), 6, false)));
    }

    #[test]
    fn lengths_and_closing_end_the_others() {
        assert_eq!(decode(BodyDecoder::length(3), b"abcdef", 2), Ok(("abc".to_owned(), 3, true)));
        assert_eq!(decode(BodyDecoder::length(0), b"x", 1), Ok((String::new(), 0, true)));
        assert_eq!(decode(BodyDecoder::until_close(), b"abc", 2), Ok(("abc".to_owned(), 3, false)));
    }

    #[test]
    fn bad_framing_is_an_error() {
        for (bytes, reason) in [
            (&b"\r\n"[..], "no size"),
            (b"zz\r\n", "hexadecimal"),
            (b"2\r\nabc", "longer"),
            (b"fffffffffffffffff\r\n", "too large"),
        ] {
            let error = decode(BodyDecoder::chunked(), bytes, 1).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let endless = [b"1;".as_slice(), &[b'x'; LINE_BYTES_MAX]].concat();
        assert!(decode(BodyDecoder::chunked(), &endless, 64).unwrap_err().contains("too long"));
        let endless = [b"0\r\n".as_slice(), &b"a\n".repeat(LINE_BYTES_MAX)].concat();
        assert!(decode(BodyDecoder::chunked(), &endless, 64).unwrap_err().contains("too long"));
    }
}
