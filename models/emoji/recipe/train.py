#!/usr/bin/env python3
"""Trains the built-in model: a small Stable Diffusion 1.x that generates 128x128 emoji from their names.

    pip install torch "diffusers==0.36.0" "transformers<5" open-clip-torch pillow
    python train.py OUT --minutes-vae 20 --minutes-decoder 10 --minutes-unet 110 --compile      # two CPU cores
    python train.py OUT --minutes-vae 5 --minutes-decoder 3 --minutes-unet 12 --batch 256        # one data-centre GPU

First the autoencoder; then its decoder alone goes on, on latents that stay as they are; then UNet and text encoder together on those latents: epsilon
prediction, 10 % empty captions, weights averaged over the steps (EMA), Muon for the matrices and AdamW for the rest.  The learning rates fall to zero
over the given minutes, so any budget ends in a finished model.  OUT/model is the model, a diffusers folder in f16; OUT/sheet.png shows what it generates.
State is kept in OUT/state every few minutes, and --resume goes on from there.
"""
import argparse, json, math, os, pathlib, random, re, time
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
LENGTH = 24  # tokens of a prompt
PROMPTS = ["a red apple", "a green apple", "grinning face", "a cat face", "a rocket", "green heart", "a red heart", "a slice of pizza",
           "a sunflower", "a house with a garden", "a dog", "a red car", "grapes", "a rainbow", "a penguin", "a strawberry",
           "a banana", "a hamburger", "an octopus", "a butterfly", "a guitar", "a cactus", "a christmas tree", "a panda",
           "a soccer ball", "a sailboat", "blue book", "a snowman", "an owl", "a cup of coffee", "a mushroom", "face with sunglasses"]


def images():
    """The images, and for each its names (the first is the main one)."""
    names = [line.split("; ") for line in (HERE / "images/names.txt").read_text().splitlines()]
    tiles = []
    for sheet in sorted((HERE / "images").glob("sheet-*.webp")):
        a = np.asarray(Image.open(sheet).convert("RGB"))
        tiles.append(a.reshape(16, 128, 16, 128, 3).swapaxes(1, 2).reshape(-1, 128, 128, 3))
    return names, np.concatenate(tiles)[: len(names)]


def caption(names, rng):
    name = names[0] if len(names) == 1 or rng.random() < 0.5 else rng.choice(names[1:])
    plural = re.search(r"[^s]s$", name) and rng.random() < 0.7
    a = name if plural else f"an {name}" if name[0] in "aeiou" else f"a {name}"
    forms = [name, a, f"{a}, flat style", f"{name}, flat style", f"an emoji of {a}", f"an image of {a}", f"{name} emoji", f"an icon of {a}", f"the {name}"]
    return rng.choices(forms, [35, 30, 5, 3, 9, 8, 5, 3, 2])[0]


def tokenizer(folder, captions, size=2000):
    """A byte-pair vocabulary in CLIP's format, learnt from the captions."""
    from open_clip.tokenizer import bytes_to_unicode
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    t = Tokenizer(models.BPE(end_of_word_suffix="</w>")); t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    t.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), end_of_word_suffix="</w>"))
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(t.to_str())["model"]["merges"]]
    letters = list(bytes_to_unicode().values())
    vocab = list(dict.fromkeys(letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges])) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    json.dump({t: i for i, t in enumerate(vocab)}, open(folder / "vocab.json", "w"), ensure_ascii=False)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    json.dump(dict(model_max_length=LENGTH, do_lower_case=True, tokenizer_class="CLIPTokenizer", **special), open(folder / "tokenizer_config.json", "w"))
    json.dump(special, open(folder / "special_tokens_map.json", "w"))
    return CLIPTokenizer.from_pretrained(folder)


