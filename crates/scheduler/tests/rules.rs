//! The rules one by one, each on the smallest scene that shows it.

mod harness;

use harness::{Bench, End, config, seeded, sequence};
use powertrain_scheduler::{ConfigError, FinishReason, NewSequence, Refusal, Scheduler, SchedulerConfig, SequenceId};
use powertrain_step::{CostsBeside, StepCost, StepCosts, StepPlan, TokenId, mock::Fault};
use std::sync::Arc;

fn prompt(len: u32) -> Vec<TokenId> {
    (0..len).map(|position| position % 7).collect()
}

fn deep(depth: u32, config: SchedulerConfig) -> SchedulerConfig {
    SchedulerConfig { depth, ..config }
}

/// (row, start, len, sample) of each entry.
fn work(plan: &StepPlan) -> Vec<(u32, u32, u32, bool)> {
    plan.work.iter().map(|work| (work.row.0, work.start, work.len, work.sample)).collect()
}

#[test]
fn a_prompt_is_prefilled_in_chunks_then_decoded() {
    let mut bench = Bench::new(config(2, 4, 4, 16));
    bench.submit_one(sequence(prompt(10), 3));
    bench.run_to_idle();
    let steps: Vec<_> = bench.plans.iter().map(work).collect();
    assert_eq!(
        steps,
        [
            vec![(0, 0, 4, false)],
            vec![(0, 4, 4, false)],
            vec![(0, 8, 2, true)],
            vec![(0, 10, 1, true)],
            vec![(0, 11, 1, true)]
        ]
    );
}

#[test]
fn decodes_come_first_and_prefill_takes_the_rest_of_the_budget() {
    let mut bench = Bench::new(config(4, 8, 4, 64));
    bench.submit(vec![sequence(prompt(3), 9), sequence(prompt(4), 9)]).unwrap();
    bench.step();
    bench.submit_one(sequence(vec![9; 20], 1));
    bench.step();
    bench.step();
    let steps: Vec<_> = bench.plans.iter().map(work).collect();
    assert_eq!(steps[1], [(0, 3, 1, true), (1, 4, 1, true), (2, 0, 6, false)]);
    assert_eq!(steps[2], [(0, 4, 1, true), (1, 5, 1, true), (2, 6, 6, false)]);
}

#[test]
fn prompts_are_spread_over_steps_by_what_steps_cost() {
    let cost = |positions, seconds| StepCost { positions, seconds };
    // 40 positions are nearly free beside decodes; a step of 200 costs so much that it is taken only for who waits long.
    let beside = |decodes, alone| CostsBeside { decodes, alone, prompts: vec![cost(40, 1.2), cost(200, 9.0)] };
    let costs = StepCosts { beside: vec![beside(1, 1.0), beside(8, 1.1)] };
    let mut bench = Bench::new(SchedulerConfig { step_costs: Some(costs), ..config(8, 512, 4, 1000) });
    bench.submit_one(sequence(prompt(300), 20));
    bench.step();
    bench.submit_one(sequence(vec![9; 70], 1));
    for _ in 0..2 {
        bench.step();
    }
    bench.submit((0..4).map(|token| sequence(vec![token; 1900], 1)).collect()).unwrap();
    bench.step();
    let steps: Vec<_> = bench.plans.iter().map(work).collect();
    // Alone, a prompt is taken whole.
    assert_eq!(steps[0], [(0, 0, 300, true)]);
    assert_eq!(steps[1], [(0, 300, 1, true), (1, 0, 39, false)]);
    assert_eq!(steps[2], [(0, 301, 1, true), (1, 39, 31, true)]);
    // Half of the next prompt is more than the largest measured step holds.
    let lens = |plan: &[(u32, u32, u32, bool)]| plan.iter().map(|work| work.2).collect::<Vec<_>>();
    assert_eq!(lens(&steps[3]), [1, 511]);
    bench.run_to_idle();
}

#[test]
fn no_position_is_computed_that_nobody_needs() {
    for depth in [1, 2] {
        let mut bench = Bench::new(deep(depth, config(4, 16, 4, 64)));
        for (len, max_tokens) in [(5, 1), (6, 4), (7, 9)] {
            bench.submit_one(sequence(vec![len; len as usize], max_tokens));
        }
        bench.run_to_idle();
        assert_eq!(bench.positions(), 5 + 6 + 3 + 7 + 8, "prompt and all generated tokens but the last, depth {depth}");
    }
}

