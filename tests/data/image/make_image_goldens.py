"""Small images in every dress, and what Pillow, OpenCV and diffusers make of them.

    python make_image_goldens.py          (pillow, numpy, opencv-python-headless, diffusers 0.36)

Writes goldens.json beside itself: files in base64 with the pixels that Pillow reads, resized images, blurred masks, crops and overlays.
Pixels are base64 of the raw bytes, `size` is [width, height].
"""
import base64, io, json, pathlib
import cv2
import numpy as np
from PIL import Image, ImageOps
from diffusers.image_processor import VaeImageProcessor

rng = np.random.default_rng(5)
b64 = lambda raw: base64.b64encode(bytes(raw)).decode()


def smooth(w, h, channels=3):
    y, x = np.mgrid[0:h, 0:w]
    parts = [127 + 120 * np.sin(x / (3 + c) + y / (5 - c) + c) + rng.normal(0, 9, (h, w)) for c in range(channels)]
    a = np.clip(np.stack(parts, -1), 0, 255).astype(np.uint8)
    return Image.fromarray(a if channels > 1 else a[..., 0])


def pixels(image): return {"size": list(image.size), "bytes": b64(image.tobytes())}


out = {"files": [], "resized": [], "regions": [], "filled": [], "cropped": [], "overlays": [], "blurred": []}

# Files: every dress of the formats. `levels` is how far decoders may be apart.
base = smooth(11, 7)
def file(name, image, kind, levels=0, **how):
    buffer = io.BytesIO(); image.save(buffer, kind, **how)
    read = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue())))
    entry = {"name": name, "file": b64(buffer.getvalue()), "levels": levels, "rgb": pixels(read.convert("RGB"))}
    if "A" in read.getbands(): entry["alpha"] = pixels(read.getchannel("A"))
    out["files"].append(entry)
    return entry
file("png", base, "PNG"); file("bmp", base, "BMP"); file("tiff", base, "TIFF"); file("tiff-lzw", base, "TIFF", compression="tiff_lzw"); file("webp", base, "WEBP", lossless=True)
file("grey", base.convert("L"), "PNG"); file("one-bit", base.convert("1"), "PNG"); file("palette", base.convert("P", palette=Image.Palette.ADAPTIVE, colors=16), "PNG")
gif = base.convert("P", palette=Image.Palette.ADAPTIVE, colors=16); file("gif", gif, "GIF")
rgba = base.copy(); rgba.putalpha(smooth(11, 7, 1)); file("rgba", rgba, "PNG"); file("grey-alpha", rgba.convert("LA"), "PNG"); file("webp-rgba", rgba, "WEBP", lossless=True, exact=True)
clear = base.convert("P", palette=Image.Palette.ADAPTIVE, colors=16); file("palette-transparent", clear, "PNG", transparency=3)
for n in range(1, 9):
    exif = Image.Exif(); exif[0x0112] = n
    file(f"orientation-{n}", base, "PNG", exif=exif)
exif = Image.Exif(); exif[0x0112] = 6
flat = Image.fromarray(np.repeat(np.repeat(rng.integers(0, 255, (2, 3, 3), np.uint8), 8, 0), 8, 1)); file("jpeg-orientation", flat, "JPEG", 2, exif=exif, quality=95, subsampling=0)
file("jpeg-grey", flat.convert("L"), "JPEG", 2, quality=95); file("webp-orientation", base, "WEBP", lossless=True, exif=exif)
# 16 bits become their high byte; Pillow itself clips grey.
deep = (np.asarray(base.convert("L")).astype(np.uint16) << 8) + rng.integers(0, 256, (7, 11)).astype(np.uint16)
buffer = io.BytesIO(); Image.fromarray(deep).save(buffer, "PNG")
out["files"].append({"name": "grey-16", "file": b64(buffer.getvalue()), "levels": 0, "rgb": pixels(Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB"))})

# Files that are refused, and a word of the reason.
cmyk = io.BytesIO(); base.convert("CMYK").save(cmyk, "JPEG")
frames = [smooth(5, 4) for _ in range(2)]
def animation(kind, **how):
    buffer = io.BytesIO(); frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **how); return buffer.getvalue()
out["refused"] = [{"file": b64(raw), "says": says} for raw, says in (
    (cmyk.getvalue(), "CMYK"), (animation("GIF"), "animation"), (animation("PNG"), "animation"), (animation("WEBP", lossless=True), "animation"),
    (b"a text file that is named .png", "not an image"), (b"", "empty"), (base64.b64decode(out["files"][0]["file"])[:60], "broken"))]

# Resizing.
big = smooth(37, 23)
for filter in ("bicubic", "lanczos"):
    for size in ((16, 8), (64, 48), (37, 40), (20, 23), (1, 1), (5, 90)):
        out["resized"].append({"filter": filter, "from": pixels(big), **pixels(big.resize(size, getattr(Image.Resampling, filter.upper())))})
grey = smooth(19, 31, 1); out["grey"] = {"from": pixels(grey), **pixels(grey.resize((24, 16), Image.Resampling.LANCZOS))}

# Masks.
processor = VaeImageProcessor(vae_scale_factor=8)
for box, pad, size in (((3, 2, 9, 8), 2, (64, 64)), ((20, 10, 36, 12), 4, (96, 64)), ((0, 0, 37, 23), 3, (64, 64)), ((36, 22, 37, 23), 32, (64, 128)), ((5, 0, 6, 23), 0, (512, 64))):
    mask = Image.new("L", (37, 23)); mask.paste(1, box)
    x1, y1, x2, y2 = processor.get_crop_region(mask, *size, pad=pad)
    out["regions"].append({"box": box, "padding": pad, "of": list(size), "region": [int(v) for v in (x1, y1, x2 - x1, y2 - y1)]})
for size in ((64, 64), (32, 16), (16, 64), (74, 46)):
    out["filled"].append({"from": pixels(big), **pixels(processor._resize_and_fill(big, *size))})
    out["cropped"].append({"from": pixels(big), **pixels(processor._resize_and_crop(big, *size))})
original, generated, mask = smooth(32, 24), smooth(32, 24), Image.fromarray(np.clip(rng.integers(-80, 335, (24, 32)), 0, 255).astype(np.uint8))
out["overlays"].append({"original": pixels(original), "generated": pixels(generated), "mask": pixels(mask), **pixels(processor.apply_overlay(mask, original, generated))})
hole = np.zeros((23, 37), np.uint8); hole[4:12, 9:30] = 255
for deviation in (1, 4, 12):
    reach = 2 * int(2.5 * deviation + 0.5) + 1
    blurred = cv2.GaussianBlur(cv2.GaussianBlur(hole, (reach, 1), deviation), (1, reach), deviation)
    out["blurred"].append({"deviation": deviation, "from": pixels(Image.fromarray(hole)), **pixels(Image.fromarray(blurred))})
out["luma"] = {"from": pixels(big), **pixels(big.convert("L"))}

pathlib.Path(__file__).with_name("goldens.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
