//! The NVIDIA GPUs of this machine while something runs, by NVML, which is loaded if it is there.

use crate::record::Nanos;
use nvml_wrapper::{
    Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MIB: f64 = (1 << 20) as f64;

/// The GPUs there are, or why none can be seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpus {
    /// Why there is nothing to tell; null where there is.
    pub absent: Option<String>,
    /// The driver's version.
    pub driver: Option<String>,
    /// One for each.
    pub devices: Vec<GpuDevice>,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuDevice {
    /// As NVML counts.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its memory.
    pub memory_mib: Option<f64>,
    /// The most power it may draw now.
    pub power_limit_w: Option<f64>,
}

/// One GPU at one moment; none is what it does not tell.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GpuSample {
    pub(crate) index: u32,
    /// When.
    pub(crate) at: Nanos,
    /// Share of the time in which a kernel ran, in percent.
    pub(crate) utilisation: Option<f64>,
    pub(crate) memory_used_mib: Option<f64>,
    pub(crate) power_w: Option<f64>,
    /// Since the driver was loaded.
    pub(crate) energy_j: Option<f64>,
    pub(crate) sm_clock_mhz: Option<f64>,
    pub(crate) temperature_c: Option<f64>,
    /// What holds its clocks back.
    pub(crate) throttled: Vec<&'static str>,
}

/// One GPU during a level; null is what it did not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuSummary {
    /// As NVML counts.
    pub index: u32,
    /// How often it was looked at.
    pub samples: u64,
    /// Share of the time in which a kernel ran, in percent: mean.
    pub utilisation_mean: Option<f64>,
    /// Most memory in use by anyone.
    pub memory_used_max_mib: Option<f64>,
    /// Mean power: energy over time where the GPU counts energy, since what it tells as its power is a mean over the last
    /// second or so; else the mean of that.
    pub power_mean_w: Option<f64>,
    /// Energy from the first sample to the last.
    pub energy_j: Option<f64>,
    /// Lowest SM clock.
    pub sm_clock_min_mhz: Option<f64>,
    /// Mean SM clock.
    pub sm_clock_mean_mhz: Option<f64>,
    /// Highest temperature.
    pub temperature_max_c: Option<f64>,
    /// Share of samples at which clocks were held back, by reason; idleness is none.
    pub throttled: BTreeMap<String, f64>,
}

/// NVML, if it could be loaded.
pub(crate) struct GpuWatch {
    nvml: Option<Nvml>,
    pub(crate) gpus: Gpus,
}

impl GpuWatch {
    pub(crate) fn open() -> Self {
        let nvml = match Nvml::init() {
            Ok(nvml) => nvml,
            Err(error) => {
                let absent = Some(format!("NVML: {error}"));
                return Self { nvml: None, gpus: Gpus { absent, ..Gpus::default() } };
            }
        };
        let devices = (0..nvml.device_count().unwrap_or(0)).filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            Some(GpuDevice {
                index,
                name: device.name().unwrap_or_default(),
                memory_mib: device.memory_info().ok().map(|memory| memory.total as f64 / MIB),
                power_limit_w: device.enforced_power_limit().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            })
        });
        let devices: Vec<_> = devices.collect();
        let absent = devices.is_empty().then(|| "NVML sees no GPU".to_owned());
        let gpus = Gpus { absent, driver: nvml.sys_driver_version().ok(), devices };
        Self { nvml: Some(nvml), gpus }
    }

    /// Looks at every GPU.
    pub(crate) fn sample(&self, at: Nanos) -> Vec<GpuSample> {
        let Some(nvml) = &self.nvml else { return Vec::new() };
        let samples = self.gpus.devices.iter().filter_map(|known| {
            let device = nvml.device_by_index(known.index).ok()?;
            let reasons = device.current_throttle_reasons().ok().unwrap_or(ThrottleReasons::empty());
            Some(GpuSample {
                index: known.index,
                at,
                utilisation: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu)),
                memory_used_mib: device.memory_info().ok().map(|memory| memory.used as f64 / MIB),
                power_w: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
                energy_j: device.total_energy_consumption().ok().map(|millijoules| millijoules as f64 / 1e3),
                sm_clock_mhz: device.clock_info(Clock::SM).ok().map(f64::from),
                temperature_c: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
                throttled: names(reasons),
            })
        });
        samples.collect()
    }
}

fn names(reasons: ThrottleReasons) -> Vec<&'static str> {
    let all = [
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
        (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync_boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
    ];
    all.into_iter().filter(|&(reason, _)| reasons.contains(reason)).map(|(_, name)| name).collect()
}

