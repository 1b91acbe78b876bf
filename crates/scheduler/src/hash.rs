//! What a block holds, as a number: a chain of hashes.
//!
//! The hash of a block covers its tokens, all tokens before them and the salt, so equal hashes mean equal contents of KV
//! cache. 128 bits under a secret key (SipHash-1-3, a keyed pseudo-random function): chance collisions do not happen, and
//! nobody without the key can construct one.

use powertrain_step::TokenId;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::{BuildHasherDefault, Hasher};

/// Identity of a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHash(u128);

impl BlockHash {
    /// The parent of a sequence's first block: one per salt, and one for no salt.
    pub(crate) fn root(key: &[u8; 16], salt: Option<&str>) -> Self {
        let mut hasher = SipHasher13::new_with_key(key);
        match salt {
            None => hasher.write_u8(0),
            Some(salt) => {
                hasher.write_u8(1);
                hasher.write(salt.as_bytes());
            }
        }
        Self(hasher.finish128().as_u128())
    }

    /// The block that follows `self` and holds these tokens.
    pub(crate) fn child(self, key: &[u8; 16], tokens: impl Iterator<Item = TokenId>) -> Self {
        let mut hasher = SipHasher13::new_with_key(key);
        hasher.write_u8(2);
        hasher.write_u128(self.0);
        for token in tokens {
            hasher.write_u32(token);
        }
        Self(hasher.finish128().as_u128())
    }
}

impl std::hash::Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Half of a keyed hash is as good as any hash of it.
        state.write_u64(self.0 as u64);
    }
}

/// Passes a [`BlockHash`] through unchanged.
#[derive(Default)]
pub(crate) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only block hashes are keys of these maps")
    }
    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }
}

/// A map keyed by block contents.
pub(crate) type ByContents<V> = std::collections::HashMap<BlockHash, V, BuildHasherDefault<PassThrough>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_salt_parent_tokens_and_key() {
        let key = [7; 16];
        let plain = BlockHash::root(&key, None);
        let salted = BlockHash::root(&key, Some("tenant"));
        let empty = BlockHash::root(&key, Some(""));
        let child = plain.child(&key, [1, 2, 3].into_iter());
        let all = [
            plain,
            salted,
            empty,
            child,
            plain.child(&key, [1, 2, 4].into_iter()),
            salted.child(&key, [1, 2, 3].into_iter()),
            child.child(&key, [1, 2, 3].into_iter()),
            BlockHash::root(&[8; 16], None),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(child, plain.child(&key, [1, 2, 3].into_iter()));
    }
}
