//! How many positions of prompts a step computes beside its decodes.
//!
//! A device reads its weights once a step, and its products come in tiles: some positions beside decodes cost next to nothing, more of them cost in
//! jumps. The executor measures that when it is loaded ([`StepCosts`]); here it is weighed against those who wait. Prompts that come one by
//! one are spread over the steps, so that each step has about as many positions of prompts as come in one: no step is long, the
//! weights that decodes need anyway are used by prompts too, and sequences that began together do not stay together. A backlog adds a share of
//! itself, and the prompt whose turn it is gets at least a quarter of its positions, so that a long one does not wait for the sake of the others' pace.
//!
//! What comes of that under a load can be computed without a device: `cargo run --release -p powertrain-scheduler --example simulate`.

use powertrain_step::StepCosts;
use std::collections::BTreeMap;

/// The prompt whose turn it is gets at least this part of itself a step: of more steps each is shorter, and the first token later.
const PROMPT_PART: u32 = 4;
/// Its rest goes along if it is no more than this part of what the step takes.
const REST_PART: u32 = 8;
/// Each step takes this part of what waits, on top of what arrives.
const BACKLOG_PART: u64 = 128;
/// Steps over which the arrival of prompts is averaged. Outputs are some hundreds of tokens: shorter than the time after which clients that wait
/// for their answers send the next prompt, and bursts of theirs would be taken for a change.
const AVERAGED_STEPS: f64 = 128.0;
/// Sizes whose positions cost up to this much more than the cheapest's are as good; the smallest of them is taken.
const AS_CHEAP: f64 = 1.02;
/// Fewer positions of prompts than this are not worth a step's kernels for prompts, nor fewer than an eighth of the decodes beside them.
const FEWEST: u32 = 32;

/// Prompts that could be computed now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Positions of all of them.
    pub(crate) positions: u64,
    /// Positions that the first of them lacks.
    pub(crate) first: u32,
    /// Positions it has in all.
    pub(crate) first_whole: u32,
}

pub(crate) struct Pace {
    /// Ascending in positions.
    sizes: Vec<Size>,
    /// Positions of prompts that come while a step is computed, averaged.
    arriving: f64,
}

/// Steps of a size, and what a position of a prompt costs in them: seconds, never negative.
struct Size {
    /// All positions of the step.
    positions: u32,
    /// The price while nothing decodes.
    without_decodes: f64,
    /// Numbers of decodes beside which such steps were measured, ascending, at least one; with the price beside them.
    beside: Vec<(u32, f64)>,
}

impl Size {
    /// Those that were measured. What is no number, or leaves prompts no position, is passed over.
    fn all(costs: &StepCosts) -> Vec<Self> {
        let mut sizes = BTreeMap::<u32, Self>::new();
        let fewest = costs.beside.first().map_or(0.0, |beside| beside.alone);
        for beside in &costs.beside {
            for cost in &beside.prompts {
                let of_prompts = cost.positions.saturating_sub(beside.decodes);
                let price = (cost.seconds - beside.alone) / f64::from(of_prompts);
                if of_prompts == 0 || !price.is_finite() || !fewest.is_finite() {
                    continue;
                }
                let size = sizes.entry(cost.positions).or_insert_with(|| Self {
                    positions: cost.positions,
                    // As if all sizes had been measured beside the fewest decodes, which are next to none.
                    without_decodes: ((cost.seconds - beside.alone + fewest) / f64::from(cost.positions)).max(0.0),
                    beside: Vec::new(),
                });
                size.beside.push((beside.decodes, price.max(0.0)));
            }
        }
        sizes.into_values().collect()
    }

    /// Seconds for a position of a prompt beside so many decodes: on a straight line between the nearest numbers of decodes with which this
    /// size was measured, and as with the nearest where there are none on one side.
    fn price(&self, decodes: u32) -> f64 {
        if decodes == 0 {
            return self.without_decodes;
        }
        let above = self.beside.partition_point(|&(known, _)| known < decodes);
        match (&self.beside[..above], &self.beside[above..]) {
            (&[.., (fewer, low)], &[(more, high), ..]) => {
                low + (high - low) * f64::from(decodes - fewer) / f64::from(more - fewer)
            }
            (&[.., (_, price)], []) | ([], &[(_, price), ..]) => price,
            ([], []) => f64::INFINITY,
        }
    }
}

impl Pace {
    pub(crate) fn new(costs: &StepCosts) -> Self {
        debug_assert!(costs.beside.is_sorted_by(|a, b| a.decodes < b.decodes));
        debug_assert!(costs.beside.iter().all(|beside| beside.prompts.is_sorted_by(|a, b| a.positions < b.positions)));
        Self { sizes: Size::all(costs), arriving: 0.0 }
    }

