#!/usr/bin/env python3
"""`cai encrypt` against real gocryptfs writing the same file, in the same run.

One file of random bytes, both times from the page cache into an empty directory of one file system. gocryptfs is `cp` into
its mount and unmounting, cai is one command; both end with `sync`, and rounds are interleaved. CPU seconds count `cp` and
the daemon, or cai. Then what an interrupted run costs: the second half of a run killed half-way, by the bytes it kept.

Needs root, /dev/fuse, gocryptfs. Prints Markdown. Leaves nothing behind. Never a gate: times depend on the machine.
"""

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import GB, cpu_used


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def sync(path):
    subprocess.run(["sync", "-f", str(path)], check=True)


def with_gocryptfs(work, source, password):
    cipher, point = fresh(work / "gocryptfs"), fresh(work / "point")
    common = ["gocryptfs", "-q", "-passfile", str(password)]
    subprocess.run([*common, "-init", str(cipher)], check=True, stdout=subprocess.DEVNULL)
    begun, cpu = time.perf_counter(), cpu_used(resource.RUSAGE_CHILDREN)
    daemon = subprocess.Popen([*common, "-fg", str(cipher), str(point)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not os.path.ismount(point):
            time.sleep(0.002)
        subprocess.run(["cp", "-r", *map(str, source.iterdir()), str(point)], check=True)
    finally:
        subprocess.run(["umount", str(point)], check=True)
        daemon.wait(timeout=60)
    sync(cipher)
    return time.perf_counter() - begun, cpu_used(resource.RUSAGE_CHILDREN) - cpu


def cai_command(cai, work, source, password):
    return [str(cai), "encrypt", str(source), str(work / "cai"), "--passfile", str(password)]


def with_cai(work, source, password, cai):
    shutil.rmtree(work / "cai", ignore_errors=True)
    begun, cpu = time.perf_counter(), cpu_used(resource.RUSAGE_CHILDREN)
    subprocess.run(cai_command(cai, work, source, password), check=True, stdout=subprocess.DEVNULL)
    sync(work)
    return time.perf_counter() - begun, cpu_used(resource.RUSAGE_CHILDREN) - cpu


def interrupted(work, source, password, cai, size):
    """Kill a run when half is written, and go on: seconds, and the bytes that were kept."""
    shutil.rmtree(work / "cai", ignore_errors=True)
    partial = work / "cai.partial"
    run = subprocess.Popen(cai_command(cai, work, source, password), stdout=subprocess.DEVNULL)
    written = lambda: sum(path.stat().st_blocks * 512 for path in partial.rglob("*")) if partial.exists() else 0
    while run.poll() is None and written() < size / 2:
        time.sleep(0.002)
    run.kill()
    run.wait()
    begun = time.perf_counter()
    output = subprocess.run(cai_command(cai, work, source, password), check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - begun
    return seconds, int(output.splitlines()[1].split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path, help="directory with cai")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--dir", default=None, help="where to work; a memory file system takes the disk out of the picture")
    options = parser.parse_args()
    cai = options.bin.resolve() / "cai"
    with tempfile.TemporaryDirectory(prefix="cai-bench.", dir=options.dir) as directory, contextlib.ExitStack() as cleanup:
        work = Path(directory)
        cleanup.callback(subprocess.run, ["umount", "-q", str(work / "point")], check=False)
        source, password = fresh(work / "source"), work / "password"
        password.write_text("bench password\n")
        with open(source / "model.safetensors", "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        sync(work)
        size = options.mib << 20
        results = {"cai": [], "gocryptfs": []}
        for _ in range(options.rounds):
            results["gocryptfs"].append(with_gocryptfs(work, source, password))
            results["cai"].append(with_cai(work, source, password, cai))
        print(f"\nEncrypting one file of {options.mib} MiB, {options.rounds} rounds, {os.cpu_count()} cores:\n")
        print("| | GB/s (median) | CPU s/GB |")
        print("|---|---|---|")
        for name, runs in results.items():
            rate = statistics.median(size / GB / run[0] for run in runs)
            cpu = statistics.median(run[1] / (size / GB) for run in runs)
            print(f"| {name} | {rate:.2f} | {cpu:.2f} |")
        ratios = [slow[0] / fast[0] for slow, fast in zip(results["gocryptfs"], results["cai"])]
        print(f"\ncai against gocryptfs: median {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
        seconds, kept = interrupted(work, source, password, cai, size)
        print(f"\nA run killed half-way and started again: {seconds:.1f} s for the second run, {kept / size:.0%} of the bytes kept")


if __name__ == "__main__":
    main()
