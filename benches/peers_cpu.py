#!/usr/bin/env python3
"""Times one guided step and one VAE decode of sd-gen, diffusers and OpenVINO on the CPU: random weights, every round a new process of each, in turn.

    pip install torch "diffusers==0.36.0" "transformers<5" openvino
    python benches/peers_cpu.py target/release/sd-gen [--family sd15|sdxl] [--size 512] [--dtype bf16] [--peers diffusers,openvino] [--rounds 2] [--repeats 3]

Prints one JSON object: the seconds of every call but each process's first, medians, and the ratios sd-gen / peer.
Run it on an idle machine and quote ratios. OpenVINO's converted networks are kept in --cache, as converting takes minutes.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tempfile, time

PHASES = {"step": "guided step", "decode": "VAE decode"}
UNETS = {
    "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
                 cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816),
}
VAE = dict(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2)
# What hides the better units from every participant; oneDNN serves both peers' products.
AVX2 = dict(SD_GEN_CPU_ISA="avx2", ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2", MKL_ENABLE_INSTRUCTIONS="AVX2")


def networks(a, dtype):
    """The phases' networks of diffusers, each with its inputs."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    class Step(torch.nn.Module):
        def __init__(self, unet): super().__init__(); self.unet = unet
        def forward(self, x, t, c, *added):
            return self.unet(x, t, c, added_cond_kwargs=dict(zip(("text_embeds", "time_ids"), added)) or None, return_dict=False)[0]

    class Decode(torch.nn.Module):
        def __init__(self, vae): super().__init__(); self.vae = vae
        def forward(self, z): return self.vae.decode(z, return_dict=False)[0]

    def made(network):
        """With weights of that type from the start: SDXL's in f32 are 10 GB."""
        torch.set_default_dtype(dtype)
        try: return network().eval()
        finally: torch.set_default_dtype(torch.float32)

    torch.manual_seed(0); side = a.size // 8
    rows = torch.randn(2, 4, side, side).to(dtype)
    added = (torch.randn(2, 1280).to(dtype), torch.rand(2, 6).to(dtype)) if a.family == "sdxl" else ()
    text = torch.randn(2, 77, UNETS[a.family]["cross_attention_dim"]).to(dtype)
    networks = {"step": (lambda: made(lambda: Step(UNet2DConditionModel(**UNETS[a.family]))), (rows, torch.tensor(500), text, *added)),
                "decode": (lambda: made(lambda: Decode(AutoencoderKL(**VAE))), (rows[:1],))}
    for phase in a.phases: yield phase, *networks[phase]


def timed(call, repeats):
    call(); seconds = []
    for _ in range(repeats):
        start = time.perf_counter(); call(); seconds.append(time.perf_counter() - start)
    return seconds


def diffusers(a):
    import torch
    torch.set_num_threads(a.threads)
    with torch.inference_mode():
        for phase, network, inputs in networks(a, {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]):
            network = network().to(memory_format=torch.channels_last)
            inputs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
            yield phase, timed(lambda: network(*inputs), a.repeats)


def openvino(a):
    import openvino as ov, torch
    from openvino.frontend.pytorch import patch_model
    # Computes in f32 while it is traced, and leaves the weights in f16.
    traceable = getattr(patch_model, "__make_16bit_traceable")
    core = ov.Core(); options = {"INFERENCE_PRECISION_HINT": a.dtype, "INFERENCE_NUM_THREADS": a.threads, "PERFORMANCE_HINT": "LATENCY"}
    for phase, network, inputs in networks(a, torch.float16):
        inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        path = pathlib.Path(a.cache) / f"{a.family}-{a.size}-{phase}.xml"
        if not path.exists():
            network = network(); traceable(network)
            with torch.inference_mode(): ov.save_model(ov.convert_model(network, example_input=inputs, input=[list(x.shape) for x in inputs]), path)
        if a.convert: continue
        model = core.compile_model(path, "CPU", options)
        assert model.get_property("INFERENCE_PRECISION_HINT") == {"f32": ov.Type.f32, "bf16": ov.Type.bf16}[a.dtype], "this processor does not do it"
        feed = [x.numpy() for x in inputs]
        yield phase, timed(lambda: model(feed), a.repeats)


def sd_gen(a):
    command = [a.sd_gen, "bench", "--random", a.family, "--sizes", f"{a.size}x{a.size}", "--dtypes", a.dtype, "--devices", "cpu", "--threads", str(a.threads),
               "--steps", "1", "--warmups", "1", "--repeats", str(a.repeats), "--skip-correctness", "--no-config", "--quiet", "--json", "-"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"][0]
    return {phase: row["phases"][phase]["samples"] for phase in a.phases}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("sd_gen"); ap.add_argument("--family", default="sd15", choices=UNETS); ap.add_argument("--size", type=int, default=512)
    ap.add_argument("--dtype", default="bf16", choices=["f32", "bf16"]); ap.add_argument("--peers", default="diffusers,openvino")
    ap.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES); ap.add_argument("--rounds", type=int, default=2); ap.add_argument("--repeats", type=int, default=3); ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--avx2", action="store_true", help="hide everything above AVX2 from all"); ap.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "peers-cpu"))
    ap.add_argument("--serve", help=argparse.SUPPRESS); ap.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.serve: print(json.dumps(dict({"diffusers": diffusers, "openvino": openvino}[a.serve](a)))); return
    os.makedirs(a.cache, exist_ok=True); peers = a.peers.split(",")
    if a.avx2: os.environ.update(AVX2)
    def serve(peer, *more): return json.loads(subprocess.run([sys.executable, *sys.argv, "--serve", peer, *more], check=True, stdout=subprocess.PIPE, text=True).stdout)
    if "openvino" in peers: serve("openvino", "--convert")
    seconds = {who: {phase: [] for phase in a.phases} for who in ["sd-gen", *peers]}
    for _ in range(a.rounds):
        for who in ["sd-gen", *peers]:
            for phase, samples in (sd_gen(a) if who == "sd-gen" else serve(who)).items(): seconds[who][phase] += samples
            print(who, {p: [round(s, 3) for s in v] for p, v in seconds[who].items()}, file=sys.stderr, flush=True)
    median = {who: {phase: statistics.median(samples) for phase, samples in phases.items()} for who, phases in seconds.items()}
    print(json.dumps({"family": a.family, "size": a.size, "dtype": a.dtype, "threads": a.threads, "avx2": a.avx2, "seconds": {who: {PHASES[p]: v for p, v in phases.items()} for who, phases in seconds.items()},
                      "ratio": {peer: {PHASES[p]: round(median["sd-gen"][p] / median[peer][p], 3) for p in a.phases} for peer in peers}}, indent=1))


if __name__ == "__main__": main()