#[test]
fn an_early_stop_throws_one_surplus_token_away_at_depth_two() {
    for (depth, surplus) in [(1, 0), (2, 1)] {
        let mut bench = Bench::new(deep(depth, config(4, 16, 4, 64)));
        let mut new = sequence(prompt(5), 40);
        let expected = powertrain_step::mock::expected_tokens(&new.prompt, 0, harness::VOCAB, 4);
        new.stop.stop_token_ids = vec![expected[3]];
        let first = expected.iter().position(|&token| token == expected[3]).unwrap() as u32;
        let id = bench.submit_one(new);
        bench.run_to_idle();
        assert_eq!(bench.book[&id].end, Some(End::Finished(FinishReason::StopToken(expected[3]))));
        assert_eq!(bench.positions(), 5 + first + surplus, "depth {depth}");
    }
}

#[test]
fn completions_of_one_prompt_compute_it_once() {
    for depth in [1, 2] {
        let mut bench = Bench::new(deep(depth, config(6, 6, 4, 64)));
        let group: Vec<NewSequence> =
            (0..4).map(|seed| NewSequence { sampling: seeded(seed), ..sequence(prompt(18), 1) }).collect();
        bench.submit(group).unwrap();
        bench.run_to_idle();
        // Sixteen positions are full blocks; the last two are each sequence's own.
        assert_eq!(bench.positions(), 16 + 4 * 2, "depth {depth}");
        let starts: Vec<u32> = bench.plans.iter().flat_map(|plan| &plan.started).map(|start| start.computed).collect();
        assert_eq!(starts, [0, 16, 16, 16]);
    }
}

#[test]
fn without_prefix_caching_nothing_is_shared() {
    let mut bench = Bench::new(SchedulerConfig { prefix_caching: false, ..config(8, 64, 4, 64) });
    bench.submit(vec![sequence(prompt(18), 1); 2]).unwrap();
    bench.run_to_idle();
    bench.submit_one(sequence(prompt(18), 1));
    bench.run_to_idle();
    assert_eq!(bench.positions(), 3 * 18);
    assert_eq!(bench.scheduler.stats().prefix_tokens_queried, 0);
}

#[test]
fn a_prefix_is_found_again_later_but_never_the_whole_prompt_nor_under_another_salt() {
    let mut bench = Bench::new(config(8, 64, 4, 64));
    let salted = |salt: Option<&str>| NewSequence { cache_salt: salt.map(Arc::from), ..sequence(prompt(16), 1) };
    let mut cached = |new: NewSequence| {
        let id = bench.submit_one(new);
        bench.run_to_idle();
        bench.book[&id].cached
    };
    assert_eq!(cached(salted(None)), 0);
    assert_eq!(cached(salted(None)), 12, "the last token is always computed");
    assert_eq!(cached(salted(Some("a"))), 0);
    assert_eq!(cached(salted(Some("b"))), 0);
    assert_eq!(cached(salted(Some("a"))), 12);
    let scored = NewSequence { prompt_logprobs: Some(0), ..salted(None) };
    assert_eq!(cached(scored), 0, "log-probabilities of the prompt need every position");
    let stats = bench.scheduler.stats();
    assert_eq!((stats.prefix_tokens_queried, stats.prefix_tokens_hit), (6 * 16, 2 * 12));
}

#[test]
fn generated_tokens_are_found_again_in_the_next_turn_of_a_chat() {
    let mut bench = Bench::new(config(8, 64, 4, 64));
    let first = bench.submit_one(sequence(prompt(6), 7));
    bench.run_to_idle();
    let next_turn = [prompt(6), bench.book[&first].tokens.clone(), vec![1, 2]].concat();
    let second = bench.submit_one(sequence(next_turn, 1));
    bench.run_to_idle();
    // The last generated token was never computed: twelve positions were.
    assert_eq!(bench.book[&second].cached, 12);
}

#[test]
fn a_prompt_is_scored_without_generating() {
    for depth in [1, 2] {
        let mut bench = Bench::new(deep(depth, config(2, 4, 4, 16)));
        let id = bench.submit_one(NewSequence { prompt_logprobs: Some(2), ..sequence(prompt(10), 0) });
        bench.run_to_idle();
        assert_eq!(bench.book[&id].end, Some(End::Finished(FinishReason::Length)));
        assert_eq!((bench.book[&id].scored, bench.positions()), (10, 10));
        assert!(bench.plans.iter().flat_map(|plan| &plan.work).all(|work| !work.sample));
    }
}

#[test]
fn the_last_to_come_gives_its_blocks_up_and_returns() {
    for depth in [1, 2] {
        let mut bench = Bench::new(deep(depth, config(4, 64, 4, 6)));
        let ids = bench.submit(vec![sequence(prompt(8), 12), sequence(vec![9; 8], 12)]).unwrap();
        bench.run_to_idle();
        assert_eq!(bench.book[&ids[0]].preemptions, 0);
        assert!(bench.book[&ids[1]].preemptions > 0, "six blocks do not hold both to their ends");
        assert_eq!(bench.scheduler.stats().preemptions, u64::from(bench.book[&ids[1]].preemptions));
    }
}

