#!/usr/bin/env python3
"""Makes goldens.json: OpenCV's Canny of generated images, packed into bits, and A1111's lineart_standard and scribble_xdog.

    python make_preprocess.py

The images are made again by the test from the same arithmetic, so that none is stored. Needs numpy and opencv-python.
"""
import base64, hashlib, json, pathlib, zlib
import cv2
import numpy as np


def picture(width, height, kind):
    """Whole numbers alone, so that another language makes the same bytes."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    if kind == "waves":
        c = [(x * x + 3 * y) // 7, (x * 5 + y * y) // 11, (x * y) // 5]
    elif kind == "shapes":
        inside = (x - width // 2) ** 2 + (y - height // 2) ** 2 < (min(width, height) // 3) ** 2
        stripe = (x + 2 * y) // 9 % 2
        c = [np.where(inside, 220, 30 + 60 * stripe), np.where(inside, 40 + x, 90), np.where(inside, 90, 200 - y)]
    elif kind == "noise":
        n = (x * 1103515245 + y * 12345 + x * y * 2654435761) % 65536
        c = [n % 256, n // 7 % 256, n // 31 % 256]
    else:  # "drawing": dark lines on white
        line = ((x - y) % 23 < 2) | ((x * 3 + y) % 41 < 3)
        c = [np.where(line, 20 + x % 60, 250), np.where(line, 30, 245), np.where(line, 40 + y % 40, 255)]
    return np.stack([v % 256 for v in c], -1).astype(np.uint8)


def lineart_standard(image):
    x = image.astype(np.float32)
    g = cv2.GaussianBlur(x, (0, 0), 6.0)
    intensity = np.min(g - x, axis=2).clip(0, 255)
    lines = intensity[intensity > 8]
    intensity /= max(16, np.median(lines)) if lines.size else 16
    intensity *= 127
    return intensity.clip(0, 255).astype(np.uint8)


def scribble_xdog(image):
    g1 = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 0.5)
    g2 = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 5.0)
    dog = (255 - np.min(g2 - g1, axis=2)).clip(0, 255).astype(np.uint8)
    result = np.zeros(dog.shape, np.uint8)
    result[2 * (255 - dog) > 32] = 255
    return result


def packed(values):
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


cases = []
for kind in ("waves", "shapes", "noise", "drawing"):
    for width, height in ((64, 48), (97, 61), (33, 80), (1, 9), (128, 128)):
        image = picture(width, height, kind)
        canny = cv2.Canny(image, 100, 200)
        cases.append({
            "kind": kind, "width": width, "height": height, "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
            "canny": packed(np.packbits(canny > 0)),
            **({"lineart": packed(lineart_standard(image)), "scribble": packed(np.packbits(scribble_xdog(image) > 0))} if width in (64, 97) else {}),
        })
pathlib.Path(__file__).with_name("goldens.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
