//! The sampler against a naive one: f64, full sort, every score computed.

use powertrain_sampling::{History, NonFinite, Sampler, SamplingParams, argmax, logprobs_of, random};

/// SplitMix64, so that a failure is reproduced by its printed seed.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }
    fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }
}

/// Logits with what makes selection hard: ties, -inf, wide and narrow ranges, huge values.
fn random_logits(random: &mut Random) -> Vec<f32> {
    let vocab = random.pick(&[1, 2, 3, 5, 31, 32, 33, 64, 127, 500, 1000, 4099]);
    let scale = random.pick(&[0.0, 0.01, 1.0, 4.0, 20.0, 1e4, 1e30]);
    let quantum = random.pick(&[0.0, 0.5, 2.0]);
    let masked = random.pick(&[0.0, 0.0, 0.3, 0.99]);
    let mut logits: Vec<f32> = (0..vocab)
        .map(|_| {
            let x = (random.unit() + random.unit() + random.unit() - 1.5) * 2.0 * scale;
            let x = if quantum > 0.0 && scale < 1e5 { (x / quantum).round() * quantum } else { x };
            if random.unit() < masked { f32::NEG_INFINITY } else { x as f32 }
        })
        .collect();
    let kept = random.below(vocab);
    logits[kept] = (random.unit() * scale) as f32;
    logits
}

struct Naive {
    token: u32,
    survivors: usize,
    /// How near the top-p sum came to its bound on either side, relative to the whole: below rounding, sets may differ.
    margin: f64,
}

fn naive(logits: &[f32], params: &SamplingParams, history: &History, position: u32) -> Naive {
    let mut adjusted = logits.to_vec();
    for &(token, bias) in &params.logit_bias {
        adjusted[token as usize] += bias;
    }
    if history.generated() < params.min_tokens {
        for &token in &params.suppressed {
            adjusted[token as usize] = f32::NEG_INFINITY;
        }
    }
    for seen in history.seen() {
        let logit = &mut adjusted[seen.token as usize];
        *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        if seen.generated > 0 {
            *logit -= params.frequency_penalty * seen.generated as f32 + params.presence_penalty;
        }
    }
    let mut order: Vec<usize> = (0..adjusted.len()).collect();
    order.sort_by(|&a, &b| adjusted[b].partial_cmp(&adjusted[a]).unwrap().then(a.cmp(&b)));
    if params.temperature == 0.0 {
        return Naive { token: order[0] as u32, survivors: 1, margin: 1.0 };
    }
    let temperature = f64::from(params.temperature);
    let max = f64::from(adjusted[order[0]]);
    let weight = |i: usize| ((f64::from(adjusted[i]) - max) / temperature).exp();
    let mut kept = order.len();
    let extend_ties = |mut kept: usize| {
        while kept < order.len() && adjusted[order[kept]] == adjusted[order[kept - 1]] {
            kept += 1;
        }
        kept
    };
    if params.top_k > 0 {
        kept = extend_ties(kept.min(params.top_k as usize));
    }
    let mut margin = 1.0f64;
    if params.top_p < 1.0 {
        let total: f64 = order[..kept].iter().map(|&i| weight(i)).sum();
        let mut sum = 0.0;
        for (rank, &token) in order[..kept].iter().enumerate() {
            sum += weight(token);
            margin = margin.min((sum / total - f64::from(params.top_p)).abs());
            if sum / total >= f64::from(params.top_p) {
                kept = extend_ties(rank + 1).min(kept);
                break;
            }
        }
    }
    if params.min_p > 0.0 {
        let bound = max + temperature * f64::from(params.min_p).ln();
        kept = order[..kept].iter().filter(|&&i| f64::from(adjusted[i]) >= bound).count().max(1);
    }
    let score = |i: usize| {
        f64::from(adjusted[i]) / temperature + random::gumbel(random::token_word(params.seed, position, i as u32))
    };
    let mut best = order[0];
    for &i in &order[..kept] {
        if score(i) > score(best) || (score(i) == score(best) && i < best) {
            best = i;
        }
    }
    Naive { token: best as u32, survivors: kept, margin }
}