    /// Positions of prompts for the next step at most, beside so many decodes. `arrived`: those of the prompts that came since the last step. At
    /// least 1; all there is room for where more is wanted than the largest measured step holds.
    pub(crate) fn next(&self, decodes: u32, backlog: Backlog, arrived: f64) -> u32 {
        let share = backlog.first.min(backlog.first_whole / PROMPT_PART);
        let rate = self.arriving_with(arrived) + (backlog.positions / BACKLOG_PART) as f64;
        let wanted = rate.max(f64::from(share));
        let positions = match self.cheapest(decodes, 1.0) {
            Some(at_ease) if f64::from(at_ease) >= wanted => at_ease,
            _ => self.cheapest(decodes, wanted).unwrap_or(u32::MAX),
        };
        let rest = backlog.first.saturating_sub(positions);
        // While nothing decodes, the first prompt keeps nobody waiting.
        if decodes == 0 || rest <= positions / REST_PART { positions.max(backlog.first) } else { positions }
    }

    /// A step was planned.
    pub(crate) fn stepped(&mut self, arrived: f64) {
        self.arriving = self.arriving_with(arrived);
    }

    /// Nothing is left: what comes next is another load.
    pub(crate) fn forget(&mut self) {
        self.arriving = 0.0;
    }

    fn arriving_with(&self, arrived: f64) -> f64 {
        (self.arriving + (arrived - self.arriving) / AVERAGED_STEPS).max(0.0)
    }

