//! Any text is a scheduler's configuration, of which noise levels are made, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::sampling::SchedulerConfig;

fuzz_target!(|text: &str| {
    let Ok(config) = SchedulerConfig::from_json(text, "fuzz") else { return };
    let _ = (config.check(), config.sampler(), config.prediction(), config.spacing(), config.sigma_schedule(), config.levels());
});
