"""One small image for every way of writing that real files of other tools were found to have, and `cases.json`: what must be read in each.

Standard library only. `cases.json` is a list of objects: `file`, the fields of the recipe (null: must not be there), and
`flags` (what the printed command has; null: not there), `loras` ([name, weight]), `says` and `silent` (words in notes and further fields),
`recipe: null` (nothing is to be read), `command: false` (no command is to be printed); `about` says what the case is about.
"""

import gzip
import json
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).parent / "cases"
INFOTEXT = "a red apple\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64"
UNICODE = INFOTEXT.replace("apple", "apple — ünïcode")
READ = {"prompt": "a red apple", "negative_prompt": "blurry", "steps": 20, "seed": 5, "guidance_scale": 7, "sampler": "Euler a", "width": 64, "height": 64}


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks, pixels=None, size=(8, 8)):
    """Text chunks are (keyword, text); others are (kind, bytes) with a kind of bytes."""
    made = []
    for keyword, text in chunks:
        if isinstance(keyword, bytes):
            made.append(chunk(keyword, text))
        elif text.isascii():
            made.append(chunk(b"tEXt", keyword.encode() + b"\0" + text.encode()))
        else:
            made.append(chunk(b"iTXt", keyword.encode() + b"\0\0\0\0\0" + text.encode()))
    width, height = size
    color = 0 if pixels is None else {3: 2, 4: 6}[len(pixels[0])]
    rows = b"".join(b"\0" + (bytes(width) if pixels is None else b"".join(bytes(pixels[y * width + x]) for x in range(width))) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(made) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def tiff(ifd0=(), exif=(), little=True):
    """Entries are (tag, type, bytes)."""
    order = "<" if little else ">"
    entries = [list(ifd0), list(exif)]
    if exif:
        entries[0].append((0x8769, 4, None))
    at = 8 + 2 + 12 * len(entries[0]) + 4
    starts = [8, at]
    tables, values = [b"", b""], b""
    at += (2 + 12 * len(entries[1]) + 4) if exif else 0
    for i, list_of in enumerate(entries):
        if i == 1 and not exif:
            continue
        tables[i] = struct.pack(order + "H", len(list_of))
        for tag, kind, value in sorted(list_of, key=lambda entry: entry[0]):
            if value is None:
                tables[i] += struct.pack(order + "HHII", tag, kind, 1, starts[1])
            elif len(value) <= 4:
                tables[i] += struct.pack(order + "HHI", tag, kind, len(value)) + value.ljust(4, b"\0")
            else:
                tables[i] += struct.pack(order + "HHII", tag, kind, len(value), at + len(values))
                values += value + bytes(len(value) % 2)
        tables[i] += bytes(4)
    return (b"II*\0" if little else b"MM\0*") + struct.pack(order + "I", 8) + tables[0] + tables[1] + values


def comment(text, coding="utf-16-le", head=b"UNICODE\0", little=True, ifd0=()):
    return tiff(ifd0, [(0x9286, 7, head + (text if isinstance(text, bytes) else text.encode(coding)))], little)


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(exif=None, *segments):
    return b"\xff\xd8" + (segment(0xE1, b"Exif\0\0" + exif) if exif else b"") + b"".join(segments) + b"\xff\xd9"


def webp(exif, head=b""):
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in [(b"VP8X", bytes(10)), (b"EXIF", head + exif)])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def iptc(caption):
    record = b"\x1c\x02\x00\x00\x02\x00\x02" + b"\x1c\x02\x78" + struct.pack(">H", len(caption)) + caption.encode()
    return b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record + bytes(len(record) % 2)


def raw_profile(name, data):
    digits = data.hex()
    return f"\n{name}\n{len(data):8}\n" + "\n".join(digits[i:i + 72] for i in range(0, len(digits), 72)) + "\n"