#[test]
fn the_less_urgent_gives_its_blocks_up_even_if_it_came_first() {
    let mut bench = Bench::new(config(4, 64, 4, 6));
    let late = NewSequence { priority: 1, ..sequence(prompt(8), 12) };
    let ids = bench.submit(vec![late, sequence(vec![9; 8], 12)]).unwrap();
    bench.run_to_idle();
    assert!(bench.book[&ids[0]].preemptions > 0);
    assert_eq!(bench.book[&ids[1]].preemptions, 0);
}

#[test]
fn an_urgent_arrival_takes_the_row_of_the_least_urgent_and_an_equal_one_waits() {
    for depth in [1, 2] {
        let mut bench = Bench::new(deep(depth, config(2, 64, 4, 64)));
        let at = |priority, token| NewSequence { priority, ..sequence(vec![token; 5], 30) };
        let running = bench.submit(vec![at(1, 1), at(2, 2)]).unwrap();
        bench.step();
        let equal = bench.submit_one(at(2, 3));
        bench.step();
        let urgent = bench.submit_one(at(0, 4));
        bench.run_to_idle();
        let preemptions: Vec<u32> =
            [running[0], running[1], equal, urgent].iter().map(|id| bench.book[id].preemptions).collect();
        assert_eq!(preemptions, [0, 1, 0, 0], "depth {depth}");
        let order: Vec<TokenId> =
            bench.plans.iter().flat_map(|plan| &plan.started).map(|start| start.tokens[0]).collect();
        assert_eq!(order, [1, 2, 4, 2, 3], "the victim returns at its old turn");
    }
}

#[test]
fn the_urgent_do_not_wait_for_a_prefix_that_the_less_urgent_compute() {
    let mut bench = Bench::new(config(4, 4, 4, 64));
    bench.submit_one(NewSequence { priority: 5, ..sequence(prompt(30), 1) });
    bench.step();
    bench.submit_one(NewSequence { priority: 0, ..sequence(prompt(30), 1) });
    bench.run_to_idle();
    let steps: Vec<_> = bench.plans.iter().map(work).collect();
    assert_eq!(steps[1], [(1, 4, 4, false)], "it starts at once, behind the one block that is there");
    assert_eq!(steps[7], [(1, 28, 2, true), (0, 4, 2, false)]);
}

#[test]
fn urgent_completions_share_although_a_less_urgent_one_promised_first() {
    let mut bench = Bench::new(deep(2, config(8, 4096, 16, 4000)));
    bench.submit_one(NewSequence { priority: 5, ..sequence(prompt(900), 1) });
    bench.launch();
    let before = bench.positions();
    let urgent = |seed| NewSequence { priority: 0, sampling: seeded(seed), ..sequence(prompt(900), 1) };
    bench.submit((0..4).map(urgent).collect()).unwrap();
    bench.run_to_idle();
    let spent = bench.positions() - before;
    assert!(spent <= 900 + 3 * 16, "{spent}");
}

#[test]
fn nobody_is_preempted_for_one_that_still_does_not_fit() {
    for depth in [1, 2] {
        // Of 100 blocks the first grows to more than 60, as many as the last needs; six less urgent ones hold little.
        let mut bench = Bench::new(deep(depth, config(16, 512, 4, 100)));
        bench.submit_one(sequence(vec![1; 200], 160));
        let lesser = |name: u32| NewSequence { priority: 1, ..sequence(vec![10 + name; 6], 12) };
        let lesser: Vec<_> = (0..6).map(|name| bench.submit_one(lesser(name))).collect();
        (0..3).for_each(|_| _ = bench.step());
        let large = bench.submit_one(sequence(vec![2; 240], 1));
        bench.run_to_idle();
        assert_eq!(lesser.iter().map(|id| bench.book[id].preemptions).collect::<Vec<_>>(), [0; 6]);
        assert!(bench.book[&large].end.is_some());
    }
}

#[test]
fn what_a_failed_row_left_is_not_found_again() {
    let mut step = 0;
    // Its third chunk fails.
    let mut bench = Bench::with_faults(config(2, 8, 4, 64), move |_| {
        step += 1;
        if step == 3 { Fault::Row(0) } else { Fault::None }
    });
    bench.submit_one(sequence(prompt(24), 1));
    bench.run_to_idle();
    let again = bench.submit_one(sequence(prompt(24), 1));
    bench.run_to_idle();
    assert_eq!(bench.book[&again].cached, 0);
}