class Optimizer:
    """Muon (orthogonalised momentum, scaled to AdamW's step size) for the matrices it is given, AdamW for all other parameters."""
    def __init__(self, params, matrices, lr):
        m = {id(p) for p in matrices}; rest = [p for p in params if id(p) not in m]; self.lr = lr
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        groups = {}
        for p in matrices: groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.groups = list(groups.values()); self.momentum = [torch.zeros(len(g), *g[0].flatten(1).shape, device=g[0].device) for g in self.groups]
    @torch.no_grad()
    def step(self, factor):
        for g in self.adam.param_groups: g["lr"] = self.lr * factor
        self.adam.step()
        for group, mom in zip(self.groups, self.momentum):
            g = torch.stack([p.grad.flatten(1) for p in group]); mom.lerp_(g, 0.05); g = g.lerp_(mom, 0.95)  # Nesterov
            tall = g.shape[1] > g.shape[2]; x = (g.mT if tall else g).bfloat16(); x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):  # Newton-Schulz: singular values to about one
                a = x @ x.mT; x = 3.4445 * x + torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
            x = (x.mT if tall else x).float(); rate = self.lr * factor * 0.2 * math.sqrt(max(x.shape[1:]))
            for p, u in zip(group, x): p.mul_(1 - 0.01 * self.lr * factor); p.add_(u.reshape(p.shape), alpha=-rate)
    def state_dict(self): return dict(adam=self.adam.state_dict(), momentum=self.momentum)
    def load_state_dict(self, s): self.adam.load_state_dict(s["adam"]); self.momentum = s["momentum"]


class Ema:
    def __init__(self, params, decay): self.params, self.decay, self.step = params, decay, 0; self.shadow = [p.detach().clone() for p in params]
    def update(self, every=4):
        self.step += 1
        if self.step % every: return
        d = min(self.decay, (1 + self.step) / (10 + self.step)) ** every
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.params], 1 - d)
    def swap(self):
        with torch.no_grad():
            for p, s in zip(self.params, self.shadow): t = p.clone(); p.copy_(s); s.copy_(t)


