#!/usr/bin/env python3
"""`cai upload` and `cai download` against Alibaba's own Python SDK (oss2), in the same run.

One directory of a large and many small files of random bytes, to and from the stand-in OSS on loopback. oss2 goes through the
files one by one, as its users do, with 8 threads and parts of 8 MiB for the large one; cai with its defaults. Rounds are
interleaved, the page cache is warm, every round has a prefix of its own. CPU seconds are those of the client alone.

Needs `.tools/venv` with tests/peers/requirements.txt. Prints Markdown. Leaves nothing behind. Never a gate: times depend on
the machine.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import GB, cpu_used

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent / ".tools/venv/bin/python"


def measure(command):
    begun, cpu = time.perf_counter(), cpu_used(resource.RUSAGE_CHILDREN)
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - begun, cpu_used(resource.RUSAGE_CHILDREN) - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path, help="directory with cai and cai-sandbox")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--small", type=int, default=200, help="how many files of 4 KiB")
    options = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit("no .tools/venv with tests/peers/requirements.txt: run scripts/setup.sh test first")
    binaries = options.bin.resolve()
    with tempfile.TemporaryDirectory(prefix="cai-bench.") as directory:
        work = Path(directory)
        source = work / "source"
        source.mkdir()
        for number in range(options.small):
            (source / f"small-{number:04}").write_bytes(os.urandom(4096))
        (source / "gocryptfs.conf").write_bytes(os.urandom(400))
        with open(source / "shard", "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        size = sum(path.stat().st_size for path in source.iterdir())
        secret = work / "secret"
        secret.write_text("bench-secret")
        command = [binaries / "cai-sandbox", "serve", "--state-dir", work / "oss", "--bucket", "conf-ai", "--region", "cn-beijing",
                   "--access-key-id", "bench", "--access-key-secret-file", secret, "--exit-with-stdin"]  # fmt: skip
        with open(work / "log", "wb") as log:
            sandbox = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            endpoint = json.loads(sandbox.stdout.readline())["oss"]
            (work / "root").mkdir()
            env = work / "env"
            env.write_text(
                f"MODEL_OSS_BUCKET_PATH=conf-ai:/x/\nMODEL_OSS_ENDPOINT={endpoint}\nMODEL_OSS_REGION=cn-beijing\n"
                "MODEL_OSS_ACCESS_KEY_ID=bench\nMODEL_OSS_SECRET_ACCESS_KEY=bench-secret\n"
            )
            env.chmod(0o600)

            def cai(verb, prefix, there):
                place = ["--config", env, "--bucket-path", f"conf-ai:/{prefix}"]
                return measure([binaries / "cai", "--root", work / "root", verb, there, *place])

            def oss2(verb, prefix, there):
                return measure([PYTHON, HERE.parent / "tests/peers/oss2_copy.py", verb, endpoint, "bench", secret, prefix, there])

            runs = {"cai upload": [], "oss2 put": [], "cai download": [], "oss2 get": []}
            for number in range(options.rounds):
                runs["oss2 put"].append(oss2("put", f"oss2-{number}/", source))
                runs["cai upload"].append(cai("upload", f"cai-{number}/", source))
                for name, verb, tool in (("oss2 get", "get", oss2), ("cai download", "download", cai)):
                    there = work / "there"
                    runs[name].append(tool(verb, f"cai-{number}/", there))
                    same = subprocess.run(["diff", "-rq", source, there], check=False).returncode
                    if same != 0:
                        raise SystemExit(f"{name} made another directory")
                    shutil.rmtree(there)
        finally:
            sandbox.stdin.close()
            sandbox.wait(timeout=30)
    print(f"\n{options.mib} MiB and {options.small} files of 4 KiB, {options.rounds} rounds, {os.cpu_count()} cores, loopback:\n")
    print("| | GB/s (median) | CPU s/GB |")
    print("|---|---|---|")
    for name, measured in runs.items():
        rate = statistics.median(size / GB / run[0] for run in measured)
        cpu = statistics.median(run[1] / (size / GB) for run in measured)
        print(f"| {name} | {rate:.2f} | {cpu:.2f} |")
    for ours, theirs in (("cai upload", "oss2 put"), ("cai download", "oss2 get")):
        ratios = [slow[0] / fast[0] for slow, fast in zip(runs[theirs], runs[ours])]
        print(f"\n{ours} against {theirs}: median {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
