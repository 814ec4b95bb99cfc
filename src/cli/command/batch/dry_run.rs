//! `--dry-run`: what would be generated, in which order, and what it will take.

use super::resolve::UncachedModel;
use crate::batch::{Job, Ledger, groups, sizes};
use crate::bench::{generating_speed, image_flop};
use crate::cli::model::Models;
use crate::cli::terminal::answer;
use crate::cli::terminal::show::{bytes, several};
use crate::device::place;
use crate::settings::{HiresPass, Request, Value};
use crate::{Error, Result};
use std::collections::HashMap;

/// Says the plan on standard output.
pub(super) fn say(
    jobs: Vec<Job>,
    models: &Models,
    absent: &[UncachedModel],
    ledger: Option<&Ledger>,
    there: usize,
    failed: usize,
) -> Result<()> {
    for UncachedModel { model, files, images: wanted, .. } in absent {
        let known: u64 = files.iter().filter_map(|file| file.size).sum();
        let least = if files.iter().all(|file| file.size.is_some()) { "" } else { "at least " };
        answer(&format!("{model} is not here; {least}{} would be fetched for {}", bytes(known), several(*wanted, "image")))?;
        for file in files {
            answer(&format!("  {}{}", file.path, file.size.map(|size| format!(", {}", bytes(size))).unwrap_or_default()))?;
        }
    }
    let open = jobs.len();
    let mut speeds: HashMap<(String, &'static str), Option<f64>> = HashMap::new();
    let (mut seconds, mut memory, mut known) = (Some(0.0), 0, true);
    let mut last = None;
    for group in groups(jobs) {
        let Some(first) = group.first() else { continue };
        let opened = models.get(first.model).ok_or_else(|| Error::Model("a model that was not opened".into()))?;
        let spec = opened.checkpoint.spec();
        if last.replace(first.model) != Some(first.model) {
            let device = place(opened.device());
            answer(&format!("{} ({}), {} on {device}", opened.label, spec.family.name(), first.generator.dtype.as_str()))?;
        }
        let request = &first.request;
        let footprint = opened.footprint(request);
        let sizes = sizes(&footprint, group.len(), request.output.batch_size.0);
        let work: f64 =
            group.iter().map(|job| (job.request.canvas.width * job.request.canvas.height * job.request.sampling.steps) as f64).sum();
        // What was measured is better than what was counted.
        let history =
            ledger.and_then(|ledger| ledger.history(&opened.label, first.generator.dtype.as_str())).filter(|history| history.work > 0.0);
        let took = match history {
            Some(history) => Some(history.seconds * work / history.work),
            None => {
                known = false;
                let device = format!("{:?}", opened.device().location());
                let speed = speeds
                    .entry((device, first.generator.dtype.as_str()))
                    .or_insert_with(|| generating_speed(opened.device(), opened.dtype).ok());
                image_flop(spec, request).ok().zip(*speed).map(|(flop, speed)| flop * group.len() as f64 / speed)
            }
        };
        memory = memory.max(footprint.total(sizes));
        seconds = seconds.zip(took).map(|(sum, took)| sum + took);
        let (sampler, guided) = (request.scheduler.sampler()?.name(), if request.is_guided() { "guided" } else { "not guided" });
        answer(&format!(
            "  {}x{}, {} steps of {sampler}{}, {guided}: {}, {} at once{}",
            request.canvas.width,
            request.canvas.height,
            request.sampling.steps,
            passes(request)?,
            several(group.len(), "image"),
            sizes.batch * sizes.at_once,
            took.map(|took| format!(", about {}", duration(took))).unwrap_or_default()
        ))?;
        if let Some(excess) = opened.excess(request) {
            answer(&format!("    {excess}"))?;
        }
    }
    let mut parts = vec![format!("{} to generate", several(open, "image"))];
    let unplanned: usize = absent.iter().map(|absent| absent.images).sum();
    parts.extend((unplanned > 0).then(|| format!("{unplanned} of models that are not here, and are planned when they are")));
    parts.extend((there > 0).then(|| format!("{there} are there already")));
    parts.extend((failed > 0).then(|| format!("{failed} failed before, and are tried again with --retry-failed")));
    answer(&parts.join("; "))?;
    if open > 0 {
        let time = seconds.map_or("an unknown time".to_owned(), duration);
        let basis = if known { "by the images that are there" } else { "by the operations that it takes, a rough guess" };
        answer(&format!("about {time}, {basis}; about {:.1} GB of memory", memory as f64 / 1e9))?;
    }
    Ok(())
}

/// What follows the first pass.
fn passes(request: &Request) -> Result<String> {
    let passes = &request.passes;
    let mut said = String::new();
    if let Some(HiresPass { size: (width, height), steps, .. }) = request.hires_pass()? {
        said += &format!(", {steps} more at {width}x{height}");
    }
    if let (Some(refiner), Some(switch)) = (&passes.refiner, passes.refiner_switch) {
        said += &format!(", refined by {} from {switch} on", refiner.public());
    }
    if let Some(upscale) = &passes.upscale {
        said += &format!(", enlarged by {}", upscale.public());
    }
    Ok(said)
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{:.0} s", s.max(1.0)),
        s if s < 90.0 * 60.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_are_said_as_people_say_them() {
        for (seconds, said) in [(0.2, "1 s"), (89.0, "89 s"), (600.0, "10 min"), (9000.0, "2.5 h"), (432_000.0, "5.0 days")] {
            assert_eq!(super::duration(seconds), said);
        }
    }
}
