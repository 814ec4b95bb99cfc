#!/usr/bin/env python3
"""Real clients against `sd-gen serve`: the PyPI packages openai and webuiapi, and ComfyUI's protocol by websocket-client.

    pip install openai webuiapi websocket-client
    tests/serve/clients.py target/release/sd-gen
"""

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

import openai
import webuiapi
import websocket
from PIL import Image

folder = tempfile.mkdtemp()
command = [os.path.abspath(sys.argv[1]), "serve", "--listen", "127.0.0.1:0", "--output-dir", "served", "--size", "64x64", "--steps", "2", "-q"]
server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
url = server.stdout.readline().strip().rstrip("/")
host, port = url.removeprefix("http://").split(":")


def image(data):
    return Image.open(io.BytesIO(data)).size


def run_openai():
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    made = client.images.generate(prompt="a red apple", model="gpt-image-1", size="64x64", n=2)
    assert [image(base64.b64decode(one.b64_json)) for one in made.data] == [(64, 64)] * 2
    events = list(client.images.generate(prompt="a red apple", model="gpt-image-1", size="64x64", stream=True, partial_images=1))
    assert events[-1].type == "image_generation.completed", events
    png = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 30, 30, 255)).save(png, "PNG")
    mask = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(mask, "PNG")
    files = {"image": ("a.png", png.getvalue()), "mask": ("m.png", mask.getvalue())}
    edited = client.images.edit(prompt="a pear", model="gpt-image-1", **files)
    assert image(base64.b64decode(edited.data[0].b64_json)) == (64, 64)


def run_webuiapi():
    api = webuiapi.WebUIApi(host=host, port=int(port))
    made = api.txt2img(prompt="a red apple", width=64, height=64, steps=2, seed=7, sampler_name="Euler a")
    assert made.image.size == (64, 64) and made.info["seed"] == 7
    again = api.img2img(images=[made.image], prompt="a pear", width=64, height=64, steps=2, mask_image=Image.new("L", (64, 64), 255))
    assert again.image.size == (64, 64)
    assert api.get_progress()["progress"] == 0
    api.interrupt()


def run_comfyui():
    def post(path, body):
        # As ComfyUI's own example does, without saying that it is JSON.
        return json.loads(urllib.request.urlopen(urllib.request.Request(url + path, data=json.dumps(body).encode())).read())

    graph = {
        "3": {"class_type": "KSampler", "inputs": {
            "cfg": 5, "denoise": 1, "latent_image": ["5", 0], "model": ["4", 0], "negative": ["7", 0], "positive": ["6", 0],
            "sampler_name": "euler", "scheduler": "normal", "seed": 5, "steps": 3}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "emoji"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 2, "height": 64, "width": 64}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a red apple"}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": ""}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "a", "images": ["8", 0]}},
    }
    socket = websocket.WebSocket()
    socket.connect(f"ws://{host}:{port}/ws?clientId=me")
    identity = post("/prompt", {"prompt": graph, "client_id": "me"})["prompt_id"]
    seen = []
    while True:
        out = socket.recv()
        if not isinstance(out, str):
            assert image(out[8:])
            continue
        message = json.loads(out)
        seen.append(message["type"])
        if message["type"] == "executing" and message["data"]["node"] is None and message["data"]["prompt_id"] == identity:
            break
    assert {"status", "execution_start", "executed", "execution_success"} <= set(seen), seen
    history = json.loads(urllib.request.urlopen(f"{url}/history/{identity}").read())[identity]
    images = history["outputs"]["9"]["images"]
    for one in images:
        assert image(urllib.request.urlopen(f"{url}/view?{urllib.parse.urlencode(one)}").read()) == (64, 64)
    assert len(images) == 2


failed = False
for name, client in [("openai", run_openai), ("webuiapi", run_webuiapi), ("comfyui", run_comfyui)]:
    try:
        client()
        print(f"{name}: ok")
    except Exception as error:
        failed = True
        print(f"{name}: {type(error).__name__}: {error}")
server.terminate()
server.wait()
sys.exit(1 if failed else 0)
