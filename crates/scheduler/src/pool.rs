//! The blocks of KV cache: who holds them, which are free, which contents they still carry.
//!
//! A block is *held* (`refs` > 0, by the sequences whose tables name it) or *free*. A free block may still carry contents
//! that are found by their hash; it is taken back out of the free list in O(1) when they are, and evicted when its turn
//! comes. The free list is one doubly linked list through the blocks: taken from the head, given back at the tail, blocks
//! without contents at the head. Tables are given back last block first, so a chain loses its leaf before its root.

use crate::hash::{BlockHash, ByContents};
use powertrain_step::BlockId;

const NO_LINK: u32 = u32::MAX;

struct Block {
    refs: u32,
    contents: Option<BlockHash>,
    // Neighbours in the free list; meaningful only while `refs` is 0.
    before: u32,
    after: u32,
}

pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    by_contents: ByContents<BlockId>,
    head: u32,
    tail: u32,
    free: u32,
}

impl BlockPool {
    pub(crate) fn new(kv_blocks: u32) -> Self {
        let mut pool = Self {
            blocks: Vec::with_capacity(kv_blocks as usize),
            by_contents: ByContents::with_capacity_and_hasher(kv_blocks as usize, Default::default()),
            head: NO_LINK,
            tail: NO_LINK,
            free: 0,
        };
        for block in 0..kv_blocks {
            pool.blocks.push(Block { refs: 0, contents: None, before: NO_LINK, after: NO_LINK });
            pool.link_at_tail(block);
        }
        pool
    }

    pub(crate) fn total(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks nobody holds, cached ones included.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    /// Whether nobody holds this block.
    pub(crate) fn is_free(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].refs == 0
    }