    /// Of the measured sizes with at least so many positions of prompts beside the decodes, the smallest whose positions are cheap. `None` where
    /// none is large enough.
    fn cheapest(&self, decodes: u32, least: f64) -> Option<u32> {
        let fewest = f64::from(FEWEST.max(decodes / 8)).max(least);
        let offers = || {
            self.sizes.iter().filter_map(|size| {
                let positions = size.positions.checked_sub(decodes).filter(|&more| f64::from(more) >= fewest)?;
                Some((positions, size.price(decodes)))
            })
        };
        let price = offers().map(|(_, price)| price).reduce(f64::min)?;
        let mut as_cheap = offers().filter(|&(_, offered)| offered <= price * AS_CHEAP);
        // What costs nothing beside decodes: as much of it as there is.
        let best = if price > 0.0 { as_cheap.next() } else { as_cheap.next_back() };
        best.map(|(positions, _)| positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use powertrain_step::{CostsBeside, StepCost};

    /// Decodes, ms of theirs alone, and positions and ms with prompts.
    type Beside<'a> = (u32, f64, &'a [(u32, f64)]);

    fn costs(list: &[Beside<'_>]) -> StepCosts {
        let cost = |&(positions, ms): &(u32, f64)| StepCost { positions, seconds: ms * 1e-3 };
        let beside = |&(decodes, ms, prompts): &Beside<'_>| CostsBeside {
            decodes,
            alone: ms * 1e-3,
            prompts: prompts.iter().map(cost).collect(),
        };
        StepCosts { beside: list.iter().map(beside).collect() }
    }

    /// Llama-3.1-8B on an H100, ms: 256 rows are nearly free beside decodes; just past 1,024 rows a wave of tiles more is begun.
    fn pace() -> Pace {
        let sizes = [(256, 7.46), (512, 12.71), (768, 18.24), (1024, 22.89), (1408, 34.02), (2048, 44.19)];
        let decodes = [(1, 5.15), (16, 5.9), (64, 6.9), (128, 7.7)].map(|(decodes, ms)| (decodes, ms, &sizes[..]));
        Pace::new(&costs(&[&decodes[..], &[(256, 8.6, &sizes[1..])]].concat()))
    }

    /// ms for a position beside so many decodes.
    fn price(pace: &Pace, positions: u32, decodes: u32) -> f64 {
        let size = pace.sizes.iter().find(|size| size.positions == positions);
        size.expect("it was measured").price(decodes) * 1e3
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, and not {expected}");
    }

    fn waiting(positions: u64) -> Backlog {
        Backlog { positions, first: 300, first_whole: 300 }
    }

    #[test]
    fn the_cheapest_positions_are_taken_while_few_come() {
        let pace = pace();
        assert_eq!(pace.next(1, waiting(512), 512.0), 255);
        assert_eq!(pace.next(50, waiting(512), 0.0), 206);
        // 56 positions of 256 would cost least, and are less than what is worth a step of prompts only from 8 times as many decodes on.
        let little = Backlog { positions: 56, first: 56, first_whole: 56 };
        assert_eq!(pace.next(200, little, 0.0), 56);
        assert_eq!(pace.next(230, little, 0.0), 282);
    }

    #[test]
    fn a_long_prompt_takes_four_steps() {
        let pace = pace();
        let prompt = |first: u32| Backlog { positions: first.into(), first, first_whole: 3000 };
        assert_eq!(pace.next(10, prompt(3000), 0.0), 758);
        assert_eq!(pace.next(10, prompt(2242), 0.0), 758);
        assert_eq!(pace.next(10, prompt(700), 0.0), 758);
        assert_eq!(pace.next(10, prompt(100), 0.0), 246);
        // Longer than four times what was measured: as much as there is room for.
        let longest = |first: u32| Backlog { positions: first.into(), first, first_whole: first };
        assert_eq!(pace.next(10, longest(4 * 2038), 0.0), 2038);
        assert_eq!(pace.next(10, longest(4 * 2039), 0.0), u32::MAX);
    }

    #[test]
    fn a_small_rest_goes_along() {
        let pace = pace();
        let prompt = |first: u32| Backlog { positions: first.into(), first, first_whole: 512 };
        assert_eq!(pace.next(10, prompt(276), 0.0), 246 + 30);
        assert_eq!(pace.next(10, prompt(277), 0.0), 246);
        // A quarter of it is more than what is cheapest, 156.
        let prompt = |first: u32| Backlog { positions: first.into(), first, first_whole: 700 };
        assert_eq!(pace.next(100, prompt(463), 0.0), 412 + 51);
        assert_eq!(pace.next(100, prompt(464), 0.0), 412);
    }

    #[test]
    fn who_waits_long_gets_larger_steps() {
        let pace = pace();
        assert_eq!(pace.next(50, waiting(BACKLOG_PART * 206), 0.0), 206);
        assert_eq!(pace.next(50, waiting(BACKLOG_PART * 207), 0.0), 462);
        // The size that is dear, 1408, is passed over.
        assert_eq!(pace.next(50, waiting(BACKLOG_PART * 975), 0.0), 1998);
        assert_eq!(pace.next(50, waiting(BACKLOG_PART * 1998), 0.0), 1998);
        assert_eq!(pace.next(50, waiting(BACKLOG_PART * 1999), 0.0), u32::MAX);
    }

    #[test]
    fn as_many_as_come_are_computed() {
        let mut pace = pace();
        // 512 every step: the average rises to it, though nobody waits long.
        let mut run = |arrived: f64| {
            let taken: Vec<u32> = (0..1000)
                .map(|_| {
                    let positions = pace.next(100, waiting(300), arrived);
                    pace.stepped(arrived);
                    positions
                })
                .collect();
            (taken[0], taken[999])
        };
        assert_eq!(run(512.0), (156, 668));
        assert_eq!(run(0.0), (668, 156));
        // What the prefix cache turned out to hold is taken off again.
        assert_eq!(run(-512.0), (156, 156));
    }

    #[test]
    fn another_load_begins_anew() {
        let mut pace = pace();
        (0..1000).for_each(|_| pace.stepped(512.0));
        assert_eq!(pace.next(100, waiting(300), 0.0), 668);
        pace.forget();
        assert_eq!(pace.next(100, waiting(300), 0.0), 156);
    }

    #[test]
    fn a_prompt_alone_is_taken_whole() {
        let pace = pace();
        assert_eq!(pace.next(0, Backlog { positions: 3000, first: 3000, first_whole: 3000 }, 3000.0), 3000);
        assert_eq!(pace.next(0, waiting(9000), 4000.0), 2048);
        assert_eq!(pace.next(0, waiting(3_000_000), 0.0), u32::MAX);
    }

    #[test]
    fn positions_that_cost_nothing_are_all_taken() {
        let pace = Pace::new(&costs(&[(1, 1.0, &[(256, 0.9), (512, 1.0), (1024, 2.0)])]));
        assert_eq!(pace.next(10, waiting(300), 0.0), 502);
    }

    #[test]
    fn prices_lie_between_those_beside_fewer_and_more_decodes() {
        let measured: [Beside<'_>; 3] =
            [(56, 1.0, &[(256, 2.0), (512, 4.0)]), (100, 2.0, &[(512, 5.0)]), (156, 3.0, &[(256, 6.0)])];
        let pace = Pace::new(&costs(&measured));
        let [low, high] = [1.0 / 200.0, 3.0 / 100.0];
        assert_near(price(&pace, 256, 56), low);
        assert_near(price(&pace, 256, 156), high);
        // Nothing was measured beside 100: a straight line from 56 to 156.
        assert_near(price(&pace, 256, 100), low + 0.44 * (high - low));
        assert_near(price(&pace, 256, 106), (low + high) / 2.0);
        // Fewer and more than were measured with this size.
        assert_near(price(&pace, 256, 1), low);
        assert_near(price(&pace, 256, 157), high);
        let [low, high] = [3.0 / 456.0, 3.0 / 412.0];
        assert_near(price(&pace, 512, 78), (low + high) / 2.0);
        assert_near(price(&pace, 512, 100), high);
        assert_near(price(&pace, 512, 300), high);
        // Without decodes nothing is taken off, and the fewest have most of prompts.
        assert_near(price(&pace, 256, 0), 2.0 / 256.0);
        assert_near(price(&pace, 512, 0), 4.0 / 512.0);
    }

    #[test]
    fn the_cheapest_size_changes_with_the_decodes_beside_it() {
        let pace = Pace::new(&costs(&[(100, 2.0, &[(512, 3.0), (1024, 4.9)]), (240, 4.0, &[(512, 6.0), (1024, 7.0)])]));
        assert_eq!(pace.next(100, waiting(300), 0.0), 412);
        assert_eq!(pace.next(240, waiting(300), 0.0), 784);
        // us: 2.43 and 3.14 beside 100, 7.35 and 3.83 beside 240: equal at 123 or 124.
        assert_eq!(pace.next(118, waiting(300), 0.0), 394);
        assert_eq!(pace.next(130, waiting(300), 0.0), 894);
    }

    #[test]
    fn sizes_measured_beside_few_or_many_decodes_alone_are_offered_beside_all() {
        let pace = Pace::new(&costs(&[(8, 1.0, &[(256, 2.0)]), (240, 2.0, &[(1024, 5.0)])]));
        let long = |first: u32| Backlog { positions: first.into(), first, first_whole: first };
        assert_eq!(pace.next(8, waiting(300), 0.0), 1016);
        assert_eq!(pace.next(8, long(4 * 1016), 0.0), 1016);
        assert_eq!(pace.next(8, long(4 * 1017), 0.0), u32::MAX);
        let pace = Pace::new(&costs(&[(8, 1.0, &[(256, 1.2)]), (240, 2.0, &[(1024, 5.0)])]));
        assert_eq!(pace.next(8, waiting(300), 0.0), 248);
        assert_eq!(pace.next(100, waiting(300), 0.0), 156);
        // Too few beside 230 decodes.
        assert_eq!(pace.next(230, waiting(300), 0.0), 794);
    }

    #[test]
    fn what_is_no_cost_is_passed_over() {
        let (nan, infinite) = (f64::NAN, f64::INFINITY);
        let list: [Beside<'_>; 5] = [
            (0, 0.0, &[(0, 1.0)]),
            (8, 1.0, &[(4, 0.1), (8, 0.1), (256, nan), (384, infinite), (512, 0.5), (1024, 2.0)]),
            (48, nan, &[(512, 9.0)]),
            (100, -infinite, &[(512, 9.0)]),
            (240, 1.0, &[]),
        ];
        let pace = Pace::new(&costs(&list));
        assert_eq!(pace.sizes.iter().map(|size| size.positions).collect::<Vec<_>>(), [512, 1024]);
        for size in &pace.sizes {
            assert!((0..300).map(|decodes| size.price(decodes)).all(|price| price.is_finite() && price >= 0.0));
        }
        assert_near(price(&pace, 512, 8), 0.0);
        assert_near(price(&pace, 1024, 8), 1.0 / 1016.0);
        // Decodes alone: nothing is known of prompts beside them.
        let pace = Pace::new(&costs(&[(8, 1.0, &[]), (48, 2.0, &[])]));
        assert!(pace.sizes.is_empty());
        assert_eq!(pace.next(8, waiting(300), 0.0), u32::MAX);
    }

    #[test]
    fn there_is_always_a_position() {
        let nothing = Pace::new(&StepCosts::default());
        let pace = pace();
        for decodes in 0..400 {
            for positions in [0, 1, 31, 32, 1000, u64::from(u32::MAX) * 1000] {
                let backlog = Backlog { positions, ..Backlog::default() };
                assert!(pace.next(decodes, backlog, positions as f64) > 0, "{decodes} {positions}");
                assert!(nothing.next(decodes, backlog, -1.0) > 0);
            }
        }
    }
}
