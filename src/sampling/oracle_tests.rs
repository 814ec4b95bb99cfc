//! The recorded paths of other tools' samplers over a denoiser in closed form.
//!
//! A small part of the recordings is committed (`tests/data/samplers`, made by `make_subset.py` there); with `SD_GEN_SAMPLER_ORACLE` naming
//! the folder of all of them, all are compared.
#![expect(clippy::print_stdout, reason = "tests show their figures with --nocapture")]

use super::*;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

struct Oracle {
    index: Value,
    tensors: HashMap<String, Tensor>,
}

/// The mean of what was noised: an exact denoiser for a mixture of two Gaussians.
struct Mixture {
    means: Vec<Tensor>,
    weights: Vec<f64>,
    deviations: Vec<f64>,
}

impl Mixture {
    fn read(oracle: &Oracle, name: &str) -> Self {
        let spec = &oracle.index["mixtures"][name];
        let means = oracle.tensors[&format!("{name}.means")].to_dtype(DType::F64).unwrap();
        let means = (0..means.dim(0).unwrap()).map(|i| means.narrow(0, i, 1).unwrap()).collect();
        Self { means, weights: numbers(&spec["weights"]), deviations: numbers(&spec["deviations"]) }
    }

    fn denoise(&self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let variance = |k: usize| self.deviations[k].powi(2) + sigma * sigma;
        let mut logs = Vec::new();
        for (k, mean) in self.means.iter().enumerate() {
            let distance = (x - mean)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
            logs.push(self.weights[k].ln() - 128.0 * variance(k).ln() - distance / (2.0 * variance(k)));
        }
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logs.iter().map(|log| (log - most).exp()).sum();
        let mut sum = x.zeros_like()?;
        for (k, mean) in self.means.iter().enumerate() {
            let share = (logs[k] - most).exp() / total / variance(k);
            sum = ((sum + (x * (share * self.deviations[k].powi(2)))?)? + (mean * (share * sigma * sigma))?)?;
        }
        Ok(sum)
    }
}

struct Guided {
    cond: Mixture,
    uncond: Mixture,
    scale: Option<f64>,
    /// The network is told timesteps and works with their noise, as under diffusers.
    alphas: Option<Vec<f64>>,
}

impl Denoiser for Guided {
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised> {
        if let Some(alphas) = &self.alphas {
            let (low, last) = (level.timestep.floor() as usize, alphas.len() - 1);
            let log = |i: usize| 0.5 * alphas[i.min(last)].ln();
            let alpha = (log(low) + (level.timestep - low as f64) * (log(low + 1) - log(low))).exp();
            let sigma = (1.0 - alpha * alpha).sqrt() / alpha;
            let x = (latents / ((1.0 + level.sigma * level.sigma).sqrt() * alpha))?;
            let estimate = |of: &Mixture| -> Result<Tensor> {
                let noise = ((&x - of.denoise(&x, sigma)?)? / sigma)?;
                Ok((latents - (noise * level.sigma)?)?)
            };
            let cond = estimate(&self.cond)?;
            let Some(scale) = self.scale else { return Ok(Denoised::plain(cond)) };
            let uncond = estimate(&self.uncond)?;
            let guided = (&uncond + ((&cond - &uncond)? * scale)?)?;
            return Ok(Denoised { guided, branches: Branches::new(vec![(Branch::Negative, uncond), (Branch::Prompt, cond)]) });
        }
        let cond = self.cond.denoise(latents, level.sigma)?;
        let Some(scale) = self.scale else { return Ok(Denoised::plain(cond)) };
        let uncond = self.uncond.denoise(latents, level.sigma)?;
        let guided = (&uncond + ((&cond - &uncond)? * scale)?)?;
        Ok(Denoised { guided, branches: Branches::new(vec![(Branch::Negative, uncond), (Branch::Prompt, cond)]) })
    }
}

struct Recorded {
    draws: Tensor,
    taken: usize,
}

