"""Small images as the field's tools write them, and what its two readers see in them.

Writes an image a case beside this file, `expected.json` (what this project's reader must see) and `readers.json` (what PyPI's
sd-parsers and sd-prompt-reader see, in the same fields), and fails where a reader that knows the tool sees something else than expected.
`sd-gen.png` is written by sd-gen itself (see tests/metadata.rs) and only read here.

Needs: pip install sd-parsers==0.6 sd-prompt-reader==1.3.5 pillow piexif toml
"""

import gzip
import json
import struct
import sys
from pathlib import Path

import piexif
import piexif.helper
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager
from sd_parsers.extractors import Eagerness
from sd_prompt_reader.image_data_reader import ImageDataReader

HERE = Path(__file__).parent
FIELDS = ["prompt", "negative_prompt", "model", "sampler", "seed", "guidance_scale", "steps", "width", "height"]


def case(prompt, negative, model, sampler, seed, guidance, steps, size=(512, 768), **more):
    values = [prompt, negative, model, sampler, seed, guidance, steps, *size]
    return {**{name: value for name, value in zip(FIELDS, values) if value is not None}, **more}


PROMPT, NEGATIVE = "a lighthouse at dusk, (waves:1.2)", "blurry, worse"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras",
          "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": PROMPT, "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": NEGATIVE, "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}
WORKFLOW = {"nodes": [], "links": [
    [1, 4, 0, 3, 0, "MODEL"], [2, 5, 0, 3, 3, "LATENT"], [3, 4, 1, 6, 0, "CLIP"], [4, 6, 0, 3, 1, "CONDITIONING"],
    [5, 4, 1, 7, 0, "CLIP"], [6, 7, 0, 3, 2, "CONDITIONING"], [7, 3, 0, 8, 0, "LATENT"], [8, 4, 2, 8, 1, "VAE"], [9, 8, 0, 9, 0, "IMAGE"]], "version": 0.4}
# A graph of an extension: seed and text in nodes of their own, a LoRA between checkpoint and sampler.
LONG_GRAPH = json.loads(json.dumps(GRAPH))
LONG_GRAPH["3"]["inputs"].update(model=["10", 0], seed=["11", 0])
LONG_GRAPH["6"]["inputs"]["text"] = ["12", 0]
LONG_GRAPH["10"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "detail.safetensors", "strength_model": 0.8, "strength_clip": 1.0, "model": ["4", 0], "clip": ["4", 1]}}
LONG_GRAPH["11"] = {"class_type": "CR Seed", "inputs": {"seed": 77}}
LONG_GRAPH["12"] = {"class_type": "SDXLPromptStyler", "inputs": {"text": PROMPT}}

A1111 = (f"{PROMPT}\nNegative prompt: {NEGATIVE}\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768, "
         "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, Version: v1.10.1")
CPP = (f"{PROMPT}\nNegative prompt: {NEGATIVE}\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 42, Size: 512x768, "
       "Model: sd15.safetensors, RNG: cuda, Sampler: euler_a karras, Version: stable-diffusion.cpp")
FOOOCUS = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "base_model": "juggernautXL_v8", "base_model_hash": "aeb7e9e689", "sampler": "dpmpp_2m_sde_gpu",
           "scheduler": "karras", "seed": "3911", "guidance_scale": 4.0, "cfg": 4.0, "steps": 30, "width": 512, "height": 768, "version": "Fooocus v2.5.5"}
INVOKE = {"generation_mode": "txt2img", "positive_prompt": PROMPT, "negative_prompt": NEGATIVE, "width": 512, "height": 768, "seed": 55, "rand_device": "cpu",
          "cfg_scale": 7.5, "steps": 30, "scheduler": "euler", "model": {"model_name": "stable-diffusion-v1-5", "base_model": "sd-1", "model_type": "main"}}
INVOKE2 = {"model": "stable diffusion", "model_weights": "stable-diffusion-1.5", "model_hash": "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516",
           "app_id": "invoke-ai/InvokeAI", "app_version": "2.3.0", "image": {"prompt": [{"prompt": f"{PROMPT} [{NEGATIVE}]", "weight": 1}], "steps": 50,
           "cfg_scale": 7.5, "threshold": 0, "perlin": 0, "height": 768, "width": 512, "seed": 2130, "type": "txt2img", "sampler": "k_lms"}}
