#!/usr/bin/env python3
"""How much the server loses against `sd-gen batch` on the same jobs: the same settings, seeds, threads and model.

    tests/serve/throughput.py target/release/sd-gen [--jobs 512] [--steps 8] [--rounds 3]

Needs nothing but Python. Batch and server run in turn, each from its start to its last image on the disk, the loading of the model included.
Of each the least seconds and the least processor seconds of all rounds count: whatever else runs on the machine only adds to them.
It fails where the server's throughput is below 0.95 of the batch's.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("--jobs", type=int, default=512)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--size", default="64x64")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--clients", type=int, default=8)
parser.add_argument("--least", type=float, default=0.95)
options = parser.parse_args()
program = os.path.abspath(options.program)
common = ["--size", options.size, "--steps", str(options.steps), "--threads", str(options.threads), "-q"]
jobs = [{"prompt": f"a red apple, number {seed}", "seed": seed} for seed in range(options.jobs)]


def images(folder):
    """How many images lie below a folder."""
    return sum(name.endswith(".png") for _, _, names in os.walk(folder) for name in names)


def ended(child):
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime, usage.ru_stime


def batch():
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "jobs.jsonl"), "w") as lines:
            lines.writelines(json.dumps(job) + "\n" for job in jobs)
        began = time.perf_counter()
        child = subprocess.Popen([program, "batch", "jobs.jsonl", "--output-dir", "made", *common], cwd=folder, stdout=subprocess.DEVNULL)
        processor = ended(child)
        seconds = time.perf_counter() - began
        assert child.returncode == 0 and images(folder) == len(jobs), (child.returncode, images(folder))
        return seconds, *processor


def serve():
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [program, "serve", "--listen", "127.0.0.1:0", "--output-dir", "served", "--max-queue", str(len(jobs) + 64), *common]
        child = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        host = child.stdout.readline().strip().removeprefix("http://").rstrip("/")

        def client(own):
            connection = http.client.HTTPConnection(host, timeout=600)
            for job in own:
                connection.request("POST", "/v1/jobs", json.dumps(job), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                assert answer.status == 202, (answer.status, text)
            connection.close()

        threads = [threading.Thread(target=client, args=(jobs[number :: options.clients],)) for number in range(options.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while True:
            connection = http.client.HTTPConnection(host, timeout=600)
            connection.request("GET", "/ready")
            ready = json.loads(connection.getresponse().read())
            connection.close()
            if ready["waiting"] + ready["at_work"] == 0:
                break
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        made = images(folder)
        child.send_signal(signal.SIGTERM)
        processor = ended(child)
        assert made == len(jobs), made
        return seconds, *processor


measured = {"batch": [], "serve": []}
for number in range(options.rounds):
    for name, run in (("batch", batch), ("serve", serve)):
        seconds, user, system = run()
        measured[name].append((seconds, user, system))
        print(f"{name}: {seconds:.2f} s, {len(jobs) / seconds:.2f} images a second; processor {user:.2f} s and {system:.2f} s of the system", flush=True)
least = {name: [min(of) for of in zip(*all)] for name, all in measured.items()}
names = ("throughput", "user processor time", "system processor time")
ratios = [least["batch"][at] / least["serve"][at] for at in range(3)]
for name, ratio in zip(names, ratios):
    print(f"{name}: the server has {ratio:.3f} of the batch's")
sys.exit(0 if ratios[0] >= options.least else 1)
