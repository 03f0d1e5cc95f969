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
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import CHUNK, GB, cpu_of, cpu_used, drop_caches, memory_of, mounted, wait_for


def read_all(directory):
    """Read every file sequentially, 1 MiB at a time; bytes."""
    total, buffer = 0, bytearray(CHUNK)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
    return total


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


class Stand:
    """Stand-in Trustee and OSS, and a private system bus."""

    def __init__(self, binaries, work, password):
        self.binaries, self.work, self.password = binaries, work, password
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        (self.work / "access-key").write_text("bench-secret")
        command = [
            self.binaries / "cai-sandbox", "serve", "--state-dir", self.work / "oss", "--bucket", "conf-ai", "--region", "cn-beijing",
            "--access-key-id", "bench", "--access-key-secret-file", self.work / "access-key",
            "--resource", f"default/aliyun/model-decryption-key={self.password}",
        ]
        log = self.stack.enter_context(open(self.work / "sandbox.log", "wb"))
        sandbox = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=log)
        self.stack.callback(self.end, sandbox)
        self.addresses = json.loads(sandbox.stdout.readline())
        bus = self.work / "bus"
        (self.work / "bus.conf").write_text(
            f"<busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
            '<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>'
            '<allow receive_sender="*"/></policy></busconfig>'
        )
        daemon = subprocess.Popen(["dbus-daemon", f"--config-file={self.work}/bus.conf", "--nofork", "--nosyslog"])
        self.stack.callback(self.end, daemon)
        wait_for(bus.exists, "the bus", daemon)
        self.environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
        return self

    @staticmethod
    def end(process):
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def configure(self, root, name):
        directory = root / "etc/cai"
        directory.mkdir(parents=True)
        (directory / "cai.env").write_text(
            f"TRUSTEE_URL={self.addresses['kbs']}\nMODEL_KEY_ID=kbs:///default/aliyun/model-decryption-key\n"
            f"MODEL_OSS_BUCKET_PATH=conf-ai:/{name}/\nMODEL_OSS_ENDPOINT={self.addresses['oss']}\n"
            "MODEL_OSS_REGION=cn-beijing\nMODEL_OSS_ACCESS_KEY_ID=bench\nMODEL_OSS_SECRET_ACCESS_KEY=bench-secret\n"
            "MODEL_MOUNT_POINT=/tmp/model\n"
        )
        (directory / "cai.env").chmod(0o600)
        (directory / "cai.toml").write_text('[attest]\ntee = "sample"\n')

    def time_to_ready(self, root):
        """Seconds from exec to READY=1, and the daemon's peak memory then, MiB. The local store is empty."""
        shutil.rmtree(root / "var", ignore_errors=True)
        path = self.work / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(path))
            path.chmod(0o666)
            notify.settimeout(60)
            begun = time.perf_counter()
            command = [str(self.binaries / "cai"), "--root", str(root), "run"]
            with open(self.work / "agent.log", "wb") as log:
                agent = subprocess.Popen(command, env={**self.environment, "NOTIFY_SOCKET": str(path)}, stderr=log)
            try:
                while b"READY=1" not in notify.recv(4096):
                    pass
                return time.perf_counter() - begun, memory_of(agent.pid, "VmHWM")
            finally:
                self.end(agent)


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
            results[name].append(stand.time_to_ready(roots[name]))
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
    with tempfile.TemporaryDirectory(prefix="cai-bench.") as directory, contextlib.ExitStack() as cleanup:
        work = Path(directory)
        work.chmod(0o711)
        if subprocess.run(["id", "cai"], capture_output=True).returncode != 0:
            subprocess.run(["useradd", "--system", "--no-create-home", "cai"], check=True)
            cleanup.callback(subprocess.run, ["userdel", "cai"], check=True)
        password = work / "password"
        password.write_text("bench password\n")
        models = {}
        for mib in (64, options.mib):
            name = f"{mib}-MiB"
            subprocess.run([binaries / "cai-sandbox", "sample-model", "--mib", str(mib), work / "plain"], check=True)
            models[name] = work / name
            command = [binaries / "cai", "encrypt", work / "plain", models[name], "--passfile", password]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            shutil.rmtree(work / "plain")
        with Stand(binaries, work, password) as stand:
            compare_ready(stand, work, models, options.rounds)
        compare_reads(binaries / "cai", work, models[f"{options.mib}-MiB"], password, options.rounds)


if __name__ == "__main__":
    main()
