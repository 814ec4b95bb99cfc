#!/usr/bin/env python3
"""Many clients at once: jobs, cancels, broken connections, and kills of the server; then the accounts are made up.

    tests/serve/load.py target/release/sd-gen [--clients 64] [--jobs 20] [--kills 2]

Needs nothing but Python. It fails where a job that was accepted is lost or an image is not there; it says the throughput, how fast /health
answers meanwhile, and how much the memory grew.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("--clients", type=int, default=64)
parser.add_argument("--jobs", type=int, default=20)
parser.add_argument("--kills", type=int, default=2)
parser.add_argument("--steps", type=int, default=4)
options = parser.parse_args()

folder = tempfile.mkdtemp()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def start():
    command = [os.path.abspath(options.program), "serve", "--listen", f"127.0.0.1:{port}", "--output-dir", "served", "--size", "64x64"]
    command += ["--steps", str(options.steps), "--max-queue", "4096", "--keep-jobs", "100000", "-q"]
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
    child.stdout.readline()
    return child


def ask(method, path, body=None, timeout=60):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def memory(child):
    with open(f"/proc/{child.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


accepted, cancelled, lock = {}, set(), threading.Lock()
over, down = threading.Event(), threading.Event()
health, server = [], start()


def persistently(method, path, body=None):
    while True:
        try:
            status, text, headers = ask(method, path, body)
        except OSError:
            # It was killed; the next one comes.
            time.sleep(0.2)
            continue
        except http.client.HTTPException:
            time.sleep(0.2)
            continue
        if status != 429:
            return status, text
        time.sleep(min(float(headers.get("Retry-After", 1)), 2))


def client(number):
    chance = random.Random(number)
    for job in range(options.jobs):
        seed = number * 1000 + job
        status, text = persistently("POST", "/v1/jobs", {"prompt": f"client {number} job {job}", "seed": seed})
        assert status == 202, (status, text)
        identity = json.loads(text)["id"]
        with lock:
            accepted[identity] = seed
        what = chance.random()
        if what < 0.15:
            status, text = persistently("DELETE", f"/v1/jobs/{identity}")
            if status == 200 and json.loads(text)["state"] == "cancelled":
                with lock:
                    cancelled.add(identity)
        elif what < 0.4:
            # Listens for a moment and breaks off in the middle of a word.
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
                    stream.sendall(f"GET /v1/jobs/{identity}/events?previews=true HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                    stream.recv(chance.randrange(1, 400))
            except OSError:
                pass


def watch():
    while not over.is_set():
        began = time.perf_counter()
        try:
            ask("GET", "/health", timeout=10)
            health.append((time.perf_counter() - began) * 1000)
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)


# Warm, so that the memory is what it is in the end.
for seed in range(8):
    persistently("POST", "/v1/jobs", {"prompt": "warm", "seed": seed, "batch-size": 8})
while json.loads(persistently("GET", "/v1/jobs?state=queued")[1])["jobs"] or json.loads(persistently("GET", "/v1/jobs?state=running")[1])["jobs"]:
    time.sleep(0.2)
before = memory(server)
began = time.time()
threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
watcher = threading.Thread(target=watch)
for thread in [watcher, *threads]:
    thread.start()
total = options.clients * options.jobs
for kill in range(options.kills):
    while len(accepted) < total * (kill + 1) // (options.kills + 1) and any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
    server.send_signal(signal.SIGKILL)
    server.wait()
    server = start()
for thread in threads:
    thread.join()


def unfinished():
    return [job for state in ("queued", "running") for job in json.loads(persistently("GET", f"/v1/jobs?state={state}&limit=1000")[1])["jobs"]]


while unfinished():
    time.sleep(0.5)
seconds = time.time() - began
over.set()
watcher.join()

wrong, done = [], 0
for identity, seed in accepted.items():
    status, text = persistently("GET", f"/v1/jobs/{identity}")
    if status != 200:
        wrong.append(f"{identity}: is lost")
        continue
    job = json.loads(text)
    there = os.path.exists(os.path.join(folder, "served", "images", f"{identity}-0.png"))
    if job["images"][0]["seed"] != seed:
        wrong.append(f"{identity}: has another seed")
    if job["state"] == "done":
        done += 1
        if not there:
            wrong.append(f"{identity}: its image is lost")
    elif job["state"] != "cancelled" or identity not in cancelled:
        wrong.append(f"{identity}: {job['state']} {job['error']}")
# A job whose answer a kill cut off was accepted too: its client asked again.
images = [name for name in os.listdir(os.path.join(folder, "served", "images")) if name.endswith(".png")]
after = memory(server)
print(f"{len(accepted)} jobs accepted, {done} done, {len(cancelled)} cancelled, {len(images)} images, {seconds:.0f} s, {done / seconds:.2f} a second")
print(f"/health: p50 {statistics.median(health):.1f} ms, p99 {sorted(health)[len(health) * 99 // 100]:.1f} ms of {len(health)}")
print(f"memory: {before:.0f} MiB before, {after:.0f} MiB after ({(after / before - 1) * 100:+.1f} %)")
print("\n".join(wrong[:20]))
server.terminate()
server.wait()
sys.exit(1 if wrong else 0)
