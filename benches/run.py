#!/usr/bin/env python3
"""The performance claims of README.md, each measured beside its peer in the same run.

1. Time from `cai run` to READY=1, for a small and for a 2 GiB model: it must not depend on the size.
2. Sequential read of the mount, cold (all caches dropped) and with the ciphertext in the page cache, against real gocryptfs
   mounting the same directory. Rounds are interleaved; ratios are medians over rounds. CPU seconds per GB count the
   reader and the daemon; this is the steadier figure on a shared machine.
3. Peak memory of the daemon.

Needs root, /dev/fuse, gocryptfs, dbus-daemon. Prints Markdown. Leaves nothing behind. Never a gate: times depend on the machine.
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from common import GB, cpu_of, cpu_used, drop_caches, memory_of, mounted, read_all
from stand import Stand, sample_model, workplace


def measure_read(command, point, cold):
    """Seconds, CPU seconds, bytes and the daemon's peak memory of one whole sequential read."""
    with mounted(command, point) as (process, _):
        drop_caches() if cold else None
        daemon, reader, begun = cpu_of(process.pid), cpu_used(resource.RUSAGE_SELF), time.perf_counter()
        total = read_all(point)
        seconds = time.perf_counter() - begun
        cpu = cpu_used(resource.RUSAGE_SELF) - reader + cpu_of(process.pid) - daemon
        return seconds, cpu, total, memory_of(process.pid, "VmHWM")


def compare_reads(cai, work, cipher, password, rounds):
    peers = {
        "cai": [cai, "mount", cipher, work / "mnt", "--passfile", password],
        "gocryptfs": ["gocryptfs", "-q", "-ro", "-fg", "-passfile", password, cipher, work / "mnt"],
    }
    peers = {name: [str(part) for part in command] for name, command in peers.items()}
    for cold, title in ((True, "cold (page cache dropped)"), (False, "ciphertext in the page cache")):
        results = {name: [] for name in peers}
        for _ in range(rounds):
            for name, command in peers.items():
                results[name].append(measure_read(command, work / "mnt", cold))
        ratios = [g[0] / c[0] for c, g in zip(results["cai"], results["gocryptfs"])]
        print(f"\nSequential read of 2 GiB, {title}, {rounds} rounds:\n")
        print("| | GB/s (median) | CPU s/GB | peak memory of the daemon, MiB |")
        print("|---|---|---|---|")
        for name, runs in results.items():
            rate = statistics.median(run[2] / GB / run[0] for run in runs)
            cpu = statistics.median(run[1] / (run[2] / GB) for run in runs)
            print(f"| {name} | {rate:.2f} | {cpu:.2f} | {max(run[3] for run in runs):.0f} |")
        print(f"\ncai against gocryptfs: median {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


def time_to_ready(stand, root):
    """Seconds from exec to READY=1, and the daemon's peak memory then, MiB. The local store is empty."""
    shutil.rmtree(root / "var", ignore_errors=True)
    begun = time.perf_counter()
    with stand.agent(root) as agent:
        return time.perf_counter() - begun, memory_of(agent.pid, "VmHWM")


def compare_ready(stand, work, models, rounds):
    roots = {}
    for name in models:
        roots[name] = work / f"root-{name}"
        roots[name].mkdir(mode=0o755)
        stand.configure(roots[name], name)
        command = [str(stand.binaries / "cai"), "--root", str(roots[name]), "upload", str(models[name])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = {name: [] for name in models}
    for _ in range(rounds):
        for name in models:
            results[name].append(time_to_ready(stand, roots[name]))
    print(f"\nFrom `cai run` to `READY=1`, empty local store, {rounds} rounds:\n")
    print("| model | seconds (median) | min | max | peak memory at READY, MiB |")
    print("|---|---|---|---|---|")
    for name, runs in results.items():
        times = [run[0] for run in runs]
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} | {max(run[1] for run in runs):.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=2048, help="size of the large model")
    options = parser.parse_args()
    binaries = options.bin.resolve()
    with workplace() as (work, password, _):
        models = {f"{mib}-MiB": sample_model(binaries, work, password, mib, f"{mib}-MiB") for mib in (64, options.mib)}
        with Stand(binaries, work, password) as stand:
            compare_ready(stand, work, models, options.rounds)
        compare_reads(binaries / "cai", work, models[f"{options.mib}-MiB"], password, options.rounds)


if __name__ == "__main__":
    main()
