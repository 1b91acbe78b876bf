//! What tokens cost: hours of a machine, split between prompt and answer by the measured time of prefill and decode.
//!
//! The arithmetic is in plain functions of numbers; around it, the same with every number's origin.

use crate::{
    figure::{Figure, Unit},
    metric,
    run::Load,
    scenario::{Hardware, Scenario},
    side::{Point, Side},
};
use serde::Serialize;

/// Hours of a year; a month is its twelfth.
pub const HOURS_PER_YEAR: f64 = 8760.0;
/// Hours of a month.
pub const HOURS_PER_MONTH: f64 = HOURS_PER_YEAR / 12.0;
const SECONDS_PER_HOUR: f64 = 3600.0;
const SECONDS_PER_DAY: f64 = 86_400.0;
const MILLION: f64 = 1e6;

/// The rule by which time is split, as the report states it.
pub const SPLIT_RULE: &str = "Prefill's share of the time = prompt tokens/s at the sweet spot × seconds per prompt token (mean TTFT over mean \
prompt length with one client, where nothing else runs); the rest of the time is decode's. Both engines are split by the same \
definition, from the outside. Where the upper end of the share's 95 % interval reaches the whole, prompts were computed together and took less \
than they take alone: then nothing can be split, and costs are given by request and by token of any kind.";
/// Why a share that reaches the whole splits nothing.
const SHARE_UNKNOWN: &str = "prompt tokens/s times the time of a prompt token with one client reaches the whole of the time, so prompts were \
computed together and what they took is not told by their time alone";

/// Where the time of a machine goes at a level.
#[derive(Clone, Debug, Serialize)]
pub struct Split {
    /// Part of the time that prompts take.
    pub prefill_share: Figure,
    /// Machine seconds for a prompt token.
    pub input_token_s: Figure,
    /// Machine seconds for a token of an answer.
    pub output_token_s: Figure,
}

/// What a machine does in a second at a level.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Requests.
    pub requests: Figure,
    /// Tokens of prompts, where the server counted them.
    pub input: Option<Figure>,
    /// Tokens of answers.
    pub output: Figure,
}

/// One machine under the measured speed of one side.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Its name, by the scenario.
    pub hardware: String,
    /// `rented` or `owned`.
    pub kind: &'static str,
    /// What an hour costs.
    pub per_hour: Figure,
    /// A request as measured, when the machine is always busy.
    pub per_request: Figure,
    /// A million tokens as measured, prompts and answers together, when the machine is always busy; none where the server did not
    /// count prompt tokens.
    pub per_million: Option<Figure>,
    /// A million prompt tokens, when the machine is always busy; none where time is not split.
    pub input_per_million: Option<Figure>,
    /// A million tokens of answers, when the machine is always busy; none where time is not split.
    pub output_per_million: Option<Figure>,
    /// The scenario's demand on such machines; none where time is not split, for its lengths are others.
    pub demand: Option<DemandCost>,
    /// Utilisation above which the machine is cheaper than the provider.
    pub break_even_utilisation: Option<Figure>,
}

/// The scenario's demand on machines of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct DemandCost {
    /// Machines for the peak.
    pub machines: Figure,
    /// Mean part of the time they are busy.
    pub utilisation: Figure,
    /// What they cost a month.
    pub per_month: Figure,
    /// A million prompt tokens at that utilisation.
    pub input_per_million: Figure,
    /// A million tokens of answers at that utilisation.
    pub output_per_million: Figure,
    /// What the provider charges for the same tokens a month.
    pub api_per_month: Option<Figure>,
}

/// Price of an hour of owned hardware.
pub fn owned_per_hour(
    purchase: f64,
    years: f64,
    watts: f64,
    effectiveness: f64,
    per_kwh: f64,
    hosting_per_month: f64,
) -> f64 {
    purchase / (years * HOURS_PER_YEAR) + running_per_hour(watts, effectiveness, per_kwh, hosting_per_month)
}

/// What an hour of owned hardware costs beyond its purchase.
pub fn running_per_hour(watts: f64, effectiveness: f64, per_kwh: f64, hosting_per_month: f64) -> f64 {
    watts / 1000.0 * effectiveness * per_kwh + hosting_per_month / HOURS_PER_MONTH
}

/// Price of a million tokens of which each takes so many machine seconds.
pub fn per_million(per_hour: f64, token_s: f64, utilisation: f64) -> f64 {
    per_hour / SECONDS_PER_HOUR * token_s * MILLION / utilisation
}

