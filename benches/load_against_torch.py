#!/usr/bin/env python3
"""Times how long sd-gen takes from its start until it is ready to generate, and PyTorch to read and convert the same tensors, in turn.

    pip install torch safetensors
    python load_against_torch.py target/release/sd-gen MODEL.safetensors [--dtype f32] [--rounds 7] [--threads 2]

Every measurement is a new process. sd-gen's clock starts with the process; PyTorch's starts when torch is imported and one thread pool is
warm, and it leaves out the tensors that generating does not need (the autoencoder's encoder). Before every measurement the file is read, so that it
comes from the page cache, and as much memory as the weights need is entered and given back, because a virtual machine's host takes back what lies
idle and the first to enter it pays, whichever program that is. Prints one JSON object:
seconds of every round, medians, and the ratio sd-gen / PyTorch. On a machine that is not idle, start it with `chrt -r 1`.
"""
import argparse, json, mmap, os, statistics, subprocess, sys, time

def warm(a, most=4):
    """Reads the file, and enters as much fresh memory until that is as fast as it gets: what lay idle may have to come from a host first."""
    size = os.path.getsize(a.model) * {"f32": 2, "bf16": 1}[a.dtype] * 9 // 8
    with open(a.model, "rb", buffering=0) as file:
        block = bytearray(1 << 22)
        while file.readinto(block): pass
    for _ in range(most):
        start = time.perf_counter()
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, size, 4096): memory[at] = 1
        memory.close()
        if time.perf_counter() - start < 0.3 * size / 1e9: break


def by_torch(a):
    """The process that `--by-torch` starts: reads and converts, and prints its seconds and the bytes of the tensors."""
    import torch
    from safetensors import safe_open
    torch.set_num_threads(a.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
    torch.ones(1 << 22, dtype=torch.float16).to(dtype)
    warm(a)
    start = time.perf_counter()
    with safe_open(a.model, "pt") as file:
        tensors = [file.get_tensor(key).to(dtype) for key in file.keys() if not key.startswith("first_stage_model.encoder.")]
    print(time.perf_counter() - start, sum(t.numel() * t.element_size() for t in tensors))


def sd_gen(a):
    """Seconds until the first text is encoded, the peak memory by then, and the processor's seconds."""
    command = [a.sd_gen, "-m", a.model, "-p", "x", "--steps", "99", "--dtype", a.dtype, "--device", "cpu",
               "--threads", str(a.threads), "--progress", "json", "-o", "-"]
    warm(a)
    start = time.perf_counter()
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in program.stderr:
        if json.loads(line)["event"] == "encode": break
    else: raise SystemExit("sd-gen failed")
    seconds = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in open(f"/proc/{program.pid}/status"))
    ticks = open(f"/proc/{program.pid}/stat").read().rsplit(")", 1)[1].split()
    program.kill(); program.wait()
    per_second = os.sysconf("SC_CLK_TCK")
    return seconds, int(status["VmHWM"].split()[0]) * 1024, [int(ticks[i]) / per_second for i in (11, 12)]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("sd_gen"); ap.add_argument("model"); ap.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    ap.add_argument("--rounds", type=int, default=7); ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--by-torch", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.by_torch: return by_torch(a)
    ours, theirs = [], []
    for _ in range(a.rounds):
        torch = [sys.executable, __file__, a.sd_gen, a.model, "--dtype", a.dtype, "--threads", str(a.threads), "--by-torch"]
        seconds, weights = subprocess.run(torch, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        theirs.append(float(seconds))
        ours.append(sd_gen(a))
    seconds = [run[0] for run in ours]
    print(json.dumps({"model": os.path.basename(a.model), "dtype": a.dtype, "threads": a.threads, "load average": os.getloadavg()[0],
                      "sd-gen": {"seconds": seconds, "median": statistics.median(seconds), "user and system seconds": [run[2] for run in ours],
                                 "peak bytes": max(run[1] for run in ours)},
                      "PyTorch": {"seconds": theirs, "median": statistics.median(theirs), "bytes of tensors": int(weights)},
                      "ratio": round(statistics.median(seconds) / statistics.median(theirs), 2)}, indent=1))


if __name__ == "__main__": main()