impl NoiseSource for Recorded {
    fn fresh(&mut self, _: &Tensor) -> Result<Tensor> {
        self.taken += 1;
        Ok(self.draws.narrow(0, self.taken - 1, 1)?)
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

impl Oracle {
    fn open(folder: &Path) -> Self {
        let index = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
        let read = |name: &str| candle_core::safetensors::load(folder.join(name), &Device::Cpu).unwrap();
        let mut tensors = read("common.safetensors");
        tensors.extend(read("paths.safetensors"));
        Self { index, tensors }
    }

    /// Compares a run; `None` where it is left out, with the reason.
    fn compare(&self, run: &Value) -> std::result::Result<f64, &'static str> {
        let (peer, name) = (run["peer"].as_str().unwrap(), run["sampler"].as_str().unwrap());
        let (sampler, mut options) = ours(peer, name, run)?;
        let mut sigmas = numbers(&self.index["schedules"][run["schedule"].as_str().unwrap()]);
        let mut config = SchedulerConfig::default().with_sampler(sampler).unwrap();
        match (peer, sampler) {
            ("a1111", "lcm") => config.like = Some(Like::A1111),
            ("sd.cpp", "tcd") => config.like = Some(Like::SdCpp),
            _ => {}
        }
        config.eta = options.iter().position(|(key, _)| *key == "eta").map(|at| options.remove(at).1);
        config.options = options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let (start, is_diffusers, walks) = (sigmas[0], peer == "diffusers", peer == "a1111" && run["space"] == "vp");
        let schedule = if is_diffusers {
            let mut file = run["options"].as_object().unwrap().clone();
            file.insert("_class_name".into(), file["class"].clone());
            file.insert("beta_schedule".into(), "scaled_linear".into());
            file.insert("beta_start".into(), 0.00085.into());
            file.insert("beta_end".into(), 0.012.into());
            let mut config = SchedulerConfig::from_json(&Value::Object(file.clone()).to_string(), "oracle").unwrap();
            // The class alone, without a pipeline, has a default of its own.
            let default = (file["class"] == "TCDScheduler").then_some(0.3);
            config.eta = file.get("eta").and_then(Value::as_f64).or(default);
            let steps = run["schedule"].as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap();
            plan(&config, steps).unwrap()
        } else if walks {
            let steps = run["schedule"].as_str().unwrap().rsplit('-').next().unwrap().parse().unwrap();
            plan(&config, steps).unwrap()
        } else {
            // A tool's list is taken as it stands; ours has no end.
            if config.like.is_none() && sigmas.last() == Some(&0.0) {
                sigmas.pop();
            }
            config.levels = Some(Levels::Sigmas(sigmas));
            plan(&config, 1).unwrap()
        };
        let stored = &self.tensors[&format!("{}/x", run["path"].as_str().unwrap())].to_dtype(DType::F64).unwrap();
        let draws = run["noise"].as_str().unwrap_or("noise");
        let mut noise = Recorded { draws: self.tensors[draws].to_dtype(DType::F64).unwrap(), taken: 0 };
        let unit = self.tensors["unit_noise"].to_dtype(DType::F64).unwrap();
        let scale = if is_diffusers || walks { schedule.initial_scale } else { start };
        let x = (unit * scale).unwrap();
        let mut denoiser = Guided {
            cond: Mixture::read(self, "cond"),
            uncond: Mixture::read(self, "uncond"),
            scale: run["guidance"].as_f64(),
            // A1111's LCM tells the network the nearest timestep that it was distilled at.
            alphas: (is_diffusers || walks || (peer, sampler) == ("a1111", "lcm"))
                .then(|| self.tensors["alphas_cumprod"].to_dtype(DType::F64).unwrap().to_vec1().unwrap()),
        };
        let mut path = vec![x.clone()];
        let last = sample(&schedule, &x, &mut denoiser, &mut noise, &mut |_, x| {
            path.push(x.clone());
            Ok(())
        })
        .unwrap();
        *path.last_mut().unwrap() = last;
        let states = stored.dim(0).unwrap();
        let distance = |ours: &Tensor, i: usize| -> f64 {
            let theirs = stored.narrow(0, i, 1).unwrap();
            (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
        };
        // Where a tool shows the latents in another form between the steps (variance-preserving, predicted, churned), their end is compared.
        // Where another tool's path stands for a run's own, it is known how far their ends are apart, and not what lies between.
        let own = run["apart"].as_f64().unwrap_or(0.0) < 1e-5;
        let all = states == path.len() && run["space"].is_null() && own && !name.starts_with("sa_solver") && !name.ends_with("+churn");
        let compared =
            if all { (0..states).map(|i| distance(&path[i], i)).fold(0.0, f64::max) } else { distance(&path[path.len() - 1], states - 1) };
        Ok(compared)
    }
}

type Ours = (&'static str, Vec<(&'static str, f64)>);

/// Which sampler of ours takes a run, with which options.
fn ours(peer: &str, name: &str, run: &Value) -> std::result::Result<Ours, &'static str> {
    let base = name.split('+').next().unwrap_or(name);
    let sampler = match (peer, if peer == "sd.cpp" { name } else { base }) {
        ("a1111", "restart") => "restart",
        ("a1111", "ddim") => "ddim-a1111",
        ("a1111", "ddim_cfgpp") => "ddim-cfg++",
        ("a1111", "plms") => "plms-a1111",
        ("a1111", "unipc") if name != "unipc+vary" => "unipc-a1111",
        ("a1111", "lcm") => "lcm",
        ("a1111", _) => return Err("A1111's UniPC variant vary_coeff is not offered"),
        ("diffusers", _) => "euler",
        ("sd.cpp", "ddim_trailing+eta") => "euler-a",
        ("sd.cpp", "euler_ge+eta1") => "gradient-estimation",
        ("sd.cpp", "res_2s+eta1") => "res-2s",
        ("sd.cpp", "tcd" | "tcd+eta") => "tcd",
        (_, "euler" | "ddim_trailing") => "euler",
        (_, "euler_ancestral" | "ddpm" | "euler_a") => "euler-a",
        (_, "euler_cfg_pp") => "euler-cfg++",
        (_, "euler_ancestral_cfg_pp" | "euler_a_cfg_pp") => "euler-a-cfg++",
        (_, "heun") => "heun",
        (_, "heunpp2") => "heun++2",
        (_, "dpm_2" | "dpm2") => "dpm2",
        (_, "dpm_2_ancestral") => "dpm2-a",
        (_, "lms") => "lms",
        (_, "dpm_fast") => "dpm-fast",
        (_, "dpm_adaptive") => "dpm-adaptive",
        (_, "dpmpp_2s_ancestral" | "dpm++2s_a") => "dpm++2s-a",
        (_, "dpmpp_2s_ancestral_cfg_pp") => "dpm++2s-a-cfg++",
        (_, "dpmpp_sde") => "dpm++sde",
        (_, "dpmpp_2m" | "dpm++2m") => "dpm++2m",
        (_, "dpm++2mv2") => "dpm++2m-v2",
        (_, "dpmpp_2m_cfg_pp") => "dpm++2m-cfg++",
        (_, "dpmpp_2m_sde" | "dpm++2m_sde") => "dpm++2m-sde",
        (_, "dpmpp_2m_sde_heun") => "dpm++2m-sde-heun",
        (_, "dpmpp_3m_sde") => "dpm++3m-sde",
        (_, "uni_pc") => "uni-pc-bh1",
        (_, "uni_pc_bh2") => "uni-pc-bh2",
        (_, "deis") => "deis-tab",
        (_, "ipndm") => "ipndm",
        (_, "ipndm_v") => "ipndm-v",
        (_, "lcm") => "lcm",
        (_, "res_multistep" | "res_multistep+eta1") if peer == "sd.cpp" => "res-multistep-a",
        (_, "res_multistep") => "res-multistep",
        (_, "res_multistep_ancestral") => "res-multistep-a",
        (_, "res_multistep_cfg_pp") => "res-multistep-cfg++",
        (_, "res_multistep_ancestral_cfg_pp") => "res-multistep-a-cfg++",
        (_, "res_2s") => "res-2s",
        (_, "er_sde") => "er-sde",
        (_, "seeds_2") => "seeds-2",
        (_, "seeds_3") => "seeds-3",
        (_, "exp_heun_2_x0") => "exp-heun-2-x0",
        (_, "exp_heun_2_x0_sde") => "exp-heun-2-x0-sde",
        (_, "sa_solver") => "sa-solver-sigma",
        (_, "sa_solver_pece") => "sa-solver-pece",
        (_, "gradient_estimation" | "euler_ge") => "gradient-estimation",
        (_, "gradient_estimation_cfg_pp") => "gradient-estimation-cfg++",
        _ => return Err("no sampler here has this name"),
    };
    let names: HashMap<&str, &'static str> = [
        ("eta", "eta"),
        ("s_noise", "s_noise"),
        ("s_churn", "s_churn"),
        ("s_tmin", "s_tmin"),
        ("s_tmax", "s_tmax"),
        ("r", "r"),
        ("rtol", "rtol"),
        ("order", "order"),
        ("max_order", "order"),
        ("max_stage", "max_stage"),
        ("ge_gamma", "gamma"),
        ("predictor_order", "predictor_order"),
        ("corrector_order", "corrector_order"),
    ]
    .into();
    let mut options = Vec::new();
    let known = |key: &str| Sampler::from_name(sampler).unwrap().0.row().options.iter().any(|(name, _)| *name == key);
    for (key, value) in run["options"].as_object().into_iter().flatten() {
        if let (Some(ours), Some(value)) = (names.get(key.as_str()), value.as_f64()) {
            if known(ours) {
                options.push((*ours, value));
            }
        } else if (key == "solver_type" && value == "phi_2") || (key == "order2" && value == true) {
            options.push(("phi", 2.0));
        } else if key == "uni_pc_variant" {
            options.push(("bh", 2.0));
        } else if key == "uni_pc_order" {
            options.push(("order", value.as_f64().unwrap()));
        } else if key == "uni_pc_lower_order_final" {
            options.push(("lower_order_final", 0.0));
        } else if key == "uni_pc_skip_type" {
            options.push(("skip", if value == "logSNR" { 2.0 } else { 1.0 }));
        } else if key == "simple_order_2" {
            options.push(("simple_order_2", 1.0));
        }
    }
    match (peer, sampler) {
        ("sd.cpp", "lms") => options.push(("shift", 1.0)),
        ("comfyui", "lms") => options.push(("ends_denoised", 1.0)),
        ("sd.cpp", "ipndm-v") => options.extend([("ends_denoised", 0.0), ("variable_to", 2.0)]),
        ("forge" | "sd.cpp", "ipndm" | "ipndm-v") => options.push(("ends_denoised", 0.0)),
        ("a1111", "lcm") => {}
        ("sd.cpp", "tcd") if name == "tcd" => options.push(("eta", 0.0)),
        (_, "lcm") => options.push(("boundary", 0.0)),
        ("sd.cpp", "res-multistep-a") if name == "res_multistep" => options.push(("eta", 0.0)),
        _ => {}
    }
    Ok((sampler, options))
}