def stealth(text, signature=b"stealth_pngcomp", channels=(3,), of=4):
    payload = text.encode()
    if signature.endswith(b"comp"):
        payload = gzip.compress(payload, mtime=0)
    bits = "".join(f"{byte:08b}" for byte in signature + struct.pack(">I", len(payload) * 8) + payload)
    side = 64
    pixels = [[200] * 3 + [254] * (of - 3) for _ in range(side * side)]
    for at, bit in enumerate(bits):
        column, row = divmod(at // len(channels), side)
        pixel, channel = pixels[row * side + column], channels[at % len(channels)]
        pixel[channel] = pixel[channel] & 0xFE | int(bit)
    return {"pixels": pixels, "size": (side, side)}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**changes):
    """The graph that ComfyUI starts with; a change of None takes a node out."""
    nodes = {
        "3": node("KSampler", seed=5, steps=20, cfg=7.0, sampler_name="euler", scheduler="karras", denoise=1.0, model=["4", 0], positive=["6", 0],
                  negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a red apple", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
    }
    for name, change in changes.items():
        nodes.pop(name.lstrip("n").replace("_", ":"), None) if change is None else nodes.__setitem__(name.lstrip("n").replace("_", ":"), change)
    return nodes


def sampler(**changes):
    return node("KSampler", **{**graph()["3"]["inputs"], **changes})


def prompt(nodes):
    return png(("prompt", json.dumps(nodes)))


COMFY = {"tool": "ComfyUI", "prompt": "a red apple", "negative_prompt": "blurry", "seed": 5, "steps": 20, "guidance_scale": 7, "sampler": "euler",
         "schedule": "karras", "width": 512, "height": 768, "model": "v1-5.safetensors"}
INVOKE = {"generation_mode": "txt2img", "positive_prompt": "a red apple", "negative_prompt": "blurry", "width": 512, "height": 768, "seed": 5,
          "rand_device": "cpu", "cfg_scale": 7.5, "steps": 30, "scheduler": "dpmpp_2m_k"}
INVOKED = {"tool": "InvokeAI", "prompt": "a red apple", "negative_prompt": "blurry", "seed": 5, "steps": 30, "guidance_scale": 7.5, "width": 512, "height": 768}
FOOOCUS = {"adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "fruitXL", "clip_skip": 2, "full_prompt": ["a red apple, cinematic"], "guidance_scale": 4.0,
           "loras": [["crisp", 0.5, "ab12"]], "metadata_scheme": "fooocus", "negative_prompt": "blurry", "prompt": "a red apple", "refiner_model": "None",
           "resolution": "(1152, 896)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "5", "steps": 30, "styles": "['Fooocus V2']",
           "vae": "Default (model)", "version": "Fooocus v2.5.5"}
MFLUX = {"mflux_version": "0.15.0", "model": "org/FLUX.1-dev", "base_model": "None", "seed": 42, "steps": 15, "guidance": 4.0, "height": 336, "width": 768,
         "lora_paths": ["/a/yarn.safetensors"], "lora_scales": [0.75], "prompt": "a red apple", "negative_prompt": None}
MOCHI = ("Include in Image: a red apple; on a table; Exclude from Image: blurry, ; Model: fruit-lightning; Steps: 6; Guidance Scale: 5.5; Seed: 666; "
         "Size: 1024x768; Scheduler: DPM++ SDE Karras; ML Compute Unit: CPU & GPU; Generator: Mochi Diffusion 6.0")
MOCHI_READ = {"tool": "Mochi Diffusion", "prompt": "a red apple; on a table", "negative_prompt": "blurry,", "model": "fruit-lightning", "steps": 6,
              "guidance_scale": 5.5, "seed": 666, "width": 1024, "height": 768, "sampler": "DPM++ SDE", "schedule": "Karras"}
NOVEL = {"prompt": "a red apple", "steps": 28, "height": 1216, "width": 832, "scale": 5.0, "cfg_rescale": 0.0, "seed": 33, "noise_schedule": "karras",
         "sampler": "k_euler_ancestral", "v4_prompt": {"caption": {"base_caption": "a red apple", "char_captions": [{"char_caption": "a worm"}]}},
         "v4_negative_prompt": {"caption": {"base_caption": "blurry", "char_captions": []}}}
NOVEL_READ = {"tool": "NovelAI", "prompt": "a red apple", "negative_prompt": "blurry", "steps": 28, "seed": 33, "guidance_scale": 5, "width": 832,
              "height": 1216, "sampler": "k_euler_ancestral", "schedule": "karras", "model": "NovelAI Diffusion V4.5", "says": ["a worm"]}
DRAW = {"c": "a red apple", "uc": "", "lora": [{"model": "wizard_f16.ckpt", "weight": 0.8}], "model": "fruit_q8p.ckpt", "sampler": "Euler A Trailing", "scale": 3.5,
        "seed": 9, "steps": 26, "strength": 1, "size": "768x1024", "profile": {"duration": 1.5}}
SWARM = {"sui_image_params": {"prompt": "a red apple", "negativeprompt": "blurry", "model": "fruit/xl", "seed": 20, "steps": 25, "cfgscale": 6.5,
         "loras": ["crisp"], "loraweights": ["0.6"], "aspectratio": "1:1", "width": 512, "height": 768, "swarm_version": "0.9.3"}, "sui_extra_data": {"date": "2024-11-19"}}
CPP = ("a red apple\nSteps: 20, CFG scale: 6.000000, Guidance: 3.500000, Eta: inf, Seed: 42, Size: 512x512, Model: , RNG: cuda, Sampler: euler discrete, "
       "TE: encoder.safetensors, Unet: fruit-Q8_0.gguf, VAE: vae.safetensors, Version: stable-diffusion.cpp")
GUIDED = {
    "20:0": node("KSamplerSelect", sampler_name="euler"), "20:1": node("RandomNoise", noise_seed=5),
    "20:3": node("BasicScheduler", scheduler="normal", steps=20, denoise=1.0, model=["4", 0]),
    "20:6": node("InstructPixToPixConditioning", positive=["6", 0], negative=["7", 0], vae=["4", 2], pixels=["13", 0]),
    "20:7": node("DualCFGGuider", cfg_conds=5.0, cfg_cond2_negative=1.5, model=["4", 0], cond1=["20:6", 0], cond2=["20:6", 1], negative=["7", 0]),
    "20:8": node("SamplerCustomAdvanced", noise=["20:1", 0], guider=["20:7", 0], sampler=["20:0", 0], sigmas=["20:3", 0], latent_image=["20:6", 2]),
    "13": node("LoadImage", image="a.png"),
}
XL = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 1024x1024, Model: sd_xl_base_1.0, Clip skip: 2"
RESOURCES = json.dumps([{"type": "checkpoint", "modelVersionId": 1, "modelName": "Orchard XL"}, {"type": "lora", "weight": 0.65, "modelVersionId": 2, "modelName": "Sharp, Tweaker"}])
NUMBERS = json.dumps([{"type": "checkpoint", "modelVersionId": 1}, {"type": "lora", "weight": 1, "modelVersionId": 210873}])
EXTRA = json.dumps({"prompt": "a red apple", "negativePrompt": "blurry", "steps": 20, "cfgScale": 7, "sampler": "euler", "seed": 5, "clipSkip": 2})


def without(fields, *names, **more):
    return {**{key: value for key, value in fields.items() if key not in names}, **more}


CASES = {
    "nan-in-graph.png": (png(("prompt", json.dumps({**graph(n3={**sampler(), "is_changed": [float("nan")]}), "7": {**graph()["7"], "is_changed": float("-inf")}}))), COMFY),
    "infinity-in-invoke.png": (png(("invokeai_metadata", json.dumps({**INVOKE, "x": float("inf")}))), INVOKED),
    "zeroed-negative.png": (prompt(graph(n7=node("ConditioningZeroOut", conditioning=["6", 0]))), without(COMFY, "negative_prompt", negative_prompt=None, flags={"--negative-prompt": None})),
    "same-text-on-both-sides.png": (prompt(graph(n3=sampler(negative=["6", 0]))), without(COMFY, "negative_prompt", negative_prompt=None, says=["the same text"])),
    "unknown-sampler.png": (png(("parameters", "a cat\nSteps: 20, Sampler: Nonesuch, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, Version: v1.10.1")),
                               {"prompt": "a cat", "flags": {"--schedule": None, "--sampler": None}, "says": ["Nonesuch", "karras"]}),
    "eta-without-noise.png": (png(("parameters", "a cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, Eta: 0.5, Version: v1.10.1")),
                   {"prompt": "a cat", "flags": {"--sampler": "dpm++2m", "--schedule": "karras", "--eta": None}, "says": ["eta 0.5"]}),
    "clip-skip-xl.png": (png(("parameters", XL + ", Version: v1.10.1")), {"tool": "AUTOMATIC1111", "clip_skip": 2, "flags": {"--clip-skip": None}, "says": ["clip skip 2"]}),
    "clip-skip-comfy-xl.png": (prompt(graph(n5=node("EmptyLatentImage", width=1024, height=1024, batch_size=1), n10=node("CLIPSetLastLayer", stop_at_clip_layer=-3, clip=["4", 1]),
                                               n6=node("CLIPTextEncode", text="a red apple", clip=["10", 0]))), {"clip_skip": 3, "flags": {"--clip-skip": "2"}}),
    "schedule-normal.png": (prompt(graph(n3=sampler(scheduler="normal"))), {**COMFY, "schedule": "normal", "flags": {"--timestep-spacing": "linspace"}}),
    "schedule-karras.png": (prompt(graph()), {**COMFY, "flags": {"--timestep-spacing": "linspace", "--schedule": "karras"}}),
    "schedule-simple.png": (prompt(graph(n3=sampler(scheduler="simple"))), {"schedule": "simple", "flags": {"--schedule": "simple", "--timestep-spacing": None}}),
    "unicode-utf8.jpg": (jpeg(comment(UNICODE, "utf-8")), {**READ, "prompt": "a red apple — ünïcode"}),
    "unicode-utf16-big.jpg": (jpeg(comment(UNICODE, "utf-16-be", little=False)), {**READ, "prompt": "a red apple — ünïcode"}),
    "unicode-utf16-big-in-little.jpg": (jpeg(comment(UNICODE, "utf-16-be")), {**READ, "prompt": "a red apple — ünïcode"}),
    "unicode-utf16-mark.jpg": (jpeg(comment(b"\xff\xfe" + UNICODE.encode("utf-16-le"), little=False)), {**READ, "prompt": "a red apple — ünïcode"}),
    "ascii-utf8.jpg": (jpeg(comment(UNICODE, "utf-8", b"ASCII\0\0\0")), {**READ, "prompt": "a red apple — ünïcode"}),
    "comment-without-head.jpg": (jpeg(comment(UNICODE, "utf-8", b"")), {**READ, "prompt": "a red apple — ünïcode"}),
    "comment-of-zeros.webp": (webp(comment(UNICODE, "utf-8", bytes(8)), b"Exif\0\0"), {**READ, "prompt": "a red apple — ünïcode"}),
    "exif-description.jpg": (jpeg(tiff([(0x010E, 2, INFOTEXT.encode() + b"\0")])), READ),
    "exif-xp-comment.jpg": (jpeg(tiff([(0x9C9C, 1, INFOTEXT.encode("utf-16-le") + b"\0\0")])), READ),
    "exif-in-png.png": (png((b"eXIf", b"Exif\0\0" + comment(UNICODE))), {**READ, "prompt": "a red apple — ünïcode"}),
    "civitai-bare-graph.jpg": (jpeg(comment(json.dumps({**graph(n4=node("CheckpointLoaderSimple", ckpt_name="urn:air:sd1:checkpoint:civitai:4384@128713")), "extra": {"airs": []}, "extraMetadata": EXTRA}))),
                          without(COMFY, "model", "tool", tool="Civitai", clip_skip=2, flags={"--model": None}, says=["urn:air:sd1"])),
    "civitai-upscaled.jpg": (jpeg(comment(json.dumps({"23": node("UpscaleModelLoader", model_name="x"), "12": node("SaveImage", images=["23", 0]), "extraMetadata": EXTRA}))),
                        {"tool": "Civitai", "prompt": "a red apple", "negative_prompt": "blurry", "seed": 5, "steps": 20, "guidance_scale": 7, "sampler": "euler", "model": None}),
    "civitai-resources.png": (png(("parameters", INFOTEXT + f", Created Date: 2024-10-25T10:37:03.07Z, Civitai resources: {RESOURCES}, Civitai metadata: {{}}")),
                         {**READ, "tool": "Civitai", "model": "Orchard XL", "loras": [["Sharp, Tweaker", 0.65]]}),
    "civitai-numbers.png": (png(("parameters", INFOTEXT + f", Civitai resources: {NUMBERS}")), {**READ, "model": None, "loras": [["210873", 1]]}),
    "efficiency.png": (prompt({
        "1": node("Efficient Loader", ckpt_name="v1-5.safetensors", vae_name="Baked VAE", clip_skip=-2, lora_name="crisp.safetensors", lora_model_strength=0.8,
                  lora_clip_strength=0.8, positive="a red apple", negative="blurry", empty_latent_width=512, empty_latent_height=768, batch_size=1),
        "2": node("KSampler (Efficient)", seed=5, steps=20, cfg=7.0, sampler_name="euler", scheduler="karras", denoise=1.0, model=["1", 0], positive=["1", 1],
                  negative=["1", 2], latent_image=["1", 3], optional_vae=["1", 4])}), {**COMFY, "clip_skip": 2, "loras": [["crisp.safetensors", 0.8]], "flags": {"--clip-skip": "2"}}),
    "efficiency-xl.png": (prompt({
        "1": node("Eff. Loader SDXL", base_ckpt_name="v1-5.safetensors", base_clip_skip=-2, lora_stack=["3", 0], positive="a red apple", negative="blurry", empty_latent_width=512,
                  empty_latent_height=768),
        "2": node("KSampler SDXL (Eff.)", noise_seed=5, steps=20, cfg=7.0, sampler_name="euler", scheduler="karras", sdxl_tuple=["1", 0], latent_image=["1", 1]),
        "3": node("LoRA Stacker", input_mode="simple", lora_count=2, lora_name_1="crisp", lora_wt_1=0.5, lora_name_2="None", lora_wt_2=1, lora_name_3="beyond", lora_wt_3=1)}),
        {**COMFY, "loras": [["crisp", 0.5]], "silent": ["beyond: "]}),
    "lora-loaders.png": (prompt(graph(n3=sampler(model=["11", 0]), n11=node("Power Lora Loader (rgthree)", lora_1={"on": True, "lora": "a.safetensors", "strength": 0.4},
                                   lora_2={"on": False, "lora": "b.safetensors", "strength": 1}, model=["12", 0]),
                                   n12=node("LoraLoader|pysssss", lora_name={"content": "c.safetensors"}, strength_model=-0.3, model=["4", 0], clip=["4", 1]))),
                      {**COMFY, "loras": [["a.safetensors", 0.4], ["c.safetensors", -0.3]], "silent": ["b.safetensors"]}),
    "detailer-first.png": (prompt({"1": node("FaceDetailer", seed=99, steps=8, cfg=3.0, sampler_name="dpmpp_2m", scheduler="normal", denoise=0.5, image=["8", 0], model=["4", 0],
                                                clip=["4", 1], vae=["4", 2], positive=["6", 0], negative=["7", 0]), **graph()}), {**COMFY, "strength": None, "says": ["FaceDetailer"]}),
    "second-pass-first.png": (prompt({"1": sampler(seed=99, denoise=0.5, latent_image=["2", 0]), "2": node("LatentUpscale", width=1024, height=1536, samples=["3", 0]), **graph()}),
                                  {**COMFY, "strength": None, "says": ["a further sampler"]}),
    "stealth-beside-software.png": (png(("Software", "gimp"), **stealth(INFOTEXT)), READ),
    "stealth-plain.png": (png(("Software", "gimp"), **stealth(INFOTEXT, b"stealth_pnginfo")), READ),
    "stealth-rgb.png": (png(**stealth(INFOTEXT, b"stealth_rgbcomp", (0, 1, 2), 3)), READ),
    "prompt-only.png": (png(("parameters", "a red apple")), {"prompt": "a red apple", "seed": None}),
    "other-keyword.jpg": (jpeg(tiff([(0x010E, 2, b"a red apple\0")])), {"recipe": None}),
    "invoke-3-beta.png": (png(("invokeai_metadata", json.dumps({"positive_conditioning": "a red apple", "negative_conditioning": "blurry", "width": 512, "height": 768, "seed": 5,
                                   "rand_device": "cuda", "cfg_scale": 7.5, "steps": 30, "scheduler": "dpmpp_2m_k", "model": {"model_name": "v1-5", "base_model": "sd-1"},
                                   "loras": [{"lora": {"model_name": "crisp"}, "weight": 0.7}]}))),
                              {**INVOKED, "model": "v1-5", "loras": [["crisp", 0.7]], "flags": {"--rng": "torch-cuda", "--sampler": "dpm++2m", "--schedule": "karras"}}),
    "raw-profile.png": (png(("Raw profile type exif", raw_profile("exif", b"Exif\0\0" + comment(INFOTEXT)))), READ),
    "raw-profile-app1.png": (png(("Raw profile type APP1", raw_profile("generic profile", b"Exif\0\0" + comment(INFOTEXT, "utf-8")))), READ),
    "raw-profile-iptc.png": (png(("Raw profile type iptc", raw_profile("iptc", iptc(MOCHI)[14:]))), MOCHI_READ),
    "fooocus.png": (png(("fooocus_scheme", "fooocus"), ("parameters", json.dumps(FOOOCUS))),
                        {"tool": "Fooocus", "prompt": "a red apple", "negative_prompt": "blurry", "seed": 5, "steps": 30, "guidance_scale": 4, "width": 1152, "height": 896, "model": "fruitXL",
                         "loras": [["crisp", 0.5]], "flags": {"--size": "1152x896", "--clip-skip": None}, "silent": ["resolution", "vae", "refiner_model: "]}),
    "fooocus-log.png": (png(("parameters", json.dumps({"Prompt": "a red apple", "Negative Prompt": "blurry", "Resolution": "(1152, 896)", "Guidance Scale": 4.0, "Base Model": "fruitXL",
                            "Sampler": "euler", "Scheduler": "karras", "Seed": 5, "Steps": 30, "LoRA 1": "crisp : 0.5", "Version": "Fooocus v2.1"}))),
                            {"tool": "Fooocus", "prompt": "a red apple", "width": 1152, "guidance_scale": 4, "model": "fruitXL", "schedule": "karras", "loras": [["crisp", 0.5]]}),
    "fooocus-infotext.png": (png(("parameters", "a red apple, cinematic\nNegative prompt: blurry\nSteps: 30, Sampler: DPM++ 2M SDE, Seed: 5, Size: 1152x896, CFG scale: 4.0, "
                                      "Model: fruitXL, Scheduler: exponential, VAE: Default (model), Lora weights: \"crisp: 0.4, other: 1.0\", Version: Fooocus v2.5.5")),
                                 {"tool": "Fooocus", "sampler": "DPM++ 2M SDE", "schedule": "exponential", "loras": [["crisp", 0.4], ["other", 1.0]], "flags": {"--schedule": "exponential"}}),
    "sdnext-class.png": (png(("parameters", "a red apple\nSteps: 20, Size: 512x512, Scheduler: EulerDiscreteScheduler, Seed: 5, CFG scale: 6, App: SD.Next, Version: 56a8aea")),
                             {"tool": "SD.Next", "sampler": "EulerDiscreteScheduler", "schedule": None, "flags": {"--sampler": "euler"}}),
    "invoke-clip-skip.png": (png(("invokeai_metadata", json.dumps({**INVOKE, "clip_skip": 1, "model": {"key": "k", "hash": "blake3:0", "name": "v1-5", "base": "sd-1"}}))),
                                 {**INVOKED, "model": "v1-5", "flags": {"--clip-skip": "2"}}),
    "dream-glued.png": (png(("Dream", '"a red apple, studio light [blurry]" -s50 -W512 -H768 -C7.5 -Ak_euler_a -S3357757885 -U 2 0.75 -f0.4')),
                      {"tool": "InvokeAI", "prompt": "a red apple, studio light", "negative_prompt": "blurry", "steps": 50, "seed": 3357757885, "width": 512, "height": 768,
                       "guidance_scale": 7.5, "sampler": "k_euler_a", "strength": 0.4}),
    "dream-without-quotes.png": (png(("Dream", "a red-ish apple -shaped lamp -s 30 -S 22 -W 512 -H 512 -C 7.5 -A k_euler_a --steps_x=3")),
                           {"prompt": "a red-ish apple -shaped lamp", "steps": 30, "seed": 22, "sampler": "k_euler_a"}),
    "two-guidances.png": (prompt({**graph(n3=None, n5=None), **GUIDED}), {**without(COMFY, "width", "height"), "guidance_scale": 5, "schedule": "normal", "width": None}),
    "both-sides-through-one-node.png": (prompt(graph(n3=sampler(positive=["30", 0], negative=["30", 1]), n30=node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0],
                                               control_net=["31", 0], image=["32", 0]), n31=node("ControlNetLoader", control_net_name="canny"), n32=node("LoadImage", image="a.png"))),
                                  {**COMFY, "says": ["ControlNetApplyAdvanced"]}),
    "computed-size.png": (prompt(graph(n5=node("EmptyLatentImage", width=["30", 0], height=["30", 1], batch_size=1), n30=node("GetImageSize", image=["31", 0]),
                                           n31=node("LoadImage", image="a.png"))), {**COMFY, "width": None, "height": None, "flags": {"--size": None}}),
    "chosen-size.png": (prompt(graph(n5=node("EmptyLatentImage", width=["30", 0], height=["30", 1], batch_size=1),
                                         n30=node("CR Aspect Ratio", width=1024, height=1024, aspect_ratio="3:4 portrait 896x1152", swap_dimensions="Off"))), {**COMFY, "width": 896, "height": 1152}),
    "computed-number.png": (prompt(graph(n3=sampler(steps=["30", 0], seed=["31", 0]), n30=node("SimpleMath+", value="a*b", a=3), n31=node("PrimitiveInt", value=77))), {**COMFY, "steps": None, "seed": 77}),
    "saver-keys.png": (png(("parameters", "a red apple\nNegative prompt: blurry\nSteps: 20, Sampler: euler_simple, CFG Scale: 8.0, Seed: 5, Size: 512x512, Model: v1-5, Version: ComfyUI")),
                           {"tool": "ComfyUI", "guidance_scale": 8, "sampler": "euler", "schedule": "simple", "flags": {"--sampler": "euler", "--guidance-scale": "8"}}),
    "infotext-and-graph.png": (png(("parameters", INFOTEXT.replace("Euler a", "euler_karras")), ("prompt", json.dumps(graph()))), {**COMFY, "flags": {"--rng": None}}),
    "saver-did-not-know.png": (png(("parameters", "unknown\nNegative prompt: unknown\nSteps: 20, Sampler: euler_simple, CFG Scale: 8.0, Seed: 0, Size: 512x512, Model hash: ab, Version: ComfyUI"),
                                       ("prompt", json.dumps(graph()))), {**COMFY, "model_hash": "ab"}),
    "ruinedfooocus.png": (png(("parameters", json.dumps({"Prompt": "a red apple", "Negative": ", blurry", "steps": 12, "cfg": 1.5, "width": 896, "height": 1152, "seed": 5, "sampler_name": "euler",
                                                      "scheduler": "simple", "base_model_name": "sub/orchard.safetensors", "base_model_hash": "e8", "loras": [["B2", "1.4 - styles/crisp.safetensors"]],
                                                      "denoise": None, "clip_skip": 1, "software": "RuinedFooocus"}))),
                       {"tool": "RuinedFooocus", "prompt": "a red apple", "negative_prompt": ", blurry", "seed": 5, "steps": 12, "guidance_scale": 1.5, "width": 896, "height": 1152,
                        "sampler": "euler", "schedule": "simple", "model": "sub/orchard.safetensors", "loras": [["styles/crisp.safetensors", 1.4]]}),
    "mflux.png": (png((b"eXIf", comment(json.dumps(MFLUX)))), {"tool": "mflux", "prompt": "a red apple", "negative_prompt": None, "model": "org/FLUX.1-dev", "guidance_scale": 4,
                                                                  "steps": 15, "seed": 42, "width": 768, "loras": [["/a/yarn.safetensors", 0.75]]}),
    "mochi.jpg": (jpeg(tiff([(0x010E, 2, MOCHI.encode() + b"\0")], little=False)), MOCHI_READ),
    "mochi-iptc.jpg": (jpeg(None, segment(0xED, iptc(MOCHI))), MOCHI_READ),
    "sdnext.jpg": (jpeg(comment("a red apple\nNegative prompt: \nSteps: 50, Size: 1024x1024, Seed: 8, CFG scale: 4.5, App: SD.Next, Version: f324b7c, Pipeline: X, Operations: txt2img, Model: fruit", "utf-16-be", little=False)),
                      {"tool": "SD.Next", "prompt": "a red apple", "negative_prompt": "", "steps": 50, "seed": 8, "guidance_scale": 4.5, "width": 1024, "model": "fruit"}),
    "stable-diffusion-cpp.png": (png(("parameters", CPP)), {"tool": "stable-diffusion.cpp", "model": "fruit-Q8_0.gguf", "sampler": "euler", "schedule": "discrete", "eta": None, "guidance_scale": 6,
                                              "flags": {"--sampler": "euler", "--eta": None, "--rng": "torch-cuda"}, "silent": ["inf"]}),
    "invoke-2.png": (png(("sd-metadata", json.dumps({"model": "stable diffusion", "model_id": "stable-diffusion-1.4", "model_hash": "fe", "app_version": "v1.15",
                             "image": {"seed": 15, "height": 384, "steps": 50, "prompt": [{"prompt": "fire", "weight": 1.0}], "width": 384, "cfg_scale": 7.5, "sampler": "ddim"}}))),
                        {"tool": "InvokeAI", "prompt": "fire", "model": "stable-diffusion-1.4", "seed": 15, "sampler": "ddim", "width": 384}),
    "wrapped-graph.jpg": (jpeg(comment(json.dumps({"prompt": graph(), "workflow": {"nodes": []}}), "utf-16-be")), COMFY),
    "wrapped-text.webp": (webp(comment(json.dumps({"prompt": json.dumps(graph()), "workflow": "{}"}), "utf-8")), COMFY),
    "named-fields.webp": (webp(tiff([(0x010E, 2, b"Workflow: {}\0"), (0x010F, 2, b"Prompt: " + json.dumps(graph()).encode() + b"\0")])), COMFY),
    "xmp.jpg": (jpeg(None, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<rdf:Description><comfy:prompt>" + json.dumps(graph()).replace('"', "&quot;").encode() + b"</comfy:prompt></rdf:Description>")), COMFY),
    "sample-prefix.png": (prompt(graph(n3=sampler(sampler_name="sample_dpmpp_2m", scheduler="normal"))), {"sampler": "sample_dpmpp_2m", "flags": {"--sampler": "dpm++2m"}}),
    "draw-things.png": (png(("XML:com.adobe.xmp", "<x:xmpmeta><xmp:CreatorTool>Draw Things</xmp:CreatorTool><exif:UserComment>\n<rdf:Alt>\n<rdf:li xml:lang=\"x-default\">"
                               + json.dumps(DRAW).replace('"', "&quot;") + "</rdf:li></rdf:Alt></exif:UserComment></x:xmpmeta>")),
                           {"tool": "Draw Things", "prompt": "a red apple", "negative_prompt": "", "seed": 9, "steps": 26, "guidance_scale": 3.5, "sampler": "Euler A", "schedule": "Trailing", "width": 768,
                            "height": 1024, "model": "fruit_q8p.ckpt", "loras": [["wizard_f16.ckpt", 0.8]], "flags": {"--sampler": "euler-a", "--timestep-spacing": "trailing"}}),
    # More of the same kinds.
    "novelai.webp": (webp(comment(json.dumps({"Comment": json.dumps(NOVEL), "Title": "NovelAI generated image"}), "utf-8", b"ASCII\0\0\0",
                                  ifd0=[(0x010E, 2, b"a red apple\0"), (0x0131, 2, b"NovelAI Diffusion V4.5 4BDE2A90\0")])), NOVEL_READ),
    "novelai-stealth.png": (png(("Software", "gimp"), **stealth(json.dumps({"Comment": json.dumps(NOVEL), "Source": "NovelAI Diffusion V4.5 4BDE2A90", "Software": "NovelAI"}))), NOVEL_READ),
    "hf-space.png": (png(("parameters", json.dumps({"prompt": "a red apple", "negative_prompt": "blurry", "resolution": "1024 x 768", "guidance_scale": 5.5, "num_inference_steps": 24, "seed": 4,
                                                    "sampler": "DPM++ 2M Karras", "Model": "Orchard XL", "Model hash": "BD", "use_upscaler": None}))),
                     {"tool": "HF Space", "prompt": "a red apple", "negative_prompt": "blurry", "width": 1024, "height": 768, "guidance_scale": 5.5, "steps": 24, "seed": 4, "sampler": "DPM++ 2M",
                      "schedule": "Karras", "model": "Orchard XL", "model_hash": "BD"}),
    "hf-space-nested-model.png": (png(("parameters", json.dumps({"prompt": "a red apple", "num_inference_steps": 24, "seed": 4, "Model": {"Model": "Orchard XL", "Model hash": "BD"}}))),
                                  {"tool": "HF Space", "model": "Orchard XL", "model_hash": "BD"}),
    "tensorart.png": (png(("generation_data", json.dumps({"prompt": "a red apple, raw", "negativePrompt": "blurry", "steps": 25, "seed": "-1", "baseModel": {"modelFileName": "orchard-16", "hash": "A5"}}) + "\0"),
                          ("prompt", json.dumps(graph(n4=node("ECHOCheckpointLoaderSimple", ckpt_name="EMS-1.safetensors"))))),
                      {**COMFY, "tool": "TensorArt", "prompt": "a red apple, raw", "model": "orchard-16", "model_hash": "A5"}),
    "stability-matrix.png": (png(("prompt", json.dumps(graph())), ("parameters", INFOTEXT), ("parameters-json", json.dumps({"PositivePrompt": "a red apple, raw", "NegativePrompt": "blurry", "ModelName": "v1-5.safetensors", "Steps": 20}))),
                             {**COMFY, "tool": "Stability Matrix", "prompt": "a red apple, raw"}),
    "swarmui.jpg": (jpeg(comment(json.dumps(SWARM, indent=2), "utf-16-be")), {"tool": "SwarmUI", "prompt": "a red apple", "model": "fruit/xl", "width": 512, "loras": [["crisp", 0.6]]}),
    "forge-neo.png": (png(("parameters", INFOTEXT + ", Version: neo")), {**READ, "tool": "Forge Neo"}),
    "tags.png": (png(("parameters", INFOTEXT.replace("apple", "apple <lora:Crisp V1.2:0.9>") + ", Lora hashes: \"Crisp V1.2: ab\"")), {"loras": [["Crisp V1.2", 0.9]]}),
    "unnamed-object.png": (png(("parameters", json.dumps({"software": "Orchard", "prompt": "a red apple", "steps": 9, "cfgScale": 3, "size": "64x64"}))),
                           {"tool": "Orchard", "prompt": "a red apple", "steps": 9, "guidance_scale": 3, "width": 64}),
    "odd-size.png": (png(("parameters", INFOTEXT.replace("64x64", "511x300"))), {"width": 511, "flags": {"--size": "512x304"}, "says": ["511x300"]}),
    "no-seed-no-steps.png": (png(("parameters", INFOTEXT.replace("Seed: 5", "Seed: -1").replace("Steps: 20", "Steps: 0"))), {"flags": {"--seed": None, "--steps": None}}),
    "strings.png": (prompt(graph(n6=node("CLIPTextEncode", text=["30", 0], clip=["4", 1]), n30=node("StringConcatenate", string_a=["31", 0], string_b="apple", delimiter=" "),
                                 n31=node("PrimitiveStringMultiline", value="a red"), n7=node("CLIPTextEncode", text=["32", 0], clip=["4", 1]), n32=node("easy negative", negative="blurry"))), COMFY),
    "switched.png": (prompt(graph(n6=node("CLIPTextEncode", text=["30", 0], clip=["4", 1]), n30=node("ComfySwitchNode", switch=False, on_true=["31", 0], on_false="a red apple"),
                                  n31=node("TextGenerate", prompt="write a prompt"))), COMFY),
    "made-while-it-ran.png": (prompt(graph(n6=node("CLIPTextEncode", text=["30", 0], clip=["4", 1]), n30=node("TextGenerate", prompt="write a prompt"))),
                              {**COMFY, "prompt": None, "command": False, "says": ["TextGenerate"]}),
    "encoder-of-two.png": (prompt(graph(n6=node("CLIPTextEncodeSDXL", text_g="a red apple", text_l="a red apple", width=1024, height=1024, clip=["4", 1]))), COMFY),
    "styler.png": (prompt(graph(n6=node("CLIPTextEncode", text=["30", 0], clip=["4", 1]), n7=node("CLIPTextEncode", text=["30", 1], clip=["4", 1]),
                                n30=node("SDXLPromptStyler", text_positive="a red apple", text_negative="blurry", style="base"))), COMFY),
    "regions.png": (prompt(graph(n3=sampler(positive=["30", 0]), n30=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["31", 0]), n31=node("CLIPTextEncode", text="a worm", clip=["4", 1]))),
                    {**COMFY, "prompt": "a red apple, a worm", "says": ["ConditioningCombine"]}),
    "no-sampler.png": (prompt({"1": node("LoadImage", image="a.png"), "2": node("SaveImage", images=["1", 0])}), {"tool": "ComfyUI", "prompt": None, "command": False, "says": ["not understood"]}),
    "custom-sampling.png": (prompt(graph(n3=node("SamplerCustom", add_noise=True, noise_seed=5, cfg=7.0, model=["4", 0], positive=["6", 0], negative=["7", 0], sampler=["30", 0], sigmas=["31", 0], latent_image=["5", 0]),
                                         n30=node("SamplerEulerAncestral", eta=1.0), n31=node("SplitSigmas", step=3, sigmas=["32", 0]), n32=node("KarrasScheduler", steps=20, rho=7))),
                            {**COMFY, "sampler": "euler_ancestral", "eta": 1, "silent": ["rho"]}),
    "custom-sampling-heun.png": (prompt(graph(n3=node("SamplerCustom", add_noise=True, noise_seed=5, cfg=7.0, model=["4", 0], positive=["6", 0], negative=["7", 0], sampler=["30", 0], sigmas=["32", 0], latent_image=["5", 0]),
                                              n30=node("SamplerDPMPP_2M_SDE", solver_type="heun", eta=0.5, s_noise=1.1), n32=node("KarrasScheduler", steps=20, rho=5))),
                                 {**COMFY, "sampler": "dpmpp_2m_sde_heun", "eta": 0.5, "flags": {"--sampler": "dpm++2m-sde-heun", "--eta": "0.5"}, "says": ["s_noise of SamplerDPMPP_2M_SDE: 1.1", "rho of KarrasScheduler: 5"]}),
    "comfy-ddim.png": (prompt(graph(n3=sampler(sampler_name="ddim"))), {**COMFY, "sampler": "ddim", "flags": {"--sampler": "euler", "--schedule": "karras", "--timestep-spacing": "linspace"}, "says": ["ddim of ComfyUI is euler here"]}),
    "a1111-eta-ddim.png": (png(("parameters", INFOTEXT.replace("Euler a", "DDIM") + ", Eta DDIM: 0.3, Version: v1.10.1")), {"eta": 0.3, "flags": {"--sampler": "ddim", "--eta": "0.3"}}),
    "stable-diffusion-cpp-default.png": (png(("parameters", CPP.replace("euler discrete", "euler_a default"))), {"sampler": "euler_a", "flags": {"--sampler": "euler-a"}}),
    "zeroed-behind-a-control-net.png": (prompt(graph(n3=sampler(positive=["30", 0], negative=["30", 1]), n30=node("ControlNetApplyAdvanced", positive=["6", 0], negative=["33", 0], control_net=["31", 0]),
                                                     n31=node("ControlNetLoader", control_net_name="canny"), n33=node("ConditioningZeroOut", conditioning=["6", 0]), n7=None)),
                                        {**without(COMFY, "negative_prompt"), "negative_prompt": None, "says": ["canny"]}),
    "camera.jpg": (jpeg(tiff([(0x010F, 2, b"Orchard Cameras\0"), (0x0110, 2, b"Prompt: one\0"), (0x010E, 2, b"OLYMPUS DIGITAL CAMERA\0")])), {"recipe": None}),
}