/// Machines for a demand, and how busy they are on average: `busy_s_per_day` machine seconds a day, of which the busiest hour
/// has `peak_to_mean` times the mean and may take `utilisation_max` of the machines.
pub fn machines(busy_s_per_day: f64, peak_to_mean: f64, utilisation_max: f64) -> (f64, f64) {
    let mean = busy_s_per_day / SECONDS_PER_DAY;
    let machines = (mean * peak_to_mean / utilisation_max).ceil().max(1.0);
    (machines, mean / machines)
}

/// Utilisation at which a machine costs what a provider charges for the same tokens, by its prompt and output tokens per second.
pub fn break_even_utilisation(per_hour: f64, tokens_per_s: (f64, f64), api_per_million: (f64, f64)) -> f64 {
    // Tokens of an hour in which the machine is always busy, in the measured mix.
    let (input, output) = (tokens_per_s.0 * SECONDS_PER_HOUR, tokens_per_s.1 * SECONDS_PER_HOUR);
    per_hour * MILLION / (input * api_per_million.0 + output * api_per_million.1)
}

/// Months after which a purchase is paid by what is saved each month; none where nothing is saved.
pub fn payback_months(once: f64, saved_per_month: f64) -> Option<f64> {
    (saved_per_month > 0.0).then(|| once / saved_per_month)
}

/// What a side does in a second at a point; none where it answered nothing.
pub fn rates(side: &Side, point: &Point) -> Option<Rates> {
    let positive = |figure: &Figure| figure.value > 0.0;
    let requests =
        side.number(point, |level| level.number("/summary/throughput/requests_per_s", Unit::RequestsPerSecond));
    Some(Rates {
        requests: requests.filter(positive)?,
        input: side.number(point, |level| level.input_tokens_per_s()).filter(positive),
        output: side.metric(point, metric::OUTPUT).filter(positive)?,
    })
}

/// Splits the time of a side at a point, by its rates there.
///
/// # Errors
/// What is missing for it, in words.
pub fn split(side: &Side, rates: &Rates) -> Result<Split, &'static str> {
    let alone = side
        .point(&Load::Closed(1.0))
        .ok_or("no level with one client was measured, so the time of prefill is unknown")?;
    let number = |point, pointer, unit| side.number(point, |level| level.number(pointer, unit));
    let ttft = number(alone, "/summary/latency/ttft_ms/mean", Unit::Milliseconds);
    let ttft_high = number(alone, "/summary/latency/ttft_ms/mean_interval/1", Unit::Milliseconds);
    let ttft = ttft.ok_or("the level with one client has no TTFT (answers were not streamed, or none completed)")?;
    let length = number(alone, "/summary/prompts/counted_mean", Unit::Plain).filter(|length| length.value > 0.0);
    let length = length.ok_or("the server did not count prompt tokens")?;
    let input = rates.input.as_ref().ok_or("the server did not count prompt tokens")?;
    let output = &rates.output;

    let share_at = |ttft_ms: f64| input.value * ttft_ms / 1e3 / length.value;
    let share = share_at(ttft.value);
    if share >= 1.0 || ttft_high.is_some_and(|high| share_at(high.value) >= 1.0) {
        return Err(SHARE_UNKNOWN);
    }
    let rule = "prompt tokens/s × mean TTFT with one client / mean prompt length";
    let prefill_share = Figure::computed(share, Unit::Share, rule, &[input, &ttft, &length]);
    let input_token_s = share / input.value;
    let output_token_s = (1.0 - share) / output.value;
    Ok(Split {
        input_token_s: Figure::computed(
            input_token_s,
            Unit::Seconds,
            "prefill's share / prompt tokens/s",
            &[&prefill_share, input],
        ),
        output_token_s: Figure::computed(
            output_token_s,
            Unit::Seconds,
            "(1 − prefill's share) / output tokens/s",
            &[&prefill_share, output],
        ),
        prefill_share,
    })
}

/// Prices every machine of the scenario at the speed of one side.
pub fn costs(scenario: &Scenario, rates: &Rates, split: Option<&Split>) -> Vec<Cost> {
    let hardware = scenario.content.hardware.iter().enumerate();
    hardware.filter_map(|(index, hardware)| cost(scenario, index, hardware, rates, split)).collect()
}

