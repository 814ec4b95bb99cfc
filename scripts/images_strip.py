#!/usr/bin/env python3
"""Makes docs/images.png, the strip of images from images that README shows, with the built-in model.

    pip install pillow
    python scripts/images_strip.py target/release/sd-gen

From the left: a face and its lower half made anew by another prompt; three quarters of an apple and how it is continued past its edge; an
apple varied by --strength 0.5, 0.7 and 0.9.
"""
import pathlib, subprocess, sys, tempfile
from PIL import Image, ImageDraw

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIDE, GAP, MARGIN = 128, 8, 32
LINE = (200, 200, 200)


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)

        def made(name, prompt, *flags):
            command = [program, "--no-config", "--model", "emoji", "-p", prompt, "--dtype", "f32", "--device", "cpu", "--quiet", "-o", name, *map(str, flags)]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            return Image.open(folder / name).convert("RGB")

        face = made("face.png", "smiling face", "--seed", 1)
        mask = Image.new("L", (SIDE, SIDE), 0)
        mask.paste(255, (0, SIDE // 2, SIDE, SIDE))
        mask.save(folder / "mask.png")
        repainted = made("repainted.png", "grinning face with big eyes", "--seed", 3, "--steps", 30, "-i", "face.png", "--mask", "mask.png")
        apple = made("apple.png", "a red apple", "--seed", 1)
        apple.crop((0, 0, SIDE * 3 // 4, SIDE)).save(folder / "part.png")
        part = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
        part.paste(Image.open(folder / "part.png"), (0, 0))
        ImageDraw.Draw(part).rectangle((SIDE * 3 // 4, 0, SIDE - 1, SIDE - 1), outline=LINE)
        continued = made("continued.png", "a red apple", "--seed", 22, "--steps", 30, "-i", "part.png", "--outpaint", f"right={SIDE // 4}")
        varied = [made(f"varied-{s}.png", "a green apple", "--seed", 4, "-i", "apple.png", "--strength", s) for s in (0.5, 0.7, 0.9)]

    groups = [[face, repainted], [part, continued], [apple, *varied]]
    widths = [len(group) * SIDE + (len(group) - 1) * GAP for group in groups]
    strip = Image.new("RGB", (sum(widths) + MARGIN * (len(groups) - 1), SIDE), (255, 255, 255))
    x = 0
    for group, width in zip(groups, widths):
        for i, image in enumerate(group):
            strip.paste(image, (x + i * (SIDE + GAP), 0))
        x += width + MARGIN
    strip.quantize(256, dither=Image.Dither.NONE).save(ROOT / "docs/images.png", optimize=True)


if __name__ == "__main__":
    main()
