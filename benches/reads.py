#!/usr/bin/env python3
"""Reading what `cai mount` serves, beside gocryptfs mounting the same directory and beside the plain file, in the same run.

One table: a row for each path that has a target, its ratio over rounds (rate of cai by rate of the peer; cai and peer take turns,
each round in the other order), and CPU seconds per GB, the steadier figure on a shared machine: reader, daemon and its children.
Where no way leads past the kernel's FUSE, a file system of zeros shows what that alone costs (benches/empty_fs.rs).
Every measurement mounts afresh, so no plaintext is cached but where the row says so. Ciphertext and plain file are in the page
cache; cold means that all caches were dropped. Opening and closing count, starting Python does not: readers are processes that
wait for each other first, so none holds another's interpreter lock. mmap + memcpy copies 1 MiB at a time with the C library.

Load mode has memory for one shard: its first rows read a shard after another one, whose memory was just given back, as in a model of
many shards. Memory that the machine never used before is a row of its own: on a virtual machine the host may have to find it.

Before anything is timed, each mode must give every byte of the source, by read and by mmap, and a mode that decrypts whole files
must have one in memory. What cannot be measured is left out, with the reason below the table.

Needs root, /dev/fuse, gocryptfs. Prints Markdown. Leaves nothing behind. Never a gate: times depend on the machine.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from common import CHUNK, GB, cpu_of, drop_caches, memory_of, mounted
from readers import LOADER, Sample, copy, find, load, mapped, read, scattered, spread, touch

MODEL = "model.safetensors"
EARLIER = "earlier.safetensors"
TENSORS = 32
# What a shard has beside its tensors, and more.
SLACK = 64 << 20
DIRECTORIES = 100
EMPTY = "FUSE alone"
# What cai sets, KiB.
READ_AHEAD = 4096

def write_model(path, mib):
    """A safetensors file of random bytes, in which the order of names is not that of offsets; its SHA-256."""
    share = (mib << 20) // TENSORS
    header = {
        f"layer.{7 * number % TENSORS:02}.weight": {"dtype": "F16", "shape": [share // 2], "data_offsets": [start, start + share]}
        for number, start in enumerate(range(0, TENSORS * share, share))
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text, *(None for _ in range(mib))):
            piece = os.urandom(CHUNK) if piece is None else piece
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def digest_of(path):
    """SHA-256 of what read gives, and of what mmap gives."""
    by_read, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            by_read.update(buffer[:count])
    with mapped(path) as (address, size):
        return by_read.hexdigest(), hashlib.sha256((ctypes.c_char * size).from_address(address)).hexdigest()


def shared_memory():
    """Bytes of memory file systems on this machine, and how many of them are huge pages."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return [int(fields[name].split()[0]) << 10 for name in ("Shmem", "ShmemHugePages")]