NOVEL = {"prompt": PROMPT, "steps": 28, "height": 768, "width": 512, "scale": 11.0, "uncond_scale": 1.0, "cfg_rescale": 0.0, "seed": 33, "n_samples": 1,
         "noise_schedule": "native", "sampler": "k_euler_ancestral", "uc": NEGATIVE}
NOVEL_CHUNKS = {"Title": "AI generated image", "Description": PROMPT, "Software": "NovelAI", "Source": "Stable Diffusion 1D44365E", "Comment": json.dumps(NOVEL)}
SWARM = {"sui_image_params": {"prompt": PROMPT, "negativeprompt": NEGATIVE, "model": "OfficialStableDiffusion/sd_xl_base_1.0", "seed": 20, "steps": 25,
         "cfgscale": 6.5, "comfyuisampler": "euler", "comfyuischeduler": "normal", "width": 512, "height": 768, "swarm_version": "0.9.2"}}
EASY = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "use_stable_diffusion_model": "/models/sd-v1-4.ckpt", "sampler_name": "euler_a", "seed": 11,
        "guidance_scale": 7.5, "num_inference_steps": 25, "width": 512, "height": 768, "use_vae_model": "None"}
DRAW = {"c": PROMPT, "uc": NEGATIVE, "model": "realistic_v3_f16.ckpt", "sampler": "Euler A", "seed": 9, "scale": 7.5, "steps": 20, "strength": 1, "size": "512x768"}
DRAW_XMP = ('<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
            'xmlns:exif="http://ns.adobe.com/exif/1.0/"><exif:UserComment>\n<rdf:Alt>\n<rdf:li xml:lang="x-default">'
            + json.dumps(DRAW).replace('"', "&quot;") + "</rdf:li>\n</rdf:Alt>\n</exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>")
MFLUX = {"mflux_version": "0.12.1", "model": "z-image-turbo", "seed": 4, "steps": 9, "guidance": 3.5, "height": 768, "width": 512, "precision": "mlx.core.bfloat16",
         "quantize": 8, "generation_time_seconds": 12.1, "prompt": PROMPT, "negative_prompt": NEGATIVE}


def png(*chunks, size=(4, 4), exif=None, packed=False, international=False):
    def write(path):
        info = PngInfo()
        for keyword, text in chunks:
            if international:
                info.add_itxt(keyword, text, zip=packed)
            else:
                info.add_text(keyword, text, zip=packed)
        Image.new("1", size).save(path, pnginfo=info, **({"exif": exif} if exif else {}))
    return write


def comment(text, kind, **more):
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: piexif.helper.UserComment.dump(text, encoding="unicode")}, **more})
    return lambda path: Image.new("RGB", (4, 4)).save(path, kind, exif=exif)


def jpeg_comment(text):
    return lambda path: Image.new("RGB", (4, 4)).save(path, "JPEG", comment=text.encode())


def webp_fields(**fields):
    def write(path):
        image = Image.new("RGB", (4, 4))
        exif = image.getexif()
        for tag, text in zip([0x010F, 0x0110], fields.values()):
            exif[tag] = text
        image.save(path, "WEBP", exif=exif, lossless=True)
    return write


