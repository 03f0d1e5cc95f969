"""Readers of one file or directory, and what they take.

A job (`read`, `copy`, `touch`, `read_pages`) reads its part of a file and returns how much. Work (`load`, `find`, and what `spread`
and `scattered` return) takes a path, lets processes read it, and returns a Sample of them. Imported by reads.py; stdlib only.
"""

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import random
import resource
import subprocess
import time
from functools import partial
from typing import NamedTuple

from common import CHUNK, cpu_used

PAGE = mmap.PAGESIZE
RANDOM_SPAN = 256 << 20
# A quarter of the pages of the span: where most are cached already, the kernel takes neighbours for a sequence and reads ahead.
RANDOM_READS = RANDOM_SPAN // PAGE // 4

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

# Wait for a line, load the file, say what it took.
LOADER = """
import resource, sys, time
import numpy, safetensors
from safetensors.numpy import load_file
cpu = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}", flush=True)
sys.stdin.readline()
begun, used = time.perf_counter(), cpu()
tensors = load_file(sys.argv[1])
print(time.perf_counter() - begun, cpu() - used, sum(tensor.nbytes for tensor in tensors.values()))
"""


class Sample(NamedTuple):
    """Wall-clock seconds, CPU seconds, and how many bytes, reads or files."""

    seconds: float
    cpu: float
    amount: float


@contextlib.contextmanager
def opened(path):
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def mapped(path):
    """Address and length of the whole file, shared and read-only as the loaders of weights map it."""
    with opened(path) as file:
        size = os.fstat(file).st_size
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"mmap of {path}")
    try:
        yield address, size
    finally:
        LIBC.munmap(address, size)


def read(path, start, end, buffer):
    with opened(path) as file:
        for offset in range(start, end, CHUNK):
            if os.preadv(file, [buffer], offset) < min(CHUNK, end - offset):
                raise RuntimeError(f"{path}: short read at {offset}")
    return end - start


def copy(path, start, end, buffer):
    target = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    with mapped(path) as (address, _):
        for offset in range(start, end, CHUNK):
            LIBC.memcpy(target, address + offset, min(CHUNK, end - offset))
    return end - start


def touch(path, start, end, buffer):
    """One byte of every page; the loop over them is in C."""
    with mapped(path) as (address, _):
        memoryview((ctypes.c_ubyte * (end - start)).from_address(address + start))[::PAGE].tobytes()
    return end - start


def read_pages(path, offsets, buffer):
    page = [memoryview(buffer)[:PAGE]]
    with opened(path) as file:
        if sum(os.preadv(file, page, offset) for offset in offsets) != PAGE * len(offsets):
            raise RuntimeError(f"{path}: short read")
    return len(offsets)


def together(jobs):
    """Each job in a process of its own, begun at once: first start to last end, CPU seconds of all."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(len(jobs)), context.SimpleQueue()

    def reader(job):
        buffer = bytearray(os.urandom(1)) * CHUNK
        barrier.wait(timeout=60)
        begun, cpu = time.perf_counter(), cpu_used(resource.RUSAGE_SELF)
        amount = job(buffer=buffer)
        results.put((begun, time.perf_counter(), cpu_used(resource.RUSAGE_SELF) - cpu, amount))

    processes = [context.Process(target=reader, args=(job,)) for job in jobs]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.pid and process.exitcode is None:
                process.kill()
                process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a reader failed")
    begun, ended, cpu, amount = zip(*(results.get() for _ in jobs))
    return Sample(max(ended) - min(begun), sum(cpu), sum(amount))


def spread(job, readers=1):
    """The file in as many equal parts as there are readers."""

    def work(path):
        size = path.stat().st_size
        edges = [size * part // readers // CHUNK * CHUNK for part in range(readers)] + [size]
        return together([partial(job, path, start, end) for start, end in zip(edges, edges[1:])])

    return work


def scattered(readers):
    def work(path):
        pages = min(RANDOM_SPAN, path.stat().st_size) // PAGE
        offsets = [page * PAGE for page in random.Random(0).sample(range(pages), min(pages, RANDOM_READS))]
        return together([partial(read_pages, path, offsets[reader::readers]) for reader in range(readers)])

    return work


def load(python, path):
    """safetensors.numpy.load_file, its imports not counted."""
    with subprocess.Popen([python, "-c", LOADER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loader:
        try:
            loader.stdout.readline()
            answer = loader.communicate("\n")[0].split()
        finally:
            loader.kill()
    if len(answer) != 3:
        raise RuntimeError("the loader of safetensors failed")
    return Sample(*map(float, answer))


def find(files, directory):
    begun, cpu = time.perf_counter(), cpu_used(resource.RUSAGE_CHILDREN)
    found = subprocess.run(["find", directory, "-type", "f"], check=True, capture_output=True).stdout.count(b"\n")
    if found != files:
        raise RuntimeError(f"{directory}: {found} files instead of {files}")
    return Sample(time.perf_counter() - begun, cpu_used(resource.RUSAGE_CHILDREN) - cpu, found)