class Bench:
    """Everything lies in one directory; a mount is named by its mode, or gocryptfs."""

    def __init__(self, options, work):
        self.cai, self.options, self.work = options.bin.resolve() / "cai", options, work
        self.has_modes = "--mode" in self.run(self.cai, "mount", "--help")
        self.password, self.point, self.python = work / "password", work / "mnt", options.python
        self.password.write_text("bench password\n")
        self.plain = work / "plain" / MODEL
        self.plain.parent.mkdir()
        self.digest = write_model(self.plain, options.mib)
        os.link(self.plain, self.plain.with_name(EARLIER))
        self.cipher = self.encrypt(self.plain.parent, "cipher")
        self.cipher_files = sorted(self.cipher.iterdir(), key=lambda path: path.stat().st_size)[-2:]
        self.notes = []

    @staticmethod
    def run(*command):
        done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def encrypt(self, source, name):
        self.run(self.cai, "encrypt", source, self.work / name, "--passfile", self.password)
        os.sync()
        return self.work / name

    def mounted(self, mode, directory=None):
        directory = directory or self.cipher
        if mode == EMPTY:
            return self.mounted_empty()
        if mode == "gocryptfs":
            command = ["gocryptfs", "-q", "-ro", "-fg", "-passfile", self.password, directory, self.point]
        else:
            command = [self.cai, "mount", directory, self.point, "--passfile", self.password, *self.options.cai_args]
            command += ["--mode", mode] if self.has_modes else []
            command += ["--memory", str((self.options.mib << 20) + SLACK)] if mode == "load" else []
        return mounted([str(part) for part in command], self.point, announced=mode != "gocryptfs")

    @contextlib.contextmanager
    def mounted_empty(self):
        command = [self.cai.with_name("examples") / "empty-fs", self.point, str(self.plain.stat().st_size)]
        with mounted([str(part) for part in command], self.point) as (daemon, said):
            device = os.stat(self.point).st_dev
            Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(str(READ_AHEAD))
            yield daemon, said

    # Preparing: None when it can be measured, else why not.

    def prepare(self, need):
        if need == "safetensors":
            return self.prepare_python()
        if need == "tree":
            return self.prepare_tree()
        if need == EMPTY:
            built = self.cai.with_name("examples") / "empty-fs"
            return None if built.exists() else f"{built.name} is not built (cargo build --release --example {built.name})"
        return self.prepare_mode(need)

    def prepare_mode(self, mode):
        if mode in ("load", "ram") and not self.has_modes:
            return "this cai mount has no --mode"
        before = shared_memory()
        with self.mounted(mode) as (_, said):
            if set(digest_of(self.point / MODEL)) != {self.digest}:
                raise RuntimeError(f"{mode}: the mount does not give the bytes of the source")
            held, huge = (now - then for now, then in zip(shared_memory(), before))
            words = "; ".join(said.read_text(errors="replace").splitlines()).replace(str(self.work), "WORK")
        if mode in ("load", "ram") and held < self.plain.stat().st_size / 2:
            return f"the file is not in memory; cai said: {words}"
        if mode != "gocryptfs":
            self.notes.append(f"{mode}: memory file systems grew by {held / GB:.2f} GB, {huge / GB:.2f} GB of huge pages; {words}")

    def prepare_tree(self):
        files = self.options.files
        for number in range(files):
            if number % (files // DIRECTORIES or 1) == 0:
                directory = self.work / "small" / f"{number:06}"
                directory.mkdir(parents=True)
            (directory / f"{number:06}.json").write_bytes(b"x"[: number % 2])
        self.tree = self.encrypt(self.work / "small", "small-cipher")
        for mode in ("on-demand", "gocryptfs"):
            self.mount_and_find(mode)

    def prepare_python(self):
        if self.python is None:
            venv = self.work / "venv"
            try:
                self.run(sys.executable, "-m", "venv", venv)
                self.run(venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "safetensors", "numpy")
            except RuntimeError as error:
                return f"no safetensors and numpy: {error}"
            self.python = venv / "bin/python"
        try:
            self.notes.append(self.run(self.python, "-c", LOADER, self.plain).splitlines()[0])
        except (OSError, RuntimeError) as error:
            return f"cannot load safetensors: {error}"

    # States, and one measurement in each.

    def cached(self, *paths):
        for path in paths:
            read(path, 0, path.stat().st_size, bytearray(CHUNK))

    def measure(self, daemon, work, path):
        used = cpu_of(daemon.pid)
        sample = work(path)
        return sample._replace(cpu=sample.cpu + cpu_of(daemon.pid) - used)

    def first(self, mode, work):
        self.cached(*self.cipher_files)
        with self.mounted(mode) as (daemon, _):
            return self.measure(daemon, work, self.point / MODEL)

    def next(self, mode, work):
        self.cached(*self.cipher_files)
        with self.mounted(mode) as (daemon, _):
            self.cached(self.point / EARLIER)
            return self.measure(daemon, work, self.point / MODEL)

    def again(self, mode, work):
        self.cached(*self.cipher_files)
        with self.mounted(mode) as (daemon, _):
            work(self.point / MODEL)
            return self.measure(daemon, work, self.point / MODEL)

    def cold(self, mode, work):
        with self.mounted(mode) as (daemon, _):
            self.cached(self.point / EARLIER)
            drop_caches()
            return self.measure(daemon, work, self.point / MODEL)

    def raw(self, work):
        self.cached(self.plain)
        return work(self.plain)

    def raw_cold(self, work):
        drop_caches()
        return work(self.cipher_files[0])

    def find(self, mode):
        with self.mounted(mode, self.tree) as (daemon, _):
            return self.measure(daemon, partial(find, self.options.files), self.point)

    def mount_and_find(self, mode):
        begun = time.perf_counter()
        with self.mounted(mode, self.tree) as (daemon, _):
            found = find(self.options.files, self.point)
            return Sample(time.perf_counter() - begun, found.cpu + cpu_of(daemon.pid), found.amount)

    def memory(self, work, mode):
        """VmRSS of the daemon in MiB, after `work` if there is any."""
        with self.mounted(mode) as (daemon, _):
            work and work(self.point / MODEL)
            return memory_of(daemon.pid, "VmRSS")


def spread_of(values, form):
    return f"{format(statistics.median(values), form)} ({format(min(values), form)}-{format(max(values), form)})"


@dataclass
class Row:
    """`measure` takes the mode of cai or the name of the peer and gives a Sample."""

    path: str
    mode: str
    peer: str
    measure: Callable
    needs: tuple
    ratio: Optional[float] = None
    cpu: Optional[float] = None
    unit: str = "GB"

    def cells(self, rounds):
        runs = {self.mode: [], self.peer: []}
        for number in range(rounds):
            for name in sorted(runs, reverse=number % 2):
                runs[name].append(self.measure(name))
        scale = GB if self.unit == "GB" else 1000
        rates = [[run.amount / scale / run.seconds for run in runs[name]] for name in runs]
        cpus = [statistics.median(run.cpu / run.amount * scale for run in runs[name]) for name in runs]
        ratios = [own / peer for own, peer in zip(*rates)]
        rate, cpu = ("", "") if self.unit == "GB" else (f" {self.unit}/s", f" s/{self.unit}")
        return [
            self.target(), spread_of(ratios, ".2f"), *(f"{statistics.median(values):.3g}{rate}" for values in rates),
            *(f"{value:.3g}{cpu}" for value in cpus), self.met(statistics.median(ratios), cpus[0]),
        ]

    def target(self):
        if self.ratio is None:
            return f"none; by {self.peer}"
        return f">= {self.ratio}x {self.peer}" + (f", CPU <= {self.cpu}" if self.cpu else "")

    def met(self, ratio, cpu):
        if self.ratio is None:
            return "-"
        missed = [name for name, bad in (("ratio", ratio < self.ratio), ("CPU", self.cpu and cpu > self.cpu)) if bad]
        return f"no: {' and '.join(missed)}" if missed else "yes"


@dataclass
class Memory:
    path: str
    measure: Callable
    limit: Optional[float] = None
    needs: tuple = ("on-demand", "gocryptfs")

    def cells(self, rounds):
        own, peer = ([self.measure(mode) for _ in range(rounds)] for mode in self.needs)
        target = f"<= {self.limit} MiB" if self.limit else "none"
        met = ("yes" if statistics.median(own) <= self.limit else "no") if self.limit else "-"
        return [target, f"{spread_of(own, '.0f')} MiB", "-", f"{statistics.median(peer):.0f} MiB", "-", "-", met]


def rows(bench):
    one_read, one_copy = spread(read), spread(copy)

    def by_gocryptfs(path, mode, work, *targets, state=bench.first, needs=(), **more):
        needs = (mode, "gocryptfs", *needs)
        return Row(f"{mode}, {path}", mode, "gocryptfs", lambda name: state(name, work), needs, *targets, **more)

    def by_raw(path, mode, work, *targets, state=bench.first, peer="raw ext4 cached", raw=bench.raw):
        measure = lambda name: raw(work) if name == peer else state(name, work)
        return Row(f"{mode}, {path}", mode, peer, measure, (mode,), *targets)

    def by_empty(path, work, **more):
        measure = lambda name: bench.first(name, work)
        return Row(f"on-demand, {path}, beside FUSE alone", "on-demand", EMPTY, measure, ("on-demand", EMPTY), **more)

    def by_find(path, state, ratio):
        path, needs = f"on-demand, {bench.options.files} small files: {path}", ("on-demand", "gocryptfs", "tree")
        return Row(path, "on-demand", "gocryptfs", state, needs, ratio, unit="k files")

    yield by_gocryptfs("one reader, read", "on-demand", one_read, 1.8, 0.65)
    yield by_gocryptfs("one reader, mmap + memcpy", "on-demand", one_copy, 2.6, 0.75)
    yield by_gocryptfs("one reader, mmap, one byte a page", "on-demand", spread(touch))
    yield by_gocryptfs("four readers, read", "on-demand", spread(read, 4), 1.8)
    yield by_gocryptfs("four readers, mmap + memcpy", "on-demand", spread(copy, 4), 2.0)
    yield by_gocryptfs("first read of the next shard, decryption included", "load", one_read, 4.5, 0.37, state=bench.next)
    yield by_gocryptfs("first mmap + memcpy of the next shard, decryption included", "load", one_copy, 8, 0.34, state=bench.next)
    yield by_gocryptfs("first read of the first shard, decryption included", "load", one_read)
    yield by_raw("read after ready", "ram", one_read, 1)
    yield by_raw("mmap + memcpy after ready", "ram", one_copy, 1)
    for mode in ("on-demand", "load"):
        yield by_raw("warm re-open, read", mode, one_read, 0.8, 0.2, state=bench.again)
        yield by_raw("warm re-open, mmap + memcpy", mode, one_copy, 0.8, 0.2, state=bench.again)
    for readers, name in ((1, "one reader"), (4, "four readers")):
        random = {"work": scattered(readers), "unit": "k reads"}
        yield by_gocryptfs(f"random 4 KiB, {name}", "on-demand", ratio=1.8, **random)
        yield by_gocryptfs(f"random 4 KiB, second pass, {name}", "load", ratio=1.8, state=bench.again, **random)
    for readers, name in ((1, "one reader"), (4, "four readers")):
        yield by_empty(f"{name}, read", spread(read, readers))
        yield by_empty(f"{name}, mmap + memcpy", spread(copy, readers))
        yield by_empty(f"random 4 KiB, {name}", scattered(readers), unit="k reads")
    raw_disk = {"peer": "raw disk, ciphertext file", "raw": bench.raw_cold}
    for mode in ("on-demand", "load"):
        yield by_raw("cold disk, read", mode, one_read, 0.85, state=bench.cold, **raw_disk)
    for mode in ("on-demand", "load"):
        loading = {"work": lambda path: load(bench.python, path), "needs": ("safetensors",)}
        yield by_gocryptfs("safetensors load_file, next shard", mode, ratio=2.3, state=bench.next, **loading)
        yield by_gocryptfs("safetensors load_file, warm", mode, ratio=3, state=bench.again, **loading)
    yield by_find("find", bench.find, 1.5)
    yield by_find("mount and find", bench.mount_and_find, None)
    yield Memory("on-demand, VmRSS of the daemon after mount", partial(bench.memory, None), 48)
    yield Memory("on-demand, VmRSS of the daemon after 64 readers", partial(bench.memory, spread(read, 64)))


def report(bench, wanted):
    chosen = [row for row in rows(bench) if re.search(wanted, row.path)]
    lacking = {need: bench.prepare(need) for need in dict.fromkeys(need for row in chosen for need in row.needs)}
    print("| path | target | measured, median (min-max) | cai GB/s | peer GB/s | cai CPU s/GB | peer CPU s/GB | met |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    left_out = {}
    for row in chosen:
        if reasons := [lacking[need] for need in row.needs if lacking[need]]:
            left_out.setdefault(" ".join("; ".join(reasons).split()), []).append(row.path)
        else:
            print(f"| {' | '.join([row.path, *row.cells(bench.options.rounds)])} |", flush=True)
    notes = bench.notes + [f"left out, because {reason}: {'; '.join(paths)}" for reason, paths in left_out.items()]
    print("", *(f"* {note}" for note in notes), sep="\n")


def stop(number, _):
    """Ctrl-C and SIGTERM end the run once, and nothing disturbs the cleaning up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path, help="directory with cai (and cai-helper)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=2048, help="size of the model")
    parser.add_argument("--files", type=int, default=100_000, help="how many small files find sees")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows to measure")
    parser.add_argument("--dir", default="/var/tmp", help="where to work: on a disk")
    parser.add_argument("--python", help="an interpreter with safetensors and numpy, instead of installing them")
    parser.add_argument("cai_args", nargs="*", metavar="-- ARGUMENT", help="more arguments of cai mount")
    options = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    system = Bench.run("stat", "-f", "-c", "%T", options.dir).strip()
    if system == "tmpfs":
        sys.exit(f"{options.dir} is in memory: choose a directory on a disk with --dir")
    with tempfile.TemporaryDirectory(prefix="cai-bench.", dir=options.dir) as directory:
        print(f"\nReads of a model of {options.mib} MiB on {system}, {options.rounds} rounds, {os.cpu_count()} cores, "
              f"Linux {os.uname().release}, {Bench.run('gocryptfs', '-version').split(';')[0]}, load {os.getloadavg()[0]:.1f}:\n")
        report(Bench(options, Path(directory)), options.only)


if __name__ == "__main__":
    main()
