//! The client's scenario: who, what for, what is required, what it may cost. The only numbers of a report that were not
//! measured; each is shown as the client's.

use crate::{
    document::{Document, Kind},
    error::Error,
    figure::{Figure, Unit},
    metric,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, path::Path};

/// The id under which the report's numbers refer to the scenario.
pub const ID: &str = "S";

/// A scenario, and the document its numbers refer to.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it says.
    pub content: Content,
    /// The same as JSON.
    pub document: Document,
}

/// What a scenario says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Who and what for.
    pub client: Client,
    /// Limits by metric, e.g. `ttft_p95_ms = 500`; see [`requirement_ids`].
    #[serde(default)]
    pub requirements: BTreeMap<String, f64>,
    /// What is to be served.
    pub demand: Option<Demand>,
    /// What it may cost.
    pub budget: Option<Budget>,
    /// Machines on which the measured speed is to be had, with their prices.
    #[serde(default)]
    pub hardware: Vec<Hardware>,
    /// What a provider charges for the same tokens.
    pub api: Option<Api>,
}

/// Who and what for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The company.
    pub company: String,
    /// What it does with the model.
    pub use_case: String,
    /// Where things stood, in the client's words.
    pub situation: Option<String>,
    /// What `--before` is called.
    #[serde(default = "before")]
    pub before: String,
    /// What `--after` is called.
    #[serde(default = "after")]
    pub after: String,
    /// The currency of every price, e.g. `USD`.
    #[serde(default = "currency")]
    pub currency: String,
}

/// What is to be served.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// Requests on a mean day.
    pub requests_per_day: f64,
    /// Tokens of a prompt, on average.
    pub input_tokens: f64,
    /// Tokens of an answer, on average.
    pub output_tokens: f64,
    /// Load of the busiest hour over the mean one.
    pub peak_to_mean: f64,
    /// Utilisation that is planned at the peak.
    pub utilisation_max: f64,
}

/// What it may cost.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// For running it.
    pub per_month: Option<f64>,
    /// For the change itself, once.
    pub change_once: Option<f64>,
}

/// A machine and its price.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// For people.
    pub name: String,
    /// Rented: its price.
    pub rent_per_hour: Option<f64>,
    /// Owned: its price.
    pub purchase: Option<f64>,
    /// Owned: over how many years it is written off.
    pub amortisation_years: Option<f64>,
    /// Owned: what it draws under load.
    pub power_watts: Option<f64>,
    /// Owned: power of the building over power of the machine.
    pub power_usage_effectiveness: Option<f64>,
    /// Owned: price of a kilowatt-hour.
    pub price_per_kwh: Option<f64>,
    /// Owned: room, network, hands.
    pub hosting_per_month: Option<f64>,
}

/// What a provider charges.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// The provider and model.
    pub name: String,
    /// For a million prompt tokens.
    pub input_per_million: f64,
    /// For a million tokens of answers.
    pub output_per_million: f64,
}

/// A limit on failed and cut-off requests.
pub const FAILED_SHARE: &str = "failed_share";
/// A limit on how much perplexity may rise, as part of the one before.
pub const PERPLEXITY_INCREASE: &str = "perplexity_increase";

fn before() -> String {
    "before".to_owned()
}

fn after() -> String {
    "after".to_owned()
}

fn currency() -> String {
    "USD".to_owned()
}

/// What a requirement can be set on.
pub fn requirement_ids() -> impl Iterator<Item = &'static str> {
    metric::METRICS.iter().map(|metric| metric.id).chain([FAILED_SHARE, PERPLEXITY_INCREASE])
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, or has fields or values that cannot be.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| Error::Unreadable { path: shown.clone(), error })?;
        Self::parse(&shown, &text)
    }

    /// The same from its text.
    ///
    /// # Errors
    /// When it is no TOML, or has fields or values that cannot be.
    pub fn parse(path: &str, text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Scenario { path: path.to_owned(), reason };
        let content: Content = toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        content.check().map_err(wrong)?;
        let json = toml::from_str::<serde_json::Value>(text).map_err(|error| wrong(error.to_string()))?;
        let sha256 = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let document = Document { id: ID.to_owned(), path: path.to_owned(), sha256, kind: Kind::Scenario, json };
        Ok(Self { content, document })
    }

    /// A number of the scenario.
    pub fn number(&self, pointer: &str, unit: Unit) -> Option<Figure> {
        self.document.number(pointer, unit)
    }
}

