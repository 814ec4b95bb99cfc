#!/usr/bin/env python3
"""Many clients at once: jobs, cancels, broken connections, and kills of the server; then the accounts are made up.

    tests/serve/load.py target/release/sd-gen [--clients 64] [--jobs 20] [--kills 2] [--waves 3]

Needs nothing but Python. First all clients send their jobs while the server is killed in between. Then they do so again, wave after wave, in
one life of the server, which is where its memory is measured: after the first wave, when every thread has begun, the texts' cache is full and
each buffer has been as large as it gets, against after the last one. Each time the server has been idle for --rest seconds, so that what the
allocator keeps for the next image has gone back; what the jobs themselves leave behind is still there, for all of them are remembered.

It fails where a job that was accepted is lost, an image is not there, or the memory grew by more than 5 %; it says the throughput, and how
fast /health answers meanwhile.
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
parser.add_argument("--waves", type=int, default=3)
parser.add_argument("--rest", type=float, default=30)
parser.add_argument("--most-growth", type=float, default=5, help="in percent")
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
over, resting = threading.Event(), threading.Event()
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


def client(number, wave=0):
    chance = random.Random(number + wave * 1000)
    for job in range(options.jobs):
        seed = (wave * 1000 + number) * 1000 + job
        status, text = persistently("POST", "/v1/jobs", {"prompt": f"wave {wave} client {number} job {job}", "seed": seed})
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
        if resting.is_set():
            time.sleep(0.1)
            continue
        began = time.perf_counter()
        try:
            ask("GET", "/health", timeout=10)
            health.append((time.perf_counter() - began) * 1000)
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)


def unfinished():
    ready = json.loads(persistently("GET", "/ready")[1])
    return ready["waiting"] + ready["at_work"]


def begin(wave):
    threads = [threading.Thread(target=client, args=(number, wave)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    return threads


def end(threads):
    for thread in threads:
        thread.join()
    while unfinished():
        time.sleep(0.2)


watcher = threading.Thread(target=watch)
watcher.start()
began = time.time()
threads = begin(0)
total = options.clients * options.jobs
for kill in range(options.kills):
    while len(accepted) < total * (kill + 1) // (options.kills + 1) and any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
    server.send_signal(signal.SIGKILL)
    server.wait()
    server = start()
end(threads)
seconds = time.time() - began
mebibytes = []
for wave in range(1, options.waves + 1):
    end(begin(wave))
    resting.set()
    time.sleep(options.rest)
    mebibytes.append(memory(server))
    resting.clear()
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
first = sum(seed < 1_000_000 for seed in accepted.values())
print(f"{len(accepted)} jobs accepted, {done} done, {len(cancelled)} cancelled, {len(images)} images; the first {first} in {seconds:.0f} s")
print(f"/health: p50 {statistics.median(health):.1f} ms, p99 {sorted(health)[len(health) * 99 // 100]:.1f} ms of {len(health)}")
if len(mebibytes) > 1:
    growth = (mebibytes[-1] / mebibytes[0] - 1) * 100
    print(f"memory: {', '.join(f'{one:.1f}' for one in mebibytes)} MiB after each wave ({growth:+.1f} %)")
    if growth > options.most_growth:
        wrong.append(f"the memory grew by {growth:.1f} %")
print("\n".join(wrong[:20]))
server.terminate()
server.wait()
sys.exit(1 if wrong else 0)