#[test]
fn every_choice_equals_the_naive_one() {
    let mut compared = 0;
    let mut narrowed = 0;
    for seed in 0..6000u64 {
        let mut random = Random(seed);
        let logits = random_logits(&mut random);
        let vocab = logits.len();
        let penalties = random.below(3) == 0;
        let params = SamplingParams {
            temperature: random.pick(&[0.0, 0.3, 0.7, 1.0, 1.0, 2.0]),
            top_k: random.pick(&[0, 0, 1, 2, 5, 40, 300, 100_000]),
            top_p: random.pick(&[1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.95, 0.999]),
            min_p: random.pick(&[0.0, 0.0, 0.05, 0.5, 1.0]),
            presence_penalty: if penalties { random.pick(&[0.0, 0.6, -0.4]) } else { 0.0 },
            frequency_penalty: if penalties { random.pick(&[0.0, 0.3, 1.5]) } else { 0.0 },
            repetition_penalty: if penalties { random.pick(&[1.0, 1.3, 0.8]) } else { 1.0 },
            logit_bias: (0..random.below(3)).map(|_| (random.below(vocab) as u32, random.pick(&[1.5, -4.0]))).collect(),
            seed: random.word(),
            logprobs: None,
            min_tokens: random.pick(&[0, 0, 4]),
            suppressed: if vocab > 3 { vec![random.below(vocab) as u32] } else { Vec::new() },
        };
        let prompt: Vec<u32> = (0..random.below(20)).map(|_| random.below(vocab) as u32).collect();
        let generated: Vec<u32> = (0..random.below(8)).map(|_| random.below(vocab) as u32).collect();
        let history = History::new(&prompt, &generated);
        let position = (prompt.len() + generated.len()) as u32;
        let got = Sampler::new(vocab).sample(&logits, &params, &history, position);
        let Ok(got) = got else {
            // Bias or suppression took the only token there was.
            assert!(logits.iter().filter(|x| x.is_finite()).count() <= 1, "seed {seed}: {params:?}");
            continue;
        };
        let want = naive(&logits, &params, &history, position);
        if want.margin < 1e-6 {
            continue;
        }
        assert_eq!(got.token, want.token, "seed {seed}: {params:?}, {} survivors of {vocab}", want.survivors);
        compared += 1;
        narrowed += u32::from(want.survivors > 1 && want.survivors < vocab);
    }
    assert!(compared > 5000 && narrowed > 1000, "the cases became too easy: {compared} compared, {narrowed} narrowed");
}

#[test]
fn logprobs_equal_the_naive_ones() {
    for seed in 0..1500u64 {
        let mut random = Random(seed ^ 0xABCD);
        let logits = random_logits(&mut random);
        let token = random.below(logits.len()) as u32;
        let top = random.pick(&[0u8, 1, 5, 20, 254]);
        let got = logprobs_of(&logits, token, top).unwrap();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = f64::from(max) + logits.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum::<f64>().ln();
        let close = |got: f32, logit: f32| {
            let want = f64::from(logit) - log_sum;
            f64::from(got) == want || (f64::from(got) - want).abs() <= 1e-6 + 2e-7 * want.abs()
        };
        assert!(close(got.logprob, logits[token as usize]), "seed {seed}");
        let rank = 1 + logits.iter().filter(|&&x| x > logits[token as usize]).count();
        assert_eq!(got.rank as usize, rank, "seed {seed}");
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        order.truncate(usize::from(top));
        assert_eq!(got.top.iter().map(|&(id, _)| id as usize).collect::<Vec<_>>(), order, "seed {seed}");
        assert!(got.top.iter().all(|&(id, logprob)| close(logprob, logits[id as usize])), "seed {seed}");
    }
}

