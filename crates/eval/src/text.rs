//! Which text an evaluation was made on.

use sha2::{Digest, Sha256};

/// SHA-256 of a text's bytes, hexadecimal: two evaluations compare only where it is the same, whatever the files are called.
pub fn text_sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(text_sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_ne!(text_sha256("abc"), text_sha256("abc\n"));
    }
}
