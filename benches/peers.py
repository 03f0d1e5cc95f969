#!/usr/bin/env python3
"""One model for many nodes, over links of one rate: cai with peers beside cai without, in the same run.

A namespace for each node and one for the stand-in Trustee and OSS, a bridge between them, a token bucket (tc tbf) on both ends of
each cable. Peers attest each other (sample evidence). All nodes of a row start at once, with empty caches.

1. One node that has the model, three that want it: what the first sends, when the last is done.
2. OSS as the only source, for 1, 3 and 8 nodes, without and with peers: what OSS sends, when the last is done.
3. A node that has peers in its configuration, of which none is there, beside one that has none.
4. Reads of 1 MiB at places of the mount that are not local yet, while a peer fills the link.
5. `kill -9` of one of three nodes at half of the model: READY=1 after the restart, and what it received in all.

"By the link's limit" is the time by what the bytes alone would take: of one model over one node's link, or, without peers, of one
model for each node over the link of OSS. CPU is that of all nodes together, whole processes from start to last byte.
Needs root, /dev/fuse, dbus-daemon, ip, tc. Prints Markdown. Leaves nothing behind. Never a gate.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path

from common import CHUNK, GB, cpu_of, drop_caches, memory_of, wait_for
from stand import Agent, Stand, sample_model, start_bus, workplace

PREFIX, SUBNET, ORIGIN = "cai-peers", "10.77.45", 1
NAME = "model"
COMPLETE = b"every byte of the model is local"


def sh(command):
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Net:
    """Namespaces around a bridge."""

    def __init__(self, hosts, rate):
        self.hosts, self.rate = hosts, rate

    def __enter__(self):
        self.__exit__()
        sh(f"ip netns add {PREFIX}-switch")
        sh(f"ip -n {PREFIX}-switch link add switch type bridge")
        sh(f"ip -n {PREFIX}-switch link set switch up")
        for host in self.hosts:
            sh(f"ip netns add {PREFIX}-{host}")
            sh(f"ip link add cable netns {PREFIX}-{host} type veth peer name port{host} netns {PREFIX}-switch")
            sh(f"ip -n {PREFIX}-switch link set port{host} master switch up")
            sh(f"ip -n {PREFIX}-{host} link set lo up")
            sh(f"ip -n {PREFIX}-{host} addr add {SUBNET}.{host}/24 dev cable")
            sh(f"ip -n {PREFIX}-{host} link set cable up")
        return self

    def __exit__(self, *error):
        for host in [*self.hosts, "switch"]:
            subprocess.run(["ip", "netns", "del", f"{PREFIX}-{host}"], stderr=subprocess.DEVNULL)

    def limit(self):
        for host in self.hosts:
            for namespace, device in ((f"{PREFIX}-{host}", "cable"), (f"{PREFIX}-switch", f"port{host}")):
                sh(f"tc -n {namespace} qdisc replace dev {device} root tbf rate {self.rate} burst 256kb latency 25ms")

    @staticmethod
    def counted(host):
        """Bytes received and sent. Packets are up to 64 KiB long here (segmentation offload): their heads are a thousandth."""
        command = ["ip", "-n", f"{PREFIX}-{host}", "-j", "-s", "link", "show", "cable"]
        shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]["stats64"]
        return shown["rx"]["bytes"], shown["tx"]["bytes"]


class Node:
    def __init__(self, stand, work, host, stack):
        self.stand, self.host, self.work = stand, host, work / str(host)
        self.work.mkdir()
        self.work.chmod(0o711)
        self.root = self.work / "root"
        self.root.mkdir(mode=0o755)
        self.environment = start_bus(self.work, stack)
        self.agent = None

    def configure(self, peers, toml=""):
        env = f'MODEL_SHARING_PEER="{" ".join(f"{SUBNET}.{host}" for host in peers)}"\n' if peers else ""
        self.stand.configure(self.root, NAME, toml=toml, env=env)

    def forget(self):
        shutil.rmtree(self.root / "var", ignore_errors=True)

    def start(self):
        prefix = ["nsenter", f"--net=/run/netns/{PREFIX}-{self.host}"]
        self.agent = Agent(self.stand.binaries, self.root, self.work, self.environment, prefix)
        self.is_ready = threading.Thread(target=self.agent.ready, daemon=True)
        self.is_ready.start()

    def is_complete(self):
        return COMPLETE in self.agent.log.read_bytes()

    def progress(self):
        command = [str(self.stand.binaries / "cai"), "status", "--json"]
        shown = subprocess.run(command, env=self.environment, capture_output=True)
        return json.loads(shown.stdout)["Progress"]["BytesDone"] if shown.returncode == 0 else 0

    def end(self):
        if self.agent:
            self.is_ready.join()
            self.agent.end()
            self.agent = None


class Lab:
    def __init__(self, net, nodes, size):
        self.net, self.nodes, self.size = net, nodes, size
        self.rate = float(re.sub("mbit", "", net.rate)) * 1e6 / 8

    def floor(self, models=1):
        """Seconds that so many models take over one link, by their bytes alone."""
        return models * self.size / self.rate

    def together(self, nodes, limit):
        """Start them at once; seconds until the last has everything, CPU seconds of all, peak memory of the largest, MiB."""
        begun = time.perf_counter()
        for node in nodes:
            node.start()
        for node in nodes:
            wait_for(node.is_complete, f"node {node.host}", node.agent.process, limit)
        seconds = time.perf_counter() - begun
        pids = [node.agent.process.pid for node in nodes]
        return seconds, sum(map(cpu_of, pids)), max(memory_of(pid, "VmHWM") for pid in pids)

    @contextlib.contextmanager
    def run(self, nodes, peers, seeders=0):
        """The nodes configured, the caches of all but the first `seeders` empty; ended afterwards."""
        for node in nodes:
            node.configure([other.host for other in nodes] if peers else [])
        for node in nodes[seeders:]:
            node.forget()
        drop_caches()
        try:
            for node in nodes[:seeders]:
                node.start()
                wait_for(node.is_complete, "the seeder", node.agent.process, 60 + 10 * self.floor())
            yield
        finally:
            for node in nodes:
                node.end()


def head(title, columns):
    print(f"\n{title}:\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def many(lab, counts, rounds):
    columns = ["", "sent by the source, by the model", "last node", "by the link's limit", "CPU s per GB received", "peak memory, MiB"]
    head(f"A model of {lab.size / GB:.2f} GB, links of {lab.net.rate}, medians of {rounds}", columns)
    for count, seeders, peers in [(3, 1, True)] + [(count, 0, peers) for count in counts for peers in (False, True)]:
        nodes, results = lab.nodes[: count + seeders], []
        for _ in range(rounds):
            with lab.run(nodes, peers, seeders):
                source = nodes[0].host if seeders else ORIGIN
                before, cpu = lab.net.counted(source)[1], sum(cpu_of(node.agent.process.pid) for node in nodes[:seeders])
                seconds, spent, memory = lab.together(nodes[seeders:], 60 + 10 * lab.floor(count))
                spent += sum(cpu_of(node.agent.process.pid) for node in nodes[:seeders]) - cpu
                results.append(((lab.net.counted(source)[1] - before) / lab.size, seconds, spent / (count * lab.size / GB), memory))
        sent, seconds, cpu, memory = map(statistics.median, zip(*results))
        what = "1 node has it, 3 take it" if seeders else f"OSS, {count} node{'s' * (count > 1)}, {'with' if peers else 'without'} peers"
        floor = lab.floor(count if not peers else 1)
        row(what, f"{sent:.2f}x", f"{seconds:.1f} s", f"{seconds / floor:.2f}x", f"{cpu:.2f}", f"{memory:.0f}")


def nobody_there(lab, rounds):
    results = {peers: [] for peers in (False, True)}
    node = lab.nodes[0]
    for _ in range(rounds):
        for peers, seconds in results.items():
            # Hosts that are there and do not listen, and one that is not there.
            node.configure([other.host for other in lab.nodes[1:3]] + [250] if peers else [])
            node.forget()
            drop_caches()
            try:
                seconds.append(lab.together([node], 60 + 10 * lab.floor())[0])
            finally:
                node.end()
    plain, alone = (statistics.median(results[peers]) for peers in (False, True))
    print(f"\nOne node: {plain:.1f} s without peers, {alone:.1f} s with three in its configuration of which none is there: "
          f"{plain / alone:.2f}x the rate.", flush=True)  # fmt: skip


def reads(lab, rounds, seconds):
    """Reads that find their bytes local are not what is asked: a MiB that comes over the link takes longer than half of its time
    alone on it, and one that does not takes a few milliseconds."""
    nodes, times = lab.nodes[:2], []
    alone = CHUNK / lab.rate
    choose, buffer = random.Random(1), bytearray(CHUNK)
    for _ in range(rounds):
        with lab.run(nodes, True, 1):
            nodes[1].start()
            nodes[1].is_ready.join()
            files = [path for path in (nodes[1].root / "tmp/model").rglob("*") if path.stat().st_size > 8 * CHUNK]
            end = time.monotonic() + seconds
            while time.monotonic() < end and not nodes[1].is_complete():
                with open(choose.choice(files), "rb", buffering=0) as file:
                    file.seek(choose.randrange(os.fstat(file.fileno()).st_size // CHUNK) * CHUNK)
                    begun = time.perf_counter()
                    file.readinto(buffer)
                    times.append(time.perf_counter() - begun)
                time.sleep(0.1)
    cold = sorted(took for took in times if took > alone / 2)
    if len(cold) < 10:
        print(f"\nReads: only {len(cold)} were not local: the model is too small for this.")
        return
    at = lambda part: 1000 * cold[min(len(cold) - 1, int(part * len(cold)))]
    print(f"\n{len(cold)} reads of 1 MiB that were not local while a peer filled the link of {lab.net.rate} (alone on it: "
          f"{1000 * alone:.0f} ms): p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms, longest {1000 * cold[-1]:.0f} ms.", flush=True)  # fmt: skip


def killed(lab):
    nodes = lab.nodes[:3]
    victim = nodes[1]
    with lab.run(nodes, True):
        before = lab.net.counted(victim.host)[0]
        for node in nodes:
            node.start()
        wait_for(lambda: victim.progress() >= lab.size / 2, "half of the model", victim.agent.process, 60 + 10 * lab.floor())
        had = victim.progress()
        victim.agent.process.send_signal(signal.SIGKILL)
        victim.agent.process.wait()
        wait_for(lambda: not os.path.ismount(victim.root / "tmp/model"), "the mount to go")
        victim.end()
        begun = time.perf_counter()
        victim.start()
        victim.is_ready.join()
        ready = time.perf_counter() - begun
        wait_for(victim.is_complete, "the rest", victim.agent.process, 60 + 10 * lab.floor())
        came = lab.net.counted(victim.host)[0] - before
    print(f"\n`kill -9` of one of 3 nodes with {had / lab.size:.2f} of the model local: READY=1 {ready:.2f} s after the restart; it received "
          f"{came / lab.size:.2f} times the model in both runs together.", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rate", default="200mbit", help="of each link, in mbit")
    parser.add_argument("--fast", default="400mbit", help="of each link for the reads: 50 MB/s")
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 3, 8], help="nodes of the second part")
    parser.add_argument("--only", default="many alone reads kill", help="parts, by name")
    options = parser.parse_args()
    binaries, parts = options.bin.resolve(), options.only.split()
    hosts = list(range(11, 11 + max([4, *options.counts])))
    with workplace() as (work, password, cleanup):
        cipher = sample_model(binaries, work, password, options.mib)
        size = sum(path.stat().st_size for path in cipher.rglob("*") if path.is_file())
        net = cleanup.enter_context(Net([ORIGIN, *hosts], options.rate))
        stand = cleanup.enter_context(Stand(binaries, work, password, f"{PREFIX}-{ORIGIN}", f"{SUBNET}.{ORIGIN}"))
        nodes = [Node(stand, work, host, cleanup) for host in hosts]
        nodes[0].configure([])
        upload = ["nsenter", f"--net=/run/netns/{PREFIX}-{hosts[0]}", binaries / "cai", "--root", nodes[0].root, "upload", cipher]
        subprocess.run(upload, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(cipher)
        net.limit()
        lab = Lab(net, nodes, size)
        if "many" in parts:
            many(lab, options.counts, options.rounds)
        if "alone" in parts:
            nobody_there(lab, options.rounds)
        if "kill" in parts:
            killed(lab)
        if "reads" in parts:
            net.rate = options.fast
            net.limit()
            reads(Lab(net, nodes, size), options.rounds, 60)


if __name__ == "__main__":
    main()