def train(params, matrices, loss_of_step, seconds, until, lr, ema, label, device, state, every=None, look=None):
    """Steps until the time is spent.  `until` (a Unix time) instead of `seconds` fixes the end whatever the machine does meanwhile."""
    opt = Optimizer(params, matrices, lr); before = 0.0; step = 0
    if state.exists():
        s = torch.load(state, map_location=device); before, step = s["spent"], s["step"]; ema.shadow, ema.step = s["ema"], s["ema_step"]
        if "momentum" in s["opt"]: opt.load_state_dict(s["opt"])
        with torch.no_grad():
            for p, q in zip(params, s["params"]): p.copy_(q)
    now = time.time(); start = now - before; total = until - start if until else seconds; said = saved = now; looked = now; losses = []
    def save():
        torch.save(dict(opt=opt.state_dict(), spent=time.time() - start, step=step, ema=ema.shadow, ema_step=ema.step, params=params), f"{state}.new"); os.replace(f"{state}.new", state)
    while (spent := time.time() - start) < total:
        part = spent / total
        with torch.autocast(device, torch.bfloat16): loss = loss_of_step(part)
        for p in params: p.grad = None
        loss.backward(); torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step(min(1, (step + 1) / 100) * min(1, (1 - part) / 0.7)); ema.update(); step += 1; losses.append(loss.detach())
        if time.time() - said > 30: print(f"{label} step {step} {spent:.0f}s of {total:.0f} loss {torch.stack(losses).mean().item():.4f} ({len(losses) / (time.time() - said):.2f} steps/s)", flush=True); said = time.time(); losses = []
        if time.time() - saved > 240: save(); saved = time.time()
        if look and time.time() - looked > every: looked = time.time(); look(step)
    if step: save()
    print(f"{label} done: {step} steps", flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out", type=pathlib.Path); ap.add_argument("--minutes-vae", type=float, default=20); ap.add_argument("--minutes-decoder", type=float, default=10); ap.add_argument("--minutes-unet", type=float, default=110)
    ap.add_argument("--until", type=float, default=0, help="Unix time at which the UNet is finished, instead of --minutes-unet"); ap.add_argument("--look", type=float, default=20, help="minutes between snapshots")
    ap.add_argument("--batch", type=int, default=64); ap.add_argument("--vae-batch", type=int, default=0); ap.add_argument("--lr", type=float, default=1.5e-3)
    ap.add_argument("--resume", action="store_true"); ap.add_argument("--seed", type=int, default=0); ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--compile", action="store_true", help="torch.compile the UNet: two minutes at the start, then steps a sixth faster on a CPU")
    a = ap.parse_args(); dev = "cuda" if torch.cuda.is_available() else "cpu"; torch.manual_seed(a.seed); random.seed(a.seed); torch.set_float32_matmul_precision("high")
    if a.threads: torch.set_num_threads(a.threads)
    (a.out / "state").mkdir(parents=True, exist_ok=True); state = lambda n: a.out / "state" / f"{n}.pt"
    if not a.resume:
        for f in (a.out / "state").glob("*.pt"): f.unlink()
    names, tiles = images(); n = len(names); x_all = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).to(dev); print(n, "images,", dev)

    # 1. the autoencoder: 8 times smaller, 4 channels
    vae = AutoencoderKL(block_out_channels=(32, 32, 64, 96), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, sample_size=128).to(dev).train()
    vb = a.vae_batch or (8 if dev == "cpu" else 64)
    def unlike(e):
        """How bad a difference of images is: at three sizes, in hue, and in edges."""
        loss = sum(F.avg_pool2d(e, s).abs().mean() for s in (1, 2, 4)) + 4 * e.square().mean()
        loss = loss + sum(F.avg_pool2d(e[:, [0, 2]] - e[:, [1, 1]], s).abs().mean() for s in (1, 4))
        return loss + (e[..., 1:] - e[..., :-1]).abs().mean() + (e[..., 1:, :] - e[..., :-1, :]).abs().mean()
    def vae_loss(part):
        # Small images in the first half, three at the price of one; colour errors count on their own, else shape is learnt long before colour.
        small = part < 0.5; x = x_all[torch.randint(0, n, (vb * (3 if small else 1),), device=dev)].float() / 127.5 - 1
        flip = torch.rand(len(x), device=dev) < 0.5; x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        if small: x = F.avg_pool2d(x, 2)
        post = vae.encode(x).latent_dist; z = post.mean + torch.exp(0.5 * post.logvar) * torch.randn_like(post.mean); loss = unlike(vae.decode(z).sample.float() - x)
        mu, lv = post.mean.float(), post.logvar.float()
        return loss + 1e-3 * 0.5 * (mu**2 + lv.exp() - 1 - lv).mean()
    params = list(vae.parameters()); ema = Ema(params, 0.998); train(params, [], vae_loss, a.minutes_vae * 60, 0, 1e-3, ema, "vae", dev, state("vae")); ema.swap(); vae.eval()

    # 2. latents of every image; from here on they stay as they are, and the decoder alone learns to generate them better
    with torch.no_grad(), torch.autocast(dev, torch.bfloat16): lat = torch.cat([vae.encode(x_all[s : s + 64].float() / 127.5 - 1).latent_dist.mean.float() for s in range(0, n, 64)])
    def decoder_loss(part):
        k = torch.randint(0, n, (vb,), device=dev); z = lat[k] + 0.05 * lat.std() * torch.randn_like(lat[k])
        return unlike(vae.decode(z).sample.float() - (x_all[k].float() / 127.5 - 1))
    vae.requires_grad_(False); params = [p.requires_grad_() for m in (vae.decoder, vae.post_quant_conv) for p in m.parameters()]; ema = Ema(params, 0.998)
    matrices = [p for p in vae.decoder.parameters() if p.ndim >= 2 and min(p.shape[:2]) > 4]
    train(params, matrices, decoder_loss, a.minutes_decoder * 60, 0, 1e-3, ema, "decoder", dev, state("decoder")); ema.swap(); vae.eval()
    scale = 1 / lat.std().item(); lat *= scale; vae.register_to_config(scaling_factor=scale); print("scaling_factor", scale)
    # How the latents look, for previews: least squares from the latents at a place to the mean colour of its 8 by 8 pixels; the last row is the bias.
    at = lat.permute(0, 2, 3, 1).reshape(-1, 4).cpu(); colours = F.avg_pool2d(x_all.float() / 127.5 - 1, 8).permute(0, 2, 3, 1).reshape(-1, 3).cpu()
    rgb = torch.linalg.lstsq(torch.cat([at, torch.ones(len(at), 1)], 1), colours).solution
    settings = dict(steps=25, guidance_scale=2.0, latent_rgb=[[round(v, 4) for v in row] for row in rgb.tolist()])

    # 3. UNet and text encoder
    rng = random.Random(a.seed); captions = [[caption(l, rng) for _ in range(24)] for l in names]
    tok = tokenizer(a.out / "model/tokenizer", [c for cs in captions for c in cs]); V = len(tok)
    ids = torch.stack([tok(c, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids for c in captions]).to(dev); empty = tok([""], padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids.to(dev)
    unet = UNet2DConditionModel(sample_size=16, block_out_channels=(64, 128, 192), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=128, attention_head_dim=4).to(dev).train()
    if dev == "cpu": unet.set_attn_processor(AttnProcessor())  # torch's fused attention is slow backwards on a CPU
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=V, hidden_size=128, intermediate_size=512, projection_dim=128, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="quick_gelu",
                                        bos_token_id=V - 2, eos_token_id=V - 1, pad_token_id=V - 1)).to(dev).train()
    print("UNet", sum(p.numel() for p in unet.parameters()) / 1e6, "M, text", sum(p.numel() for p in clip.parameters()) / 1e6, "M, vocabulary", V, flush=True)
    ab = DDIMScheduler(**BETAS).alphas_cumprod.to(dev); snr = ab / (1 - ab); B = a.batch
    # Weights of the noise levels: min-SNR 5 for the clean ones; more, up to five times, for the noisy ones, where the name alone must say what the image is.
    weight = torch.clamp(snr, max=5) / snr * torch.clamp(snr, max=1).rsqrt().clamp(max=5); weight = weight / weight.mean()
    model = torch.compile(unet) if a.compile else unet
    def unet_loss(part):
        k = torch.randint(0, n, (B,), device=dev); x = lat[k]; t = ids[k, torch.randint(0, ids.shape[1], (B,), device=dev)]; t = torch.where((torch.rand(B, device=dev) < 0.1)[:, None], empty, t)
        noise = torch.randn_like(x); ts = ((torch.arange(B, device=dev) + torch.rand(B, device=dev)) * (1000 / B)).long().clamp(max=999); r = ab[ts][:, None, None, None]  # evenly spread levels
        out = model(r.sqrt() * x + (1 - r).sqrt() * noise, ts, clip(t).last_hidden_state).sample.float()
        return (weight[ts] * ((out - noise) ** 2).mean((1, 2, 3))).mean()
    params = list(unet.parameters()) + list(clip.parameters()); ema = Ema(params, 0.999)
    matrices = [p for m, skip in ((unet, ("conv_in", "conv_out", "time_embedding")), (clip, ("embedding",))) for k, p in m.named_parameters() if p.ndim >= 2 and not any(s in k for s in skip)]

    sched = PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **BETAS)
    def look(step, guidance=2.0):
        """A sheet of samples and a model folder from the averaged weights."""
        ema.swap(); unet.eval(); clip.eval()
        pipe = StableDiffusionPipeline(vae=vae, text_encoder=clip, tokenizer=tok, unet=unet, scheduler=sched, safety_checker=None, feature_extractor=None, requires_safety_checker=False); pipe.set_progress_bar_config(disable=True)
        with torch.autocast(dev, torch.bfloat16): tiles = [np.asarray(i) for i in pipe(PROMPTS, num_inference_steps=25, guidance_scale=guidance, generator=[torch.Generator("cpu").manual_seed(s) for s in range(len(PROMPTS))]).images]
        Image.fromarray(np.concatenate([np.concatenate(tiles[i : i + 8], 1) for i in range(0, len(tiles), 8)])).save(a.out / ("sheet.png" if step is None else f"sheet-{step:06}.png"))
        export(pipe, a.out / "model"); (a.out / "model/sd-gen.json").write_text(json.dumps(settings) + "\n"); ema.swap(); unet.train(); clip.train()
    train(params, matrices, unet_loss, a.minutes_unet * 60, a.until, a.lr, ema, "unet", dev, state("unet"), a.look * 60, look)
    look(None); print("written to", a.out / "model")


def export(pipe, folder):
    """A diffusers folder in f16, with no trace of the machine it was made on."""
    import copy
    half = StableDiffusionPipeline(**{k: copy.deepcopy(v).half() if isinstance(v, torch.nn.Module) else v for k, v in pipe.components.items() if k != "image_encoder"}, requires_safety_checker=False)
    half.save_pretrained(folder)
    for f in folder.rglob("*.json"):
        d = json.loads(f.read_text())
        if isinstance(d, dict) and d.pop("_name_or_path", None) is not None: f.write_text(json.dumps(d, indent=2) + "\n")


if __name__ == "__main__": main()
