#!/usr/bin/env python3
"""From nothing to the last byte of a model, over links of several rates: cai beside downloading everything and then mounting it.

1. Cold start: `cai run` with an empty cache, every file of its mount read in order as soon as READY=1 is there; beside curl fetching
   all objects in parallel, then gocryptfs mounting them and the same read. The stand-in Trustee and OSS live in a network
   namespace, behind a token bucket (tc tbf) that lets through so much and no more.
2. CPU seconds per GB of receiving the model, over http and https: `cai download` beside `curl --parallel`, no limit on the link.
3. Peak memory of the daemon under 64 readers of a cold model, by cache mode.
4. `kill -9` at half of the model: time to READY=1 and to the last byte afterwards, and what came over the cable in all.

Needs root, /dev/fuse, gocryptfs, dbus-daemon, ip, tc, curl, openssl. Prints Markdown. Leaves nothing behind. Never a gate.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import threading
import time
from pathlib import Path

from common import CHUNK, GB, cpu_of, cpu_used, drop_caches, memory_of, mounted, read_all, wait_for
from stand import Stand, sample_model, workplace

NAMESPACE, HOST, GUEST = "cai-bench", "10.77.44.1", "10.77.44.2"
NAME = "model"


def sh(command):
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Link:
    """A namespace with one cable to us, whose far end sends at a limited rate."""

    def __enter__(self):
        self.__exit__()
        sh(f"ip netns add {NAMESPACE}")
        sh(f"ip link add cai-bench0 type veth peer name cai-bench1 netns {NAMESPACE}")
        sh(f"ip addr add {HOST}/30 dev cai-bench0")
        sh("ip link set cai-bench0 up")
        sh(f"ip -n {NAMESPACE} link set lo up")
        sh(f"ip -n {NAMESPACE} addr add {GUEST}/30 dev cai-bench1")
        sh(f"ip -n {NAMESPACE} link set cai-bench1 up")
        return self

    def __exit__(self, *error):
        subprocess.run(["ip", "link", "del", "cai-bench0"], stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "del", NAMESPACE], stderr=subprocess.DEVNULL)

    @staticmethod
    def limit(rate):
        subprocess.run(f"tc -n {NAMESPACE} qdisc del dev cai-bench1 root".split(), stderr=subprocess.DEVNULL)
        if rate:
            sh(f"tc -n {NAMESPACE} qdisc add dev cai-bench1 root tbf rate {rate} burst 1mb latency 20ms")


class Tls:
    """Takes TLS in front of an HTTP server: what it costs is not the client's."""

    def __init__(self, work, server):
        self.server = server
        self.ca = work / "ca.pem"
        sh(f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench "
           f"-addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1 -keyout {work}/ca.key -out {self.ca}")  # fmt: skip
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.ca, work / "ca.key")
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with contextlib.suppress(OSError):
            client = self.context.wrap_socket(connection, server_side=True)
            server = socket.create_connection(self.server)
            threading.Thread(target=self.pump, args=(client, server), daemon=True).start()
            self.pump(server, client)

    @staticmethod
    def pump(source, target):
        buffer = memoryview(bytearray(256 << 10))
        with contextlib.suppress(OSError):
            while count := source.recv_into(buffer):
                target.sendall(buffer[:count])
            target.close()


def curl(urls, target, *more):
    """All of them in parallel, 32 at a time; CPU seconds."""
    target.mkdir()
    lines = [f'url = "{url}"\noutput = "{target / path}"\n' for path, url in urls.items()]
    for path in urls:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
    config = target.with_suffix(".curl")
    config.write_text("".join(lines))
    cpu = cpu_used(resource.RUSAGE_CHILDREN)
    command = ["curl", "-sS", "--no-progress-meter", "--fail", "--parallel", "--parallel-max", "32", "--config", str(config), *more]
    subprocess.run(command, check=True)
    return cpu_used(resource.RUSAGE_CHILDREN) - cpu


