//! Which steps with prompts are recorded, and which recordings are kept.
//!
//! They are of many kinds, of which a load makes some dozens. Capturing one takes as long as some ten launches of it save, so a kind is captured
//! once it has come a few times, and stays while it is among those that came last.

use crate::forward::Pass;
use std::collections::HashMap;

/// Recordings that are kept.
pub(super) const PROMPT_GRAPHS_MAX: usize = 64;
/// Kinds whose sightings are counted; past that all counts begin anew.
const SIGHTED_MAX: usize = 4096;

/// Steps with prompts, recorded as `G`.
pub(super) struct PromptGraphs<G> {
    /// With the launch that used each last.
    graphs: HashMap<Pass, (G, u64)>,
    launches: u64,
    /// How often a kind came that has no graph, and how often is enough.
    sighted: HashMap<Pass, u32>,
    enough: Option<u32>,
}

impl<G> PromptGraphs<G> {
    /// A kind is to be recorded when it comes for the time `enough`.
    pub(super) fn new(enough: u32) -> Self {
        Self { graphs: HashMap::new(), launches: 0, sighted: HashMap::new(), enough: Some(enough) }
    }

    /// The graph of a step that is about to be launched.
    pub(super) fn of(&mut self, pass: &Pass) -> Option<&G> {
        self.launches += 1;
        let (graph, used) = self.graphs.get_mut(pass)?;
        *used = self.launches;
        Some(graph)
    }

    /// Counts a step without a graph. Whether it came often enough.
    pub(super) fn sighted_enough(&mut self, pass: &Pass) -> bool {
        let Some(enough) = self.enough else { return false };
        if self.sighted.len() >= SIGHTED_MAX {
            self.sighted.clear();
        }
        let times = self.sighted.entry(*pass).or_default();
        *times += 1;
        *times >= enough
    }

    /// Keeps a graph, in place of the one not used for longest if there are too many. That may still run: the driver frees it afterwards.
    pub(super) fn keep(&mut self, pass: Pass, graph: G) {
        self.sighted.remove(&pass);
        if self.graphs.len() >= PROMPT_GRAPHS_MAX
            && let Some(oldest) = self.graphs.iter().min_by_key(|(_, (_, used))| *used).map(|(pass, _)| *pass)
        {
            self.graphs.remove(&oldest);
        }
        self.graphs.insert(pass, (graph, self.launches));
    }

    /// Drops all graphs: their kernels are no longer those that would be chosen.
    pub(super) fn forget(&mut self) {
        self.graphs.clear();
    }

    /// Drops all graphs, and none is asked for again. Whether there was one.
    pub(super) fn give_up(&mut self) -> bool {
        self.enough = None;
        let had = !self.graphs.is_empty();
        self.forget();
        had
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staging::Layout;

    fn kind(tokens: usize) -> Pass {
        let layout = Layout { tokens, samples: 1, tiles: 1 };
        Pass { layout, decodes: 1, prompts: true, far: false, draws: false, extras: false, keeps_all: false }
    }

    #[test]
    fn a_kind_is_recorded_when_it_comes_again_and_found_then() {
        let mut graphs = PromptGraphs::new(3);
        let sighted: Vec<bool> = (0..4).map(|_| graphs.sighted_enough(&kind(1))).collect();
        assert_eq!(sighted, [false, false, true, true]);
        assert!(!graphs.sighted_enough(&kind(2)), "each is counted by itself");
        assert_eq!(graphs.of(&kind(1)), None);
        graphs.keep(kind(1), "one");
        assert_eq!(graphs.of(&kind(1)), Some(&"one"));
        assert_eq!(graphs.of(&kind(2)), None);
        graphs.forget();
        assert_eq!(graphs.of(&kind(1)), None);
        assert!(!graphs.sighted_enough(&kind(1)), "counted anew");
    }

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let mut graphs = PromptGraphs::new(1);
        for tokens in 0..PROMPT_GRAPHS_MAX {
            graphs.of(&kind(tokens));
            graphs.keep(kind(tokens), tokens);
        }
        assert!(graphs.of(&kind(0)).is_some());
        graphs.keep(kind(PROMPT_GRAPHS_MAX), PROMPT_GRAPHS_MAX);
        assert_eq!(graphs.graphs.len(), PROMPT_GRAPHS_MAX);
        assert_eq!(graphs.of(&kind(0)), Some(&0));
        assert_eq!(graphs.of(&kind(1)), None);
        assert_eq!(graphs.of(&kind(PROMPT_GRAPHS_MAX)), Some(&PROMPT_GRAPHS_MAX));
    }

    #[test]
    fn counts_do_not_grow_without_end_and_nothing_is_asked_for_after_giving_up() {
        let mut graphs = PromptGraphs::new(2);
        for tokens in 0..3 * SIGHTED_MAX {
            graphs.sighted_enough(&kind(tokens));
            assert!(graphs.sighted.len() <= SIGHTED_MAX);
        }
        graphs.keep(kind(1), ());
        assert!(graphs.give_up() && !graphs.give_up());
        assert!((0..5).all(|_| !graphs.sighted_enough(&kind(1))) && graphs.of(&kind(1)).is_none());
    }
}