#[test]
fn equals_start_in_the_order_they_came_and_nobody_overtakes_one_that_is_too_large() {
    let mut bench = Bench::new(config(4, 64, 4, 8));
    let tokens_of = |token, len, max| sequence(vec![token; len], max);
    bench.submit_one(tokens_of(1, 16, 10));
    bench.step();
    bench.submit(vec![tokens_of(2, 24, 1), tokens_of(3, 2, 1)]).unwrap();
    bench.run_to_idle();
    let order: Vec<TokenId> = bench.plans.iter().flat_map(|plan| &plan.started).map(|start| start.tokens[0]).collect();
    assert_eq!(order, [1, 2, 3]);
}

#[test]
fn what_can_never_run_is_refused_and_a_group_is_taken_whole_or_not_at_all() {
    let mut config = config(2, 8, 4, 8);
    (config.limits.max_model_len, config.max_queue) = (20, 1);
    let check = |group: Vec<NewSequence>, refusal: Result<usize, Refusal>| {
        let mut scheduler = Scheduler::new(config.clone()).unwrap();
        assert_eq!(scheduler.submit(group).map(|ids| ids.len()), refusal);
        assert_eq!(scheduler.is_idle(), refusal.is_err());
    };
    check(vec![sequence(prompt(19), 1)], Ok(1));
    check(vec![sequence(prompt(20), 0)], Ok(1));
    check(vec![sequence(prompt(2), u32::MAX)], Ok(1));
    check(vec![sequence(prompt(0), 1)], Err(Refusal::EmptyPrompt));
    check(vec![sequence(prompt(20), 1)], Err(Refusal::PromptTooLong { prompt_tokens: 20, max_model_len: 20 }));
    check(vec![sequence(prompt(21), 0)], Err(Refusal::PromptTooLong { prompt_tokens: 21, max_model_len: 20 }));
    check(vec![sequence(prompt(3), 1); 3], Ok(3));
    check(vec![sequence(prompt(3), 1); 4], Err(Refusal::GroupTooLarge { requested: 4, most: 3 }));
    check(
        vec![sequence(prompt(3), 1), sequence(prompt(21), 1)],
        Err(Refusal::PromptTooLong { prompt_tokens: 21, max_model_len: 20 }),
    );

    let mut scheduler = Scheduler::new(config.clone()).unwrap();
    assert!(scheduler.submit(vec![sequence(prompt(3), 1)]).is_ok());
    let refusal = Refusal::QueueFull { requested: 3, waiting: 1, limit: 1 };
    assert_eq!(scheduler.submit(vec![sequence(prompt(3), 1); 3]), Err(refusal), "later it could run");

    config.limits.max_model_len = 100;
    let mut scheduler = Scheduler::new(config).unwrap();
    assert!(scheduler.submit(vec![sequence(prompt(30), 3)]).is_ok(), "the last token needs no block");
    let refusal = Refusal::ExceedsKvCache { blocks_needed: 9, blocks_total: 8 };
    assert_eq!(scheduler.submit(vec![sequence(prompt(30), 4)]), Err(refusal));
}

#[test]
fn a_name_that_is_over_is_recognised() {
    let mut bench = Bench::new(config(2, 8, 4, 8));
    let first: SequenceId = bench.submit_one(sequence(prompt(3), 5));
    bench.step();
    bench.cancel(first);
    let second = bench.submit_one(sequence(prompt(3), 5));
    assert_eq!(first.slot(), second.slot(), "the place is used again");
    assert_eq!(bench.scheduler.finish(first), None);
    bench.run_to_idle();
    assert_eq!(bench.book[&second].end, Some(End::Finished(FinishReason::Length)));
}

#[test]
fn limits_that_cannot_work_together_are_refused() {
    let check = |config: SchedulerConfig, error: ConfigError| assert_eq!(Scheduler::new(config).err(), Some(error));
    check(config(0, 8, 4, 8), ConfigError::Zero { name: "--max-num-seqs" });
    check(config(8, 7, 4, 8), ConfigError::BudgetBelowRows { max_num_batched_tokens: 7, max_num_seqs: 8 });
    check(deep(3, config(8, 8, 4, 8)), ConfigError::Depth { depth: 3 });
    check(config(8, 8, 0, 8), ConfigError::Zero { name: "--block-size" });
}

#[test]
fn a_newcomer_does_not_get_the_blocks_that_running_ones_are_about_to_need() {
    let mut bench = Bench::new(config(4, 64, 4, 8));
    bench.submit_one(sequence(prompt(8), 5));
    bench.step();
    // Six blocks are free and six would do, but the first sequence's next token needs one of them.
    let newcomer = bench.submit_one(sequence(vec![9; 24], 1));
    bench.run_to_idle();
    assert_eq!(bench.book[&newcomer].preemptions, 0);
}