impl GpuSample {
    /// What it tells, by name.
    pub(crate) fn values(&self) -> BTreeMap<String, f64> {
        let known = [
            ("utilisation", self.utilisation),
            ("memory_used_mib", self.memory_used_mib),
            ("power_w", self.power_w),
            ("energy_j", self.energy_j),
            ("sm_clock_mhz", self.sm_clock_mhz),
            ("temperature_c", self.temperature_c),
        ];
        let index = self.index;
        let numbers = known.into_iter().filter_map(|(name, value)| Some((format!("gpu{index}.{name}"), value?)));
        numbers.chain(self.throttled.iter().map(|reason| (format!("gpu{index}.throttled.{reason}"), 1.0))).collect()
    }
}

impl GpuSummary {
    /// Each GPU's samples in numbers.
    pub(crate) fn of<'a>(samples: impl Iterator<Item = &'a GpuSample>) -> Vec<Self> {
        let mut by_gpu: BTreeMap<u32, Vec<&GpuSample>> = BTreeMap::new();
        samples.for_each(|sample| by_gpu.entry(sample.index).or_default().push(sample));
        let summaries = by_gpu.into_iter().map(|(index, samples)| {
            let values = |get: fn(&GpuSample) -> Option<f64>| samples.iter().filter_map(move |sample| get(sample));
            let mean = |get| {
                let values: Vec<f64> = values(get).collect();
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            };
            let counted: Vec<(Nanos, f64)> =
                samples.iter().filter_map(|sample| Some((sample.at, sample.energy_j?))).collect();
            // From the first sample to the last: joules and seconds.
            let energy = counted
                .first()
                .zip(counted.last())
                .map(|(first, last)| (last.1 - first.1, last.0.saturating_sub(first.0) as f64 / 1e9));
            let by_energy = energy.filter(|&(_, seconds)| seconds > 0.0).map(|(joules, seconds)| joules / seconds);
            let mut throttled = BTreeMap::new();
            for reason in samples.iter().flat_map(|sample| &sample.throttled) {
                *throttled.entry((*reason).to_owned()).or_insert(0.0) += 1.0 / samples.len() as f64;
            }
            Self {
                index,
                samples: samples.len() as u64,
                utilisation_mean: mean(|sample| sample.utilisation),
                memory_used_max_mib: values(|sample| sample.memory_used_mib).reduce(f64::max),
                power_mean_w: by_energy.or_else(|| mean(|sample| sample.power_w)),
                energy_j: energy.map(|(joules, _)| joules),
                sm_clock_min_mhz: values(|sample| sample.sm_clock_mhz).reduce(f64::min),
                sm_clock_mean_mhz: mean(|sample| sample.sm_clock_mhz),
                temperature_max_c: values(|sample| sample.temperature_c).reduce(f64::max),
                throttled,
            }
        });
        summaries.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_to_means_and_extremes_of_what_was_told() {
        let sample = |index, at_s: u64, power_w, energy_j, throttled: &[&'static str]| GpuSample {
            index,
            at: at_s * 1_000_000_000,
            power_w,
            energy_j,
            throttled: throttled.to_vec(),
            ..GpuSample::default()
        };
        let samples = [
            sample(0, 1, Some(100.0), Some(1000.0), &[]),
            sample(1, 1, None, None, &[]),
            sample(2, 1, Some(100.0), None, &[]),
            sample(0, 3, Some(300.0), Some(1500.0), &["sw_power_cap"]),
            sample(2, 3, Some(300.0), None, &[]),
        ];
        let [first, second, third] = &GpuSummary::of(samples.iter())[..] else { panic!("three") };
        // 500 J in 2 s, whatever the two readings say; without a counter of energy their mean.
        assert_eq!((first.samples, first.power_mean_w, first.energy_j), (2, Some(250.0), Some(500.0)));
        assert_eq!((third.power_mean_w, third.energy_j), (Some(200.0), None));
        assert_eq!(first.throttled, BTreeMap::from([("sw_power_cap".to_owned(), 0.5)]));
        assert_eq!((second.index, second.power_mean_w, second.energy_j), (1, None, None));
        assert_eq!(samples[3].values()["gpu0.throttled.sw_power_cap"], 1.0);
    }

    #[test]
    fn a_machine_without_gpus_says_so() {
        let watch = GpuWatch::open();
        assert_eq!(watch.gpus.absent.is_some(), watch.gpus.devices.is_empty(), "{:?}", watch.gpus);
        assert_eq!(watch.sample(0).len(), watch.gpus.devices.len());
    }
}