fn cost(scenario: &Scenario, index: usize, hardware: &Hardware, rates: &Rates, split: Option<&Split>) -> Option<Cost> {
    let per_hour = per_hour(scenario, index, hardware)?;
    let (requests, output) = (&rates.requests, &rates.output);
    let per_request = Figure::computed(
        per_hour.value / SECONDS_PER_HOUR / requests.value,
        Unit::Money,
        "price of an hour / 3600 / requests/s",
        &[&per_hour, requests],
    );
    let in_all = rates.input.as_ref().map(|input| {
        let value = per_million(per_hour.value, 1.0 / (input.value + output.value), 1.0);
        let rule = "price of an hour / 3600 / (prompt + output tokens/s) × 1,000,000";
        Figure::computed(value, Unit::Money, rule, &[&per_hour, input, output])
    });
    let million = |token_s: &Figure| {
        let value = per_million(per_hour.value, token_s.value, 1.0);
        let rule = "price of an hour / 3600 × machine seconds per token × 1,000,000";
        Figure::computed(value, Unit::Money, rule, &[&per_hour, token_s])
    };
    let api = api(scenario);
    let break_even = api.as_ref().zip(rates.input.as_ref()).map(|((input_price, output_price), input)| {
        let prices = (input_price.value, output_price.value);
        let value = break_even_utilisation(per_hour.value, (input.value, output.value), prices);
        let rule = "price of an hour / what the provider charges for the tokens of a busy hour";
        Figure::computed(value, Unit::Share, rule, &[&per_hour, input, output, input_price, output_price])
    });
    Some(Cost {
        hardware: hardware.name.clone(),
        kind: if hardware.is_owned() { "owned" } else { "rented" },
        per_request,
        per_million: in_all,
        input_per_million: split.map(|split| million(&split.input_token_s)),
        output_per_million: split.map(|split| million(&split.output_token_s)),
        demand: split.and_then(|split| demand_cost(scenario, &per_hour, split, api.as_ref())),
        break_even_utilisation: break_even,
        per_hour,
    })
}

fn demand_cost(
    scenario: &Scenario,
    per_hour: &Figure,
    split: &Split,
    api: Option<&(Figure, Figure)>,
) -> Option<DemandCost> {
    scenario.content.demand.as_ref()?;
    let of = |field: &str, unit| scenario.number(&format!("/demand/{field}"), unit);
    let requests = of("requests_per_day", Unit::Count)?;
    let (input, output) = (of("input_tokens", Unit::Plain)?, of("output_tokens", Unit::Plain)?);
    let (peak, most) = (of("peak_to_mean", Unit::Ratio)?, of("utilisation_max", Unit::Share)?);

    let busy_s = requests.value * (input.value * split.input_token_s.value + output.value * split.output_token_s.value);
    let (count, utilisation) = machines(busy_s, peak.value, most.value);
    let from = [&requests, &input, &output, &split.input_token_s, &split.output_token_s, &peak, &most];
    let machines = Figure::computed(
        count,
        Unit::Count,
        "machine seconds a day / 86,400 × peak / planned utilisation, rounded up",
        &from,
    );
    let utilisation = Figure::computed(utilisation, Unit::Share, "machine seconds a day / 86,400 / machines", &from);
    let million = |token_s: &Figure| {
        let value = per_million(per_hour.value, token_s.value, utilisation.value);
        let rule = "price of an hour / 3600 × machine seconds per token × 1,000,000 / utilisation";
        Figure::computed(value, Unit::Money, rule, &[per_hour, token_s, &utilisation])
    };
    let api_per_month = api.map(|(input_price, output_price)| {
        let month = requests.value * HOURS_PER_MONTH / 24.0 / MILLION;
        let value = month * (input.value * input_price.value + output.value * output_price.value);
        let rule = "tokens of a month / 1,000,000 × the provider's prices";
        Figure::computed(value, Unit::Money, rule, &[&requests, &input, &output, input_price, output_price])
    });
    Some(DemandCost {
        per_month: Figure::computed(
            count * per_hour.value * HOURS_PER_MONTH,
            Unit::Money,
            "machines × price of an hour × 730",
            &[&machines, per_hour],
        ),
        input_per_million: million(&split.input_token_s),
        output_per_million: million(&split.output_token_s),
        machines,
        utilisation,
        api_per_month,
    })
}

/// The price of an hour of a machine of the scenario.
fn per_hour(scenario: &Scenario, index: usize, hardware: &Hardware) -> Option<Figure> {
    let of = |field: &str, unit| scenario.number(&format!("/hardware/{index}/{field}"), unit);
    if !hardware.is_owned() {
        return of("rent_per_hour", Unit::Money);
    }
    let (purchase, years) = (of("purchase", Unit::Money)?, of("amortisation_years", Unit::Plain)?);
    let running = running(scenario, index)?;
    let value = purchase.value / (years.value * HOURS_PER_YEAR) + running.value;
    let rule = "purchase / (years × 8,760) + running cost of an hour";
    Some(Figure::computed(value, Unit::Money, rule, &[&purchase, &years, &running]))
}

