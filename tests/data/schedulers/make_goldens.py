#!/usr/bin/env python3
"""Writes the trajectories of diffusers' schedulers that the tests of src/schedulers replay.

    pip install torch "diffusers==0.36.0" scipy
    python make_goldens.py > trajectories.json

The network is a formula (`network` below, and in the test), so that nothing but the schedulers is compared. All noise, the first
included, comes from one torch CPU generator in f32. A case holds
    config      the keys of a scheduler_config.json, `_class_name` among them
    steps, eta, start      what was asked; `start` cuts the first steps off, as image to image does
    timesteps   what the network was told at each call
    sigmas      the scheduler's own, where it has them
    final       the last sample
"""
import inspect, itertools, json, sys
import torch
import diffusers

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SHAPE = (1, 4, 2, 2)
SPACINGS = ["leading", "linspace", "trailing"]
PREDICTIONS = ["epsilon", "v_prediction"]
STEPS = [1, 2, 8, 20]


def network(x, t):
    return 0.6 * x + 0.3 * torch.sin(3.0 * x + 0.01 * t)


def run(cls, config, steps, eta=None, start=0):
    scheduler = getattr(diffusers, cls)(**config)
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(SHAPE, generator=generator)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[start * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        # At 0 too: a scheduler that looks for its place by timestep skips a sigma where the first two timesteps are equal.
        scheduler.set_begin_index(start * scheduler.order)
    if start:
        image = torch.linspace(-1, 1, noise.numel()).reshape(SHAPE)
        x = scheduler.add_noise(image, noise, timesteps[:1])
    else:
        x = noise * scheduler.init_noise_sigma
    extra = {}
    accepted = inspect.signature(scheduler.step).parameters
    if "generator" in accepted: extra["generator"] = generator
    if eta is not None: extra["eta"] = eta
    for t in timesteps:
        output = network(scheduler.scale_model_input(x, t), t.float())
        x = scheduler.step(output, t, x, **extra).prev_sample
    if not torch.isfinite(x).all():
        return None
    short = lambda values, digits: [float(f"{v:.{digits}g}") for v in values]
    case = dict(config={"_class_name": cls, **config}, steps=steps, timesteps=short(timesteps.tolist(), 7), final=short(x.flatten().tolist(), 7))
    if hasattr(scheduler, "sigmas"): case["sigmas"] = short(scheduler.sigmas.tolist(), 7)
    if eta is not None: case["eta"] = eta
    if start: case["start"] = start
    return case


def cases():
    def every(cls, steps=STEPS, predictions=PREDICTIONS, spacings=SPACINGS, **config):
        for n, p, s in itertools.product(steps, predictions, spacings):
            yield run(cls, {**SD, "prediction_type": p, "timestep_spacing": s, **config}, n)

    def one(cls, steps=8, eta=None, start=0, betas=SD, **config):
        yield run(cls, {**betas, **config}, steps, eta, start)

    pndm = dict(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    yield from every("PNDMScheduler", steps=[1, 2, 3, 8, 20], **pndm)
    yield from every("PNDMScheduler", steps=[4, 7, 8], spacings=["leading", "trailing"])
    yield from one("PNDMScheduler", 30, set_alpha_to_one=True, skip_prk_steps=True)

    yield from every("DDIMScheduler", clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    for eta in (0.0, 0.5, 1.0): yield from one("DDIMScheduler", 6, eta=eta, clip_sample=False, steps_offset=1)
    yield from one("DDIMScheduler")  # clips by default
    yield from one("DDIMScheduler", 6, eta=0.3, clip_sample_range=2.5)
    yield from one("DDIMScheduler", prediction_type="sample", clip_sample=False)
    for n in (1, 5): yield from every("DDIMScheduler", steps=[n], predictions=["v_prediction"], clip_sample=False, rescale_betas_zero_snr=True)

    yield from every("DDPMScheduler", clip_sample=False)
    yield from one("DDPMScheduler")
    for offset in (0, 1): yield from one("DDPMScheduler", 5, clip_sample=False, variance_type="fixed_large", steps_offset=offset)
    yield from one("DDPMScheduler", 5, clip_sample=False, variance_type="fixed_small_log")
    yield from every("DDPMScheduler", steps=[5], predictions=["v_prediction"], spacings=["trailing"], clip_sample=False, rescale_betas_zero_snr=True)

    sigma_space = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"]
    for cls in sigma_space:
        yield from every(cls)
        yield from one(cls, steps_offset=1, timestep_spacing="leading")
        yield from one(cls, betas={})  # the class's own betas
        yield from one(cls, betas=dict(beta_schedule="squaredcos_cap_v2"))
    for cls, extra in itertools.product(["EulerDiscreteScheduler", "HeunDiscreteScheduler"], ["use_karras_sigmas", "use_exponential_sigmas"]):
        yield from every(cls, steps=[2, 8], **{extra: True})
    for n in (1, 5): yield from every("EulerDiscreteScheduler", steps=[n], rescale_betas_zero_snr=True)
    yield from every("EulerAncestralDiscreteScheduler", steps=[5], predictions=["v_prediction"], rescale_betas_zero_snr=True)
    yield from one("EulerDiscreteScheduler", final_sigmas_type="sigma_min")
    yield from one("EulerDiscreteScheduler", use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0)
    yield from one("EulerDiscreteScheduler", prediction_type="sample")
    yield from one("HeunDiscreteScheduler", clip_sample=True, clip_sample_range=1.5)

    dpm = "DPMSolverMultistepScheduler"
    yield from every(dpm)
    for flag in ("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"): yield from every(dpm, steps=[2, 8], spacings=["linspace"], **{flag: True})
    for order, kind, n in itertools.product((1, 2, 3), ("midpoint", "heun"), (4, 17)): yield from one(dpm, n, solver_order=order, solver_type=kind)
    for flags in (dict(lower_order_final=False), dict(euler_at_final=True), {}):
        for n in (8, 17): yield from one(dpm, n, final_sigmas_type="sigma_min", solver_order=3, **flags)
    for order, kind in itertools.product((1, 2, 3), ("midpoint", "heun")): yield from one(dpm, 7, algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=kind)
    yield from one(dpm, 20, betas=dict(beta_schedule="squaredcos_cap_v2"), lambda_min_clipped=-5.1)
    yield from one(dpm, 8, betas=dict(beta_schedule="squaredcos_cap_v2"), use_karras_sigmas=True)
    yield from every(dpm, steps=[5], predictions=["v_prediction"], rescale_betas_zero_snr=True)
    yield from one(dpm, prediction_type="sample")

    for start in (1, 2, 4): yield from one("PNDMScheduler", 10, start=start, **pndm)
    yield from one("DDIMScheduler", 10, start=4, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    for cls in [*sigma_space, dpm]: yield from one(cls, 10, start=4)
    yield from one(dpm, 20, start=9, use_karras_sigmas=True, solver_order=3)


def main():
    kept = [c for c in cases() if c]
    print(f"{len(kept)} cases", file=sys.stderr)
    head = dict(diffusers=diffusers.__version__, torch=torch.__version__)
    print(json.dumps(head)[:-1] + ', "cases": [\n' + ",\n".join(json.dumps(c, separators=(",", ":")) for c in kept) + "\n]}")


main()