impl Content {
    fn check(&self) -> Result<(), String> {
        for (name, &limit) in &self.requirements {
            if !requirement_ids().any(|id| id == name) {
                let known: Vec<&str> = requirement_ids().collect();
                return Err(format!("requirements.{name} is not known; known: {}", known.join(", ")));
            }
            positive(
                &format!("requirements.{name}"),
                Some(limit),
                name == FAILED_SHARE || name == PERPLEXITY_INCREASE,
            )?;
        }
        if let Some(demand) = &self.demand {
            for (name, value) in [
                ("requests_per_day", demand.requests_per_day),
                ("input_tokens", demand.input_tokens),
                ("output_tokens", demand.output_tokens),
            ] {
                positive(&format!("demand.{name}"), Some(value), false)?;
            }
            if !(1.0..=1000.0).contains(&demand.peak_to_mean) {
                return Err(format!("demand.peak_to_mean is {}; it lies between 1 and 1000", demand.peak_to_mean));
            }
            if !(0.01..=1.0).contains(&demand.utilisation_max) {
                return Err(format!(
                    "demand.utilisation_max is {}; it lies between 0.01 and 1",
                    demand.utilisation_max
                ));
            }
        }
        if let Some(budget) = &self.budget {
            positive("budget.per_month", budget.per_month, false)?;
            positive("budget.change_once", budget.change_once, true)?;
        }
        if let Some(api) = &self.api {
            positive("api.input_per_million", Some(api.input_per_million), true)?;
            positive("api.output_per_million", Some(api.output_per_million), true)?;
        }
        self.hardware.iter().try_for_each(Hardware::check)
    }
}

impl Hardware {
    /// It is bought, not rented.
    pub fn is_owned(&self) -> bool {
        self.purchase.is_some()
    }

    fn check(&self) -> Result<(), String> {
        let at = |field: &str| format!("hardware {:?}: {field}", self.name);
        let owned = [
            ("amortisation_years", self.amortisation_years),
            ("power_watts", self.power_watts),
            ("power_usage_effectiveness", self.power_usage_effectiveness),
            ("price_per_kwh", self.price_per_kwh),
            ("hosting_per_month", self.hosting_per_month),
        ];
        if self.rent_per_hour.is_some() == self.purchase.is_some() {
            return Err(at("set either rent_per_hour or purchase"));
        }
        positive(&at("rent_per_hour"), self.rent_per_hour, false)?;
        positive(&at("purchase"), self.purchase, false)?;
        for (name, value) in owned {
            positive(&at(name), value, name == "hosting_per_month")?;
            match (self.is_owned(), value) {
                (false, Some(_)) => {
                    return Err(at(&format!("{name} belongs to owned hardware; remove it, or set purchase")));
                }
                (true, None) if name != "hosting_per_month" => {
                    return Err(at(&format!("{name} is missing; owned hardware needs it")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn positive(name: &str, value: Option<f64>, or_zero: bool) -> Result<(), String> {
    match value {
        Some(value) if !value.is_finite() || value < 0.0 || (value == 0.0 && !or_zero) || value > 1e15 => {
            Err(format!("{name} is {value}; it is a number {} 0", if or_zero { "of at least" } else { "above" }))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let text = format!("[client]\ncompany = \"C\"\nuse_case = \"U\"\n{text}");
        let found = match Scenario::parse("s.toml", &text) {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(found.contains(expected), "{text}\n{found}");
    }

    #[test]
    fn what_is_wrong_is_said_by_its_name() {
        check("", "fine");
        check("[requirements]\nttft_p95_ms = 500", "fine");
        check("[requirements]\nttft_p95 = 500", "requirements.ttft_p95 is not known; known: output_tokens_per_s");
        check("[requirements]\nttft_p95_ms = 0", "requirements.ttft_p95_ms is 0; it is a number above 0");
        check("[requirements]\nfailed_share = 0", "fine");
        check("[requirements]\nttft_p95_ms = nan", "requirements.ttft_p95_ms is NaN");
        check("[clients]\na = 1", "unknown field `clients`");
        check("[[hardware]]\nname = \"H\"", "hardware \"H\": set either rent_per_hour or purchase");
        check("[[hardware]]\nname = \"H\"\npurchase = 10", "amortisation_years is missing");
        check(
            "[[hardware]]\nname = \"H\"\nrent_per_hour = 1\npower_watts = 3",
            "power_watts belongs to owned hardware",
        );
    }

    #[test]
    fn numbers_point_into_the_file() {
        let text = "[client]\ncompany = \"C\"\nuse_case = \"U\"\n[[hardware]]\nname = \"H\"\nrent_per_hour = 2.5\n";
        let scenario = Scenario::parse("s.toml", text).unwrap();
        let price = scenario.number("/hardware/0/rent_per_hour", Unit::Money).unwrap();
        assert_eq!((price.value, price.origin.leaves.first().unwrap().as_str()), (2.5, "S#/hardware/0/rent_per_hour"));
    }
}