# What each case is about.
ABOUT = {
    "nan-in-graph.png": "Python's JSON writes NaN and infinities, which JSON does not have",
    "infinity-in-invoke.png": "the same in another tool's object",
    "zeroed-negative.png": "zeros stand in for the negative prompt, so no text behind them counts",
    "same-text-on-both-sides.png": "the prompt's encoder feeds the negative side too: no negative prompt of its own",
    "unknown-sampler.png": "without a known sampler its schedule is a note and no flag",
    "eta-without-noise.png": "an eta that does not go with the sampler is a note and no flag",
    "clip-skip-xl.png": "A1111's clip skip changes nothing with SDXL",
    "clip-skip-comfy-xl.png": "ComfyUI counts from the last layer, and SDXL takes the last but one by itself",
    "schedule-normal.png": "ComfyUI's normal schedule begins at the largest sigma",
    "schedule-karras.png": "and so does its Karras schedule",
    "schedule-simple.png": "its simple schedule begins where it says itself",
    "unicode-utf8.jpg": "UTF-8 behind the mark for UTF-16",
    "unicode-utf16-big.jpg": "UTF-16 in the byte order of its EXIF block, the big one",
    "unicode-utf16-big-in-little.jpg": "UTF-16 in the other order than its EXIF block",
    "unicode-utf16-mark.jpg": "UTF-16 with a byte order mark that contradicts its block",
    "ascii-utf8.jpg": "UTF-8 behind the mark for ASCII",
    "comment-without-head.jpg": "a comment without the eight bytes that name its coding",
    "comment-of-zeros.webp": "a comment whose coding is eight zeros, in a block with JPEG's head",
    "exif-description.jpg": "the settings under EXIF's ImageDescription",
    "exif-xp-comment.jpg": "the settings under Windows' XPComment, which is UTF-16",
    "exif-in-png.png": "a PNG with an EXIF chunk that has JPEG's head",
    "civitai-bare-graph.jpg": "Civitai's graph without a wrapper, what is no node beside the nodes, a model by its number",
    "civitai-upscaled.jpg": "Civitai's upscaled image: the settings stand in extraMetadata, and the upscaler is no model",
    "civitai-resources.png": "a list with commas is one value; it names the model and the LoRAs",
    "civitai-numbers.png": "the same list with numbers alone: a number is no model's name",
    "efficiency.png": "a loader that has size, clip skip, texts and a LoRA",
    "efficiency-xl.png": "the same loader for SDXL with a stack, of which the count says how many are used",
    "lora-loaders.png": "LoRA loaders that keep an object for each, switched on or off, or a preview beside the name",
    "detailer-first.png": "a detailer stands first in the file, and the sampler's settings count",
    "second-pass-first.png": "a second pass stands first in the file, and the first pass counts",
    "stealth-beside-software.png": "text hidden in the alpha channel although an editor has left its name",
    "stealth-plain.png": "the same, not compressed",
    "stealth-rgb.png": "text hidden in the colours",
    "prompt-only.png": "a text without settings is a prompt, as A1111 reads it",
    "other-keyword.jpg": "under a keyword that others use such a text is anything",
    "invoke-3-beta.png": "InvokeAI's first names for the prompts, and noise of CUDA",
    "raw-profile.png": "ImageMagick keeps EXIF in PNG as hexadecimal digits",
    "raw-profile-app1.png": "under another name of the same",
    "raw-profile-iptc.png": "and IPTC's caption likewise",
    "fooocus.png": "a resolution in brackets, SDXL's own layer as clip skip, defaults that need no word",
    "fooocus-log.png": "Fooocus' names for people",
    "fooocus-infotext.png": "Fooocus in A1111's form: its Scheduler is a schedule",
    "sdnext-class.png": "SD.Next's Scheduler is a class, and so a sampler",
    "invoke-clip-skip.png": "InvokeAI counts the layers that are left out, from 0",
    "dream-glued.png": "a command line whose values are glued to their letters",
    "dream-without-quotes.png": "the same without quotation marks around the prompt, which has dashes",
    "two-guidances.png": "a guider of two guidances: the first is the prompt's",
    "both-sides-through-one-node.png": "a node takes both sides and hands them on under two outputs",
    "computed-size.png": "a size that a node measures is not known",
    "chosen-size.png": "a size in the words of a list is known",
    "computed-number.png": "a number that a node computes is not known, one that it holds is",
    "saver-keys.png": "keys in any case; a sampler and a schedule in one word",
    "infotext-and-graph.png": "a text like A1111's beside a graph: ComfyUI made it, and its noise is the CPU's",
    "saver-did-not-know.png": "a saver that writes \"unknown\" where the graph knows",
    "ruinedfooocus.png": "RuinedFooocus' object, its LoRA as hash, weight and name",
    "mflux.png": "mflux, which is easily taken for Fooocus",
    "mochi.jpg": "Mochi Diffusion's pairs in EXIF, semicolons in the prompt",
    "mochi-iptc.jpg": "and in IPTC's caption",
    "sdnext.jpg": "SD.Next, whose version looks like Forge's",
    "stable-diffusion-cpp.png": "method and scheduler in one value, the model under another key, inf for \"not given\"",
    "invoke-2.png": "the model's name beside a generic one",
    "wrapped-graph.jpg": "graph and workflow in one object in EXIF",
    "wrapped-text.webp": "the same with the graph as a text",
    "named-fields.webp": "the same as fields of a camera with a word before each",
    "xmp.jpg": "the graph in XMP",
    "sample-prefix.png": "ComfyUI's names of samplers once had a prefix",
    "draw-things.png": "a sampler's name that ends in a timestep spacing",
    "novelai.webp": "NovelAI in WebP, characters' prompts of their own",
    "novelai-stealth.png": "NovelAI's hidden text after an editor",
    "hf-space.png": "a space on the hub that writes diffusers' words",
    "hf-space-nested-model.png": "the same with an object for the model",
    "tensorart.png": "TensorArt's object beside a graph with placeholders",
    "stability-matrix.png": "Stability Matrix' object beside graph and text",
    "swarmui.jpg": "SwarmUI in EXIF, weights in a list of their own",
    "forge-neo.png": "a fork that only its version names",
    "tags.png": "a LoRA's name with a blank and a dot",
    "unnamed-object.png": "an object of a tool that nobody knows, in everybody's words",
    "odd-size.png": "a size that is no multiple of 8",
    "no-seed-no-steps.png": "a seed and steps that are none",
    "strings.png": "texts through nodes that join and hold them",
    "switched.png": "a node that lets one of two texts through",
    "made-while-it-ran.png": "a text that was made while the graph ran is not known, and then there is no command",
    "encoder-of-two.png": "an encoder that takes the text twice",
    "styler.png": "a node with both texts and two outputs",
    "regions.png": "several texts on one side",
    "no-sampler.png": "a graph without a sampler is said not to be understood",
    "custom-sampling.png": "sampler, noise levels and noise in nodes of their own",
    "custom-sampling-heun.png": "a node's solver is a part of the sampler's name, its eta is carried over, and what has no flag is said",
    "comfy-ddim.png": "ComfyUI's ddim is Euler's method, with any schedule",
    "a1111-eta-ddim.png": "A1111's eta of DDIM has a key of its own",
    "stable-diffusion-cpp-default.png": "a scheduler by the word for the usual one",
    "zeroed-behind-a-control-net.png": "zeros stand in for the negative prompt behind a node of both sides",
    "camera.jpg": "a camera's EXIF is no recipe",
}


def main():
    HERE.mkdir(exist_ok=True)
    for old in HERE.iterdir():
        old.unlink()
    expected = []
    for name, (data, wanted) in CASES.items():
        (HERE / name).write_bytes(data)
        expected.append({"file": name, "about": ABOUT.pop(name), **wanted})
    assert not ABOUT, ABOUT
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in expected)
    (HERE.parent / "cases.json").write_text(f"[\n{lines}\n]\n")


main()