/// Pearson's statistic over fixed seeds: the number below is the 99.9 % point for 15 degrees of freedom.
#[test]
fn draws_follow_the_softmax() {
    let logits: Vec<f32> = (0..16).map(|i| (i as f32 * 0.37).sin() * 1.5).collect();
    let mut sampler = Sampler::new(16);
    for (temperature, top_k) in [(1.0f32, 0), (0.6, 0), (1.7, 9)] {
        for vary_position in [true, false] {
            let mut counts = [0u32; 16];
            let draws = 40_000u32;
            for draw in 0..draws {
                let (seed, position) = if vary_position { (7, draw) } else { (u64::from(draw) << 20, 3) };
                let params = SamplingParams { temperature, top_k, seed, ..SamplingParams::default() };
                let token = sampler.sample(&logits, &params, &History::default(), position).unwrap().token;
                counts[token as usize] += 1;
            }
            let mut order: Vec<usize> = (0..16).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(if top_k == 0 { 16 } else { top_k as usize });
            let weight = |i: usize| (f64::from(logits[i]) / f64::from(temperature)).exp();
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let statistic: f64 = order
                .iter()
                .map(|&i| {
                    let expected = f64::from(draws) * weight(i) / total;
                    (f64::from(counts[i]) - expected).powi(2) / expected
                })
                .sum();
            assert!(statistic < 37.7, "temperature {temperature}, top_k {top_k}: chi-square {statistic}: {counts:?}");
            assert_eq!(counts.iter().sum::<u32>(), order.iter().map(|&i| counts[i]).sum::<u32>());
        }
    }
}

/// A large flat vocabulary, where the winner's Gumbel number lies far in the tail and the cheap bound decides most.
#[test]
fn draws_over_a_flat_vocabulary_are_uniform() {
    let logits = vec![0.25f32; 50_000];
    let mut sampler = Sampler::new(logits.len());
    let mut counts = [0u32; 20];
    let draws = 2_000u32;
    for seed in 0..draws {
        let params = SamplingParams { seed: u64::from(seed), ..SamplingParams::default() };
        let token = sampler.sample(&logits, &params, &History::default(), 11).unwrap().token;
        counts[token as usize / 2500] += 1;
    }
    let expected = f64::from(draws) / 20.0;
    let statistic: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
    assert!(statistic < 43.8, "chi-square of 19 degrees of freedom: {statistic}: {counts:?}");
}

#[test]
fn damaged_logits_are_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 1, 31, 32, 63, 99] {
            let mut logits = vec![1.0f32; 100];
            logits[at] = bad;
            assert_eq!(argmax(&logits), Err(NonFinite), "{bad} at {at}");
            assert_eq!(logprobs_of(&logits, 0, 3), Err(NonFinite), "{bad} at {at}");
        }
    }
    assert_eq!(argmax(&[f32::NEG_INFINITY; 40]), Err(NonFinite));
    assert_eq!(argmax(&[]), Err(NonFinite));
    assert_eq!(argmax(&[f32::NEG_INFINITY, -1e38, f32::MIN]), Ok(1));
}

#[test]
fn min_tokens_holds_the_end_back() {
    let logits = [5.0, 9.0, 1.0];
    let params = SamplingParams {
        temperature: 0.0,
        min_tokens: 2,
        suppressed: vec![1],
        logprobs: Some(1),
        ..Default::default()
    };
    let mut sampler = Sampler::new(3);
    let mut history = History::new(&[2], &[0]);
    let held = sampler.sample(&logits, &params, &history, 2).unwrap();
    assert_eq!(held.token, 0);
    // Log-probabilities stay those of the raw logits.
    assert_eq!(held.logprobs.unwrap().top[0].0, 1);
    history.push(0);
    assert_eq!(sampler.sample(&logits, &params, &history, 3).unwrap().token, 1);
}