def cold_cai(stand, root, point):
    """Seconds to READY=1 and to the last byte, CPU s/GB, peak memory."""
    shutil.rmtree(root / "var", ignore_errors=True)
    drop_caches()
    begun = time.perf_counter()
    with stand.agent(root) as agent:
        ready = time.perf_counter() - begun
        reader = cpu_used(resource.RUSAGE_SELF)
        total = read_all(point)
        seconds = time.perf_counter() - begun
        cpu = cpu_of(agent.pid) + cpu_used(resource.RUSAGE_SELF) - reader
        return ready, seconds, cpu / (total / GB), memory_of(agent.pid, "VmHWM")


def cold_peer(work, urls, password):
    """The same for two phases; memory is gocryptfs' alone."""
    target, point = work / "downloaded", work / "mnt"
    shutil.rmtree(target, ignore_errors=True)
    drop_caches()
    begun = time.perf_counter()
    cpu = curl(urls, target)
    command = ["gocryptfs", "-q", "-ro", "-fg", "-passfile", str(password), str(target), str(point)]
    with mounted(command, point) as (process, _):
        ready = time.perf_counter() - begun
        reader = cpu_used(resource.RUSAGE_SELF)
        total = read_all(point)
        seconds = time.perf_counter() - begun
        cpu += cpu_of(process.pid) + cpu_used(resource.RUSAGE_SELF) - reader
        result = ready, seconds, cpu / (total / GB), memory_of(process.pid, "VmHWM")
    shutil.rmtree(target)
    return result