def stealth(payload, signature=b"stealth_pngcomp"):
    """Bits in the lowest bit of alpha, column by column."""
    packed = gzip.compress(payload.encode(), mtime=0)
    bits = "".join(f"{byte:08b}" for byte in signature + struct.pack(">I", len(packed) * 8) + packed)

    def write(path):
        width, height = 64, -(-len(bits) // 64)
        image = Image.new("RGBA", (width, height), (0, 0, 0, 254))
        for at, bit in enumerate(bits):
            image.putpixel((at // height, at % height), (0, 0, 0, 254 + int(bit)))
        image.save(path)
    return write


V15 = "v1-5-pruned-emaonly"
COMFY = case(PROMPT, NEGATIVE, V15 + ".safetensors", "dpmpp_2m", 156680208700286, 8.0, 20, tool="ComfyUI", schedule="karras")
WEBUI = case(PROMPT, NEGATIVE, V15, "DPM++ 2M", 123, 7, 20, tool="AUTOMATIC1111", schedule="Karras", model_hash="6ce0161689", clip_skip=2, version="v1.10.1")
NOVELAI = case(PROMPT, NEGATIVE, "Stable Diffusion", "k_euler_ancestral", 33, 11.0, 28, tool="NovelAI", model_hash="1D44365E")
CASES = {
    "a1111.png": (png(("parameters", A1111)), WEBUI),
    "a1111-ztxt.png": (png(("parameters", A1111), packed=True), WEBUI),
    "a1111-itxt.png": (png(("parameters", A1111.replace("dusk", "dusk — 東京")), packed=True, international=True), {**WEBUI, "prompt": PROMPT.replace("dusk", "dusk — 東京")}),
    "a1111.jpg": (comment(A1111, "JPEG"), WEBUI),
    "a1111.webp": (comment(A1111, "WEBP"), WEBUI),
    "a1111-stealth.png": (stealth(A1111), WEBUI),
    "sdcpp.png": (png(("parameters", CPP)), case(PROMPT, NEGATIVE, "sd15.safetensors", "euler_a", 42, 7.0, 20, tool="stable-diffusion.cpp", schedule="karras")),
    "comfyui.png": (png(("prompt", json.dumps(GRAPH)), ("workflow", json.dumps(WORKFLOW)), size=(512, 768)), COMFY),
    "comfyui-long.png": (png(("prompt", json.dumps(LONG_GRAPH)), ("workflow", json.dumps(WORKFLOW))), {**COMFY, "seed": 77}),
    "comfyui.webp": (webp_fields(workflow="workflow:" + json.dumps(WORKFLOW), prompt="prompt:" + json.dumps(GRAPH)), COMFY),
    "fooocus.png": (png(("fooocus_scheme", "fooocus"), ("parameters", json.dumps(FOOOCUS))),
                    case(PROMPT, NEGATIVE, "juggernautXL_v8", "dpmpp_2m_sde_gpu", 3911, 4.0, 30, tool="Fooocus", model_hash="aeb7e9e689")),
    "fooocus-comment.png": (png(("Comment", json.dumps(FOOOCUS))), case(PROMPT, NEGATIVE, "juggernautXL_v8", "dpmpp_2m_sde_gpu", 3911, 4.0, 30, tool="Fooocus")),
    "fooocus.jpg": (jpeg_comment(json.dumps(FOOOCUS)), case(PROMPT, NEGATIVE, "juggernautXL_v8", "dpmpp_2m_sde_gpu", 3911, 4.0, 30, tool="Fooocus")),
    "invokeai.png": (png(("invokeai_metadata", json.dumps(INVOKE))), case(PROMPT, NEGATIVE, "stable-diffusion-v1-5", "euler", 55, 7.5, 30, tool="InvokeAI")),
    "invokeai-2.png": (png(("sd-metadata", json.dumps(INVOKE2))), case(PROMPT, NEGATIVE, "stable-diffusion-1.5", "k_lms", 2130, 7.5, 50, tool="InvokeAI")),
    "invokeai-dream.png": (png(("Dream", f'"{PROMPT} [{NEGATIVE}]" -s 50 -S 1234 -W 512 -H 768 -C 7.5 -A k_euler_a')),
                           case(PROMPT, NEGATIVE, None, "k_euler_a", 1234, 7.5, 50, tool="InvokeAI")),
    "novelai.png": (png(*NOVEL_CHUNKS.items(), size=(512, 768)), NOVELAI),
    "novelai-stealth.png": (stealth(json.dumps(NOVEL_CHUNKS)), NOVELAI),
    "swarmui.png": (png(("parameters", json.dumps(SWARM))), case(PROMPT, NEGATIVE, "OfficialStableDiffusion/sd_xl_base_1.0", "euler", 20, 6.5, 25, tool="SwarmUI")),
    "swarmui.jpg": (comment(json.dumps(SWARM), "JPEG"), case(PROMPT, NEGATIVE, "OfficialStableDiffusion/sd_xl_base_1.0", "euler", 20, 6.5, 25, tool="SwarmUI")),
    "easydiffusion.png": (png(*((key, str(value)) for key, value in EASY.items())), case(PROMPT, NEGATIVE, "/models/sd-v1-4.ckpt", "euler_a", 11, 7.5, 25, tool="Easy Diffusion")),
    "easydiffusion.jpg": (comment(json.dumps(EASY), "JPEG"), case(PROMPT, NEGATIVE, "/models/sd-v1-4.ckpt", "euler_a", 11, 7.5, 25, tool="Easy Diffusion")),
    "drawthings.png": (png(("XML:com.adobe.xmp", DRAW_XMP), international=True), case(PROMPT, NEGATIVE, "realistic_v3_f16.ckpt", "Euler A", 9, 7.5, 20, tool="Draw Things")),
    "mflux.png": (png(exif=piexif.dump({"Exif": {piexif.ExifIFD.UserComment: b"UNICODE\0" + json.dumps(MFLUX).encode("utf-16-le")}})),
                  case(PROMPT, NEGATIVE, "z-image-turbo", None, 4, 3.5, 9, tool="mflux")),
    "mold.png": (png(("mold:prompt", PROMPT), ("mold:model", "sd15:fp16"), ("mold:seed", "6"), ("mold:steps", "25"), ("mold:guidance", "7.5"),
                     ("mold:width", "512"), ("mold:height", "768")), case(PROMPT, None, "sd15:fp16", None, 6, 7.5, 25, tool="mold")),
    "nothing.png": (png(), None),
}


def with_sd_parsers(path):
    info = ParserManager(eagerness=Eagerness.EAGER).parse(path)
    if info is None or not info.samplers:
        return None
    sampler = info.samplers[0]
    given = {**info.metadata, **sampler.parameters}
    found = {"tool": info.generator.value, "prompt": info.full_prompt, "negative_prompt": info.full_negative_prompt, "sampler": sampler.name,
             "model": sampler.model and sampler.model.name, "seed": given.get("seed"), "guidance_scale": given.get("cfg_scale"), "steps": given.get("steps")}
    size = str(given.get("Size", "x")).split("x")
    found["width"], found["height"] = given.get("width", size[0]), given.get("height", size[1])
    return {name: value for name, value in found.items() if value not in (None, "")}


def with_sd_prompt_reader(path):
    with open(path, "rb") as file:
        reader = ImageDataReader(file)
    if not reader.tool or reader.status.name != "READ_SUCCESS":
        return None
    names = {"model": "model", "sampler": "sampler", "seed": "seed", "cfg": "guidance_scale", "steps": "steps"}
    found = {"tool": reader.tool, "prompt": reader.positive, "negative_prompt": reader.negative, "width": reader.width, "height": reader.height}
    found |= {ours: reader.parameter.get(theirs) for theirs, ours in names.items()}
    return {name: value for name, value in found.items() if value not in (None, "", "None", "0")}


def tried(reader, path):
    try:
        return reader(path)
    except Exception:  # both fall over some files that are not theirs
        return None


def same(one, other):
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        # A path, and the name at its end: sd-prompt-reader leaves the folders out.
        return one == other or str(one).rsplit("/", 1)[-1] == str(other)


def main():
    for name, (write, _) in CASES.items():
        write(HERE / name)
    expected = {name: wanted for name, (_, wanted) in CASES.items()}
    expected["sd-gen.png"] = json.loads((HERE / "sd-gen.json").read_text())
    seen, wrong = {}, []
    for name, wanted in expected.items():
        seen[name] = {reader.__name__.removeprefix("with_"): tried(reader, HERE / name) for reader in (with_sd_parsers, with_sd_prompt_reader)}
        for reader, found in seen[name].items():
            for field in FIELDS:
                if found and field in found and field in (wanted or {}) and not same(wanted[field], found[field]):
                    wrong.append(f"{name}: {reader} sees {field} {found[field]!r} and not {wanted[field]!r}")
    for reader, found in seen["sd-gen.png"].items():
        missing = [field for field in FIELDS if field not in (found or {}) and field in expected["sd-gen.png"]]
        if missing:
            wrong.append(f"sd-gen.png: {reader} does not see {missing}")
    (HERE / "expected.json").write_text(json.dumps({name: wanted for name, wanted in expected.items() if name != "sd-gen.png"}, indent=1, ensure_ascii=False) + "\n")
    (HERE / "readers.json").write_text(json.dumps({"differences": wrong, "seen": seen}, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(wrong) or "both readers agree")
    return any(line.startswith("sd-gen.png") for line in wrong)


if __name__ == "__main__":
    sys.exit(main())