#[test]
fn paths_are_those_of_the_other_tools() {
    let committed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/samplers");
    let named = std::env::var_os("SD_GEN_SAMPLER_ORACLE").map(PathBuf::from);
    let oracle = Oracle::open(named.as_deref().unwrap_or(&committed));
    let (mut held, mut wrong, mut left_out) = (0, vec![], std::collections::BTreeMap::<_, usize>::new());
    for run in oracle.index["runs"].as_array().unwrap() {
        let what = format!("{} {} {}", run["peer"], run["sampler"], run["schedule"]);
        match oracle.compare(run) {
            Err(reason) => *left_out.entry(reason).or_default() += 1,
            Ok(apart) => {
                // What was run in f32 only strays by its own rounding.
                let fair = run["f32_apart"].as_f64().unwrap_or(5e-5).max(2e-6);
                if apart <= 4.0 * fair + run["apart"].as_f64().unwrap_or(0.0) {
                    held += 1
                } else {
                    wrong.push(format!("{what}: {apart:.1e}, fair is {fair:.1e}"))
                }
            }
        }
    }
    let left_out_runs = left_out.values().sum::<usize>();
    println!("{held} hold, {left_out_runs} are left out: {left_out:?}");
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), wrong.len() + held, wrong.join("\n"));
    assert!(held > 20, "only {held} were compared, {left_out_runs} left out: {left_out:?}");
}