def cold_start(stand, root, work, urls, size, options):
    print(f"\nCold start to the last byte of a model of {options.mib} MiB, medians of {options.rounds}, empty cache:\n")
    print("| link | bytes alone take | cai: ready | cai: last byte | two phases: mounted | two phases: last byte | cai by two phases | CPU s/GB, cai / two phases |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for rate in [*options.rates, None]:
        Link.limit(rate)
        cai, peer = [], []
        for _ in range(options.rounds):
            cai.append(cold_cai(stand, root, root / "tmp/model"))
            peer.append(cold_peer(work, urls, stand.password))
        middle = lambda runs, at: statistics.median(run[at] for run in runs)
        ideal = f"{size * 8 / (float(re.sub('gbit', '', rate)) * 1e9):.1f} s" if rate else "-"
        print(
            f"| {rate or 'no limit'} | {ideal} | {middle(cai, 0):.1f} s | {middle(cai, 1):.1f} s | {middle(peer, 0):.1f} s "
            f"| {middle(peer, 1):.1f} s | {middle(peer, 1) / middle(cai, 1):.2f}x faster | {middle(cai, 2):.2f} / {middle(peer, 2):.2f} |",
            flush=True,
        )
    Link.limit(None)


def receiving(stand, root, work, urls, size, rounds):
    print("\nReceiving the model, client's CPU seconds per GB, medians (https is taken off by a proxy beside the stand-in, so no rate is told):\n")
    print("| | cai download | curl --parallel | CPU, cai by curl |")
    print("|---|---|---|---|")
    host, port = stand.addresses["oss"].removeprefix("http://").split(":")
    tls = Tls(work, (host, int(port)))
    secure = {path: url.replace(stand.addresses["oss"], tls.url) for path, url in urls.items()}
    target = work / "received"
    shutil.copy(tls.ca, root / "etc/cai/ca.pem")
    for scheme, endpoint, these, more, toml in (
        ("http", stand.addresses["oss"], urls, [], ""),
        ("https", tls.url, secure, ["--cacert", str(tls.ca)], '[oss]\nca_file = "/etc/cai/ca.pem"\n'),
    ):
        stand.configure(root, NAME, endpoint=endpoint, toml=toml)
        ours, theirs = [], []
        for _ in range(rounds):
            cpu = cpu_used(resource.RUSAGE_CHILDREN)
            command = [stand.binaries / "cai", "--root", root, "download", target]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            ours.append(cpu_used(resource.RUSAGE_CHILDREN) - cpu)
            shutil.rmtree(target)
            theirs.append(curl(these, target, *more))
            shutil.rmtree(target)
        cpu, peer_cpu = (statistics.median(runs) / (size / GB) for runs in (ours, theirs))
        print(f"| {scheme} | {cpu:.2f} | {peer_cpu:.2f} | {cpu / peer_cpu:.2f} |", flush=True)
    stand.configure(root, NAME)


def sixty_four_readers(stand, root, seconds):
    print(f"\nPeak memory of the daemon, 64 readers of 1 MiB at random places of a cold model for {seconds} s:\n")
    print("| cache.mode | VmHWM, MiB |")
    print("|---|---|")
    point = root / "tmp/model"
    for mode in ("full", "none"):
        stand.configure(root, NAME, toml=f'[cache]\nmode = "{mode}"\n[mount]\nmode = "on-demand"\n')
        shutil.rmtree(root / "var", ignore_errors=True)
        drop_caches()
        with stand.agent(root) as agent:
            files = [path for path in sorted(point.rglob("*")) if path.stat().st_size > 8 * CHUNK]
            end = time.monotonic() + seconds

            def work(seed):
                choose, buffer = random.Random(seed), bytearray(CHUNK)
                while time.monotonic() < end:
                    with open(choose.choice(files), "rb", buffering=0) as file:
                        file.seek(choose.randrange(os.fstat(file.fileno()).st_size - CHUNK))
                        file.readinto(buffer)

            readers = [threading.Thread(target=work, args=(seed,)) for seed in range(64)]
            [reader.start() for reader in readers]
            [reader.join() for reader in readers]
            print(f"| {mode} | {memory_of(agent.pid, 'VmHWM'):.0f} |", flush=True)
    stand.configure(root, NAME)


def received():
    """Bytes that came over the cable so far, heads of packets included."""
    return int(Path("/sys/class/net/cai-bench0/statistics/rx_bytes").read_text())


def after_a_kill(stand, root, size, rate):
    Link.limit(rate)
    before = received()
    shutil.rmtree(root / "var", ignore_errors=True)
    progress = lambda: stand.status()["Progress"]
    with stand.agent(root) as agent:
        wait_for(lambda: progress()["BytesDone"] >= size / 2, "half of the model", agent)
        had = progress()["BytesDone"]
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    # The helper ends with it, and detaches the dead mount.
    wait_for(lambda: not os.path.ismount(root / "tmp/model"), "the mount to go")
    begun = time.perf_counter()
    with stand.agent(root) as agent:
        ready = time.perf_counter() - begun
        total = read_all(root / "tmp/model")
        last = time.perf_counter() - begun
        wait_for(lambda: progress()["BytesDone"] == progress()["BytesTotal"], "the rest", agent)
    Link.limit(None)
    # One packet of 1500 bytes in flight has 52 of heads and 14 of Ethernet's.
    came = (received() - before) * 1448 / 1514
    print(f"\n`kill -9` with {had / GB:.2f} of {size / GB:.2f} GB local, link {rate}: READY=1 after {ready:.2f} s, all {total / GB:.2f} GB read "
          f"{last:.1f} s after the restart (the rest alone takes {(size - had) * 8 / (float(rate.removesuffix('gbit')) * 1e9):.1f} s); "
          f"{came / size:.3f} times the model came over the cable in both runs together.")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=4096)
    parser.add_argument("--rates", nargs="*", default=["1gbit", "2.5gbit"])
    parser.add_argument("--only", default="cold receiving readers kill", help="parts, by name")
    options = parser.parse_args()
    binaries = options.bin.resolve()
    with workplace() as (work, password, cleanup):
        cipher = sample_model(binaries, work, password, options.mib)
        paths = [str(path.relative_to(cipher)) for path in sorted(cipher.rglob("*")) if path.is_file()]
        size = sum((cipher / path).stat().st_size for path in paths)
        cleanup.enter_context(Link())
        stand = cleanup.enter_context(Stand(binaries, work, password, namespace=NAMESPACE, address=GUEST))
        root = work / "root"
        root.mkdir(mode=0o755)
        stand.configure(root, NAME)
        subprocess.run([binaries / "cai", "--root", root, "upload", cipher], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(cipher)
        urls = {path: f"{stand.addresses['oss']}/conf-ai/{NAME}/{path}" for path in paths}
        parts = options.only.split()
        if "cold" in parts:
            cold_start(stand, root, work, urls, size, options)
        if "receiving" in parts:
            receiving(stand, root, work, urls, size, options.rounds)
        if "readers" in parts:
            sixty_four_readers(stand, root, 10)
        if "kill" in parts:
            after_a_kill(stand, root, size, "1gbit")


if __name__ == "__main__":
    main()