/// What an hour of an owned machine costs beyond its purchase.
fn running(scenario: &Scenario, index: usize) -> Option<Figure> {
    let of = |field: &str, unit| scenario.number(&format!("/hardware/{index}/{field}"), unit);
    let (watts, effectiveness) = (of("power_watts", Unit::Watts)?, of("power_usage_effectiveness", Unit::Plain)?);
    let (per_kwh, hosting) = (of("price_per_kwh", Unit::Money)?, of("hosting_per_month", Unit::Money));
    let hosting_value = hosting.as_ref().map_or(0.0, |hosting| hosting.value);
    let value = running_per_hour(watts.value, effectiveness.value, per_kwh.value, hosting_value);
    let rule = "W / 1000 × power usage effectiveness × price of a kWh + hosting / 730";
    let mut from = vec![&watts, &effectiveness, &per_kwh];
    from.extend(&hosting);
    Some(Figure::computed(value, Unit::Money, rule, &from))
}

/// Months after which an owned machine is cheaper than each rented one: owned, rented, months (none: never).
pub fn own_or_rent(scenario: &Scenario) -> Vec<(String, String, Option<Figure>)> {
    let hardware = || scenario.content.hardware.iter().enumerate();
    let mut all = Vec::new();
    for (owned, own) in hardware().filter(|(_, hardware)| hardware.is_owned()) {
        for (rented, rent) in hardware().filter(|(_, hardware)| !hardware.is_owned()) {
            let purchase = scenario.number(&format!("/hardware/{owned}/purchase"), Unit::Money);
            let price = scenario.number(&format!("/hardware/{rented}/rent_per_hour"), Unit::Money);
            let (Some(purchase), Some(price), Some(running)) = (purchase, price, running(scenario, owned)) else {
                continue;
            };
            let saved = (price.value - running.value) * HOURS_PER_MONTH;
            let months = payback_months(purchase.value, saved).map(|months| {
                let rule = "purchase / ((rent of an hour − running cost of an hour) × 730)";
                Figure::computed(months, Unit::Months, rule, &[&purchase, &price, &running])
            });
            all.push((own.name.clone(), rent.name.clone(), months));
        }
    }
    all
}

fn api(scenario: &Scenario) -> Option<(Figure, Figure)> {
    let of = |field: &str| scenario.number(&format!("/api/{field}"), Unit::Money);
    let (input, output) = (of("input_per_million")?, of("output_per_million")?);
    (input.value + output.value > 0.0).then_some((input, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found}, expected {expected}");
    }

    #[test]
    fn an_owned_hour_is_purchase_power_and_hosting() {
        // 26,280 over three years of 8,760 hours is 1 an hour; 500 W × 1.2 at 0.25 is 0.15; 73 a month is 0.1.
        near(owned_per_hour(26_280.0, 3.0, 500.0, 1.2, 0.25, 73.0), 1.25);
        near(running_per_hour(450.0, 1.0, 0.15, 0.0), 0.0675);
    }

    #[test]
    fn a_million_tokens_cost_the_time_they_take() {
        // 0.44 an hour at 150 tok/s and nothing else: 540,000 tokens an hour.
        near(per_million(0.44, 1.0 / 150.0, 1.0), 0.44 / 0.54);
        // Half of the time idle doubles it.
        near(per_million(0.44, 1.0 / 150.0, 0.5), 0.88 / 0.54);
        // The split adds up: an hour's tokens cost an hour. 25 % prefill at 1000 tok/s in, 75 % decode at 300 tok/s out.
        let (input_s, output_s) = (0.25 / 1000.0, 0.75 / 300.0);
        let hour = 3.6 * per_million(2.0, input_s, 1.0) + 1.08 * per_million(2.0, output_s, 1.0);
        near(hour, 2.0);
    }

    #[test]
    fn machines_carry_the_peak() {
        // 108,000 busy seconds a day are 1.25 machines; a peak of 2 at 80 % needs 3.125.
        let (count, utilisation) = machines(108_000.0, 2.0, 0.8);
        near(count, 4.0);
        near(utilisation, 0.3125);
        assert_eq!(machines(1.0, 1.0, 1.0).0, 1.0);
    }

    #[test]
    fn break_evens_are_where_both_cost_the_same() {
        // Always busy: 3.6 M tokens in and 1.08 M out an hour; at 0.1 and 0.6 a million the provider takes 1.008.
        near(break_even_utilisation(0.504, (1000.0, 300.0), (0.1, 0.6)), 0.5);
        assert_eq!(payback_months(1000.0, 250.0), Some(4.0));
        assert_eq!(payback_months(1000.0, 0.0), None);
        assert_eq!(payback_months(1000.0, -5.0), None);
    }
}