#[test]
fn schedules_are_those_of_the_other_tools() {
    let text = std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/samplers/schedules.json")).unwrap();
    let recorded: Vec<Value> = serde_json::from_slice(&text).unwrap();
    assert!(recorded.len() > 150);
    let table = SchedulerConfig::default().noise_table().unwrap();
    let mut wrong = Vec::new();
    for case in recorded {
        let (name, tool, steps) = (case[0].as_str().unwrap(), case[1].as_str().unwrap(), case[3].as_u64().unwrap() as usize);
        let like = Like::from_name(if tool == "sd.cpp" { "sdcpp" } else { tool }).unwrap();
        let schedule = SigmaSchedule::from_name(name).unwrap();
        let theirs = numbers(&case[4]);
        // Without a tool it is the one that a schedule is known from.
        let known_from = match name {
            "smoothstep" | "bong_tangent" | "lcm" => Like::SdCpp,
            "ays_11" | "ays_32" => Like::A1111,
            _ => Like::ComfyUi,
        };
        for like in [Some(like)].into_iter().chain((like == known_from).then_some(None)) {
            match schedule.over_table(&table, steps, case[2] == "sdxl", true, like) {
                // ComfyUI's node gives another row's end, or a single sigma, at one step.
                Err(_) if steps == 1 && ["ays_gits", "laplace"].contains(&name) => {}
                Ok(Some(ours))
                    if ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-5 * b.max(1.0)) => {}
                other => wrong.push(format!("{name} {tool} {} {steps}: {other:?} {theirs:?}", case[2])),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