    /// Takes the least recently used free block; what it carried is forgotten.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        if self.head == NO_LINK {
            return None;
        }
        let index = self.head;
        self.unlink(index);
        let block = &mut self.blocks[index as usize];
        block.refs = 1;
        if let Some(contents) = block.contents.take() {
            let evicted = self.by_contents.remove(&contents);
            debug_assert_eq!(evicted, Some(BlockId(index)));
        }
        Some(BlockId(index))
    }

    /// One more sequence holds this block.
    pub(crate) fn hold(&mut self, block: BlockId) {
        if self.is_free(block) {
            self.unlink(block.0);
        }
        self.blocks[block.0 as usize].refs += 1;
    }

    /// One sequence fewer holds this block.
    pub(crate) fn give_back(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        assert!(entry.refs > 0, "block {} was given back more often than it was held", block.0);
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        if entry.contents.is_some() {
            self.link_at_tail(block.0);
        } else {
            self.link_at_head(block.0);
        }
    }

    /// The block that carries these contents.
    pub(crate) fn find(&self, contents: BlockHash) -> Option<BlockId> {
        self.by_contents.get(&contents).copied()
    }

    /// From now on this held block is found by its contents, unless another already is.
    pub(crate) fn publish(&mut self, block: BlockId, contents: BlockHash) {
        let entry = &mut self.blocks[block.0 as usize];
        assert!(entry.refs > 0, "block {} is published but not held", block.0);
        if entry.contents.is_some() {
            debug_assert_eq!(entry.contents, Some(contents), "a block's contents never change while it is held");
            return;
        }
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.by_contents.entry(contents) {
            vacant.insert(block);
            entry.contents = Some(contents);
        }
    }

    /// From now on this block is not found by its contents; who holds it keeps it.
    pub(crate) fn forget(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        debug_assert!(entry.refs > 0, "free blocks without contents stand at the head of their list");
        if let Some(contents) = entry.contents.take() {
            self.by_contents.remove(&contents);
        }
    }

    fn link_at_tail(&mut self, index: u32) {
        self.blocks[index as usize].before = self.tail;
        self.blocks[index as usize].after = NO_LINK;
        match self.tail {
            NO_LINK => self.head = index,
            tail => self.blocks[tail as usize].after = index,
        }
        self.tail = index;
        self.free += 1;
    }

    fn link_at_head(&mut self, index: u32) {
        self.blocks[index as usize].before = NO_LINK;
        self.blocks[index as usize].after = self.head;
        match self.head {
            NO_LINK => self.tail = index,
            head => self.blocks[head as usize].before = index,
        }
        self.head = index;
        self.free += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Block { before, after, .. } = self.blocks[index as usize];
        match before {
            NO_LINK => self.head = after,
            before => self.blocks[before as usize].after = after,
        }
        match after {
            NO_LINK => self.tail = before,
            after => self.blocks[after as usize].before = before,
        }
        self.free -= 1;
    }

    /// Panics unless the tables together hold each block exactly as often as counted, every other block is in the free
    /// list once, and the contents map and the blocks agree.
    pub(crate) fn assert_consistent<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut refs = vec![0; self.blocks.len()];
        for block in tables.flatten() {
            refs[block.0 as usize] += 1;
        }
        let mut listed = vec![false; self.blocks.len()];
        let (mut index, mut before, mut count) = (self.head, NO_LINK, 0);
        while index != NO_LINK {
            assert!(!std::mem::replace(&mut listed[index as usize], true), "block {index} is in the free list twice");
            assert_eq!(self.blocks[index as usize].before, before, "free list broken at block {index}");
            (before, index) = (index, self.blocks[index as usize].after);
            count += 1;
        }
        assert_eq!((self.tail, self.free), (before, count), "free list's end and length");
        for (index, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.refs, refs[index], "block {index}: counted holders against tables that name it");
            assert_eq!(block.refs == 0, listed[index], "block {index}: free exactly when nobody holds it");
            if let Some(contents) = block.contents {
                assert_eq!(self.find(contents), Some(BlockId(index as u32)), "block {index}: found by its contents");
            }
        }
        let carrying = self.blocks.iter().filter(|block| block.contents.is_some()).count();
        assert_eq!(carrying, self.by_contents.len(), "contents map against blocks that carry contents");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(n: u32) -> BlockHash {
        BlockHash::root(&[0; 16], None).child(&[0; 16], [n].into_iter())
    }

    #[test]
    fn the_least_recently_used_leaf_is_evicted_first() {
        let mut pool = BlockPool::new(4);
        let chains: Vec<Vec<BlockId>> = (0..2)
            .map(|chain| {
                (0..2)
                    .map(|depth| {
                        let block = pool.allocate().unwrap();
                        pool.publish(block, contents(chain * 2 + depth));
                        block
                    })
                    .collect()
            })
            .collect();
        for chain in &chains {
            for &block in chain.iter().rev() {
                pool.give_back(block);
            }
        }
        // The first chain is used again, so the second is now the older one.
        pool.hold(chains[0][0]);
        pool.give_back(chains[0][0]);
        let order: Vec<BlockId> = (0..4).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(order, [chains[0][1], chains[1][1], chains[1][0], chains[0][0]]);
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.find(contents(0)), None);
        pool.assert_consistent([order.as_slice()].into_iter());
    }

    #[test]
    fn blocks_without_contents_go_before_cached_ones() {
        let mut pool = BlockPool::new(2);
        let (cached, private) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.publish(cached, contents(1));
        pool.give_back(cached);
        pool.give_back(private);
        assert_eq!(pool.allocate(), Some(private));
        assert_eq!(pool.find(contents(1)), Some(cached));
    }

    #[test]
    fn what_is_forgotten_is_found_no_more_and_goes_first() {
        let mut pool = BlockPool::new(3);
        let blocks: Vec<BlockId> = (0..3).map(|_| pool.allocate().unwrap()).collect();
        pool.publish(blocks[0], contents(1));
        pool.publish(blocks[1], contents(2));
        pool.publish(blocks[2], contents(2));
        pool.forget(blocks[0]);
        // Another block carries these.
        pool.forget(blocks[2]);
        assert_eq!((pool.find(contents(1)), pool.find(contents(2))), (None, Some(blocks[1])));
        pool.assert_consistent([blocks.as_slice()].into_iter());
        blocks.iter().rev().for_each(|&block| pool.give_back(block));
        assert_eq!((pool.allocate(), pool.allocate()), (Some(blocks[0]), Some(blocks[2])));
    }

    #[test]
    fn equal_contents_are_found_once() {
        let mut pool = BlockPool::new(2);
        let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        pool.publish(first, contents(1));
        pool.publish(second, contents(1));
        assert_eq!(pool.find(contents(1)), Some(first));
        pool.assert_consistent([[first, second].as_slice()].into_iter());
    }
}
