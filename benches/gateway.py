#!/usr/bin/env python3
"""The service port beside the real `tng` 2.12 on both ends, in the same run: cai's daemon and `cai connect`, tng's egress and ingress.

Both pairs are attested with the sample TEE (cai: stand-in attestation service; tng: its built-in one), pass a port on to one nginx, and
are asked through a fixed mapping, in both transports: `raw` (a TLS connection for each of the application) and `multiplex` (streams of
one HTTP/2 connection). Rounds are interleaved; figures are medians, ratios medians of ratios.

1. Requests of a small answer over kept connections: rate, latency at p50 and p99 beside nginx asked directly, CPU.
2. The same with a new connection for each request: in `raw` a handshake each. tng's ingress verifies each one; `cai connect` keeps a
   verdict as long as its token lives, which is part of what is measured.
3. One large answer: GB/s, CPU seconds per GB of each end.
4. Memory of each end for every idle connection.

Needs root, /dev/fuse, dbus-daemon, nginx, wrk, curl and what `scripts/setup.sh test` fetches. Prints Markdown. Leaves nothing behind.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import GB, cpu_of, memory_of, wait_for
from stand import Stand, workplace

HERE = Path(__file__).resolve().parent.parent
TNG = HERE / ".tools/tng/2.12.0/tng"
# Below the 200 streams that tng puts into a tunnel.
IDLE = 150


def free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True


def started(cleanup, command, work, name, port):
    log = cleanup.enter_context(open(work / f"{name}.log", "wb"))
    process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work)

    def end():
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)

    cleanup.callback(end)
    wait_for(lambda: answers(port), f"{name} to listen", process)
    return process


def nginx(cleanup, work, mib):
    port, big = free(), work / "www/big"
    big.parent.mkdir()
    with open(big, "wb") as file:
        file.truncate(mib << 20)
    (work / "www/small").write_text("ok\n")
    config = work / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {work}/nginx.pid; error_log stderr; user root; events {{ worker_connections 4096; }} "
        f"http {{ access_log off; sendfile on; keepalive_requests 1000000; server {{ listen 127.0.0.1:{port} backlog=1024; root {work}/www; }} }}"
    )
    started(cleanup, ["nginx", "-c", config, "-p", work, "-e", "stderr"], work, "nginx", port)
    return port


def place(port):
    return {"host": "127.0.0.1", "port": port}


def tng_pair(cleanup, work, backend, multiplex):
    """Processes of server and client, and the client's port."""
    name, server, client = "multiplex" if multiplex else "raw", free(), free()
    agent = work / f"aa-{name}.sock"
    agent.unlink(missing_ok=True)
    command = [sys.executable, HERE / "tests/peers/attestation_agent.py", agent]
    # It ends with its standard input.
    script = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    cleanup.callback(script.wait)
    cleanup.callback(script.terminate)
    wait_for(agent.exists, "the attestation agent", script)
    transport = {"rats_tls": {"multiplex": multiplex}}
    egress = {"mapping": {"in": place(server), "out": place(backend)}, "attest": {"aa_addr": f"unix://{agent}"}, **transport}
    verify = {"as_type": "builtin", "attestation_policy": {"type": "trust_all"}}
    ingress = {"mapping": {"in": place(client), "out": place(server)}, "verify": verify, **transport}
    launch = lambda config: [TNG, "launch", "--config-content", json.dumps(config)]
    first = started(cleanup, launch({"add_egress": [egress]}), work, f"egress-{name}", server)
    second = started(cleanup, launch({"add_ingress": [ingress]}), work, f"ingress-{name}", client)
    return first, second, client


def cai_client(cleanup, stand, work, server, multiplex):
    name, client = "multiplex" if multiplex else "raw", free()
    command = [
        stand.binaries / "cai", "connect", "--listen", f"127.0.0.1:{client}", "--to", f"127.0.0.1:{server}", "--mode", name,
        "--as-url", stand.addresses["kbs"] + "/as", "--as-unauthenticated",
    ]  # fmt: skip
    return started(cleanup, command, work, f"connect-{name}", client), client


def wrk(port, connections, seconds, *more):
    """Requests per second, and microseconds at p50 and p99."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *more, f"http://127.0.0.1:{port}/small"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if re.search(r"Non-2xx|Socket errors: .*[1-9]", text):
        raise SystemExit(f"errors through port {port}:\n{text}")
    unit = {"us": 1, "ms": 1e3, "s": 1e6}
    at = lambda quantile: (lambda found: float(found[1]) * unit[found[2]])(re.search(rf"{quantile}%\s+([\d.]+)(us|ms|s)", text))
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), at(50), at(99)


def used(processes, work):
    """What `work` gives, and CPU seconds of each process meanwhile."""
    before = [cpu_of(process.pid) for process in processes]
    result = work()
    return result, [cpu_of(process.pid) - cpu for process, cpu in zip(processes, before)]


def large(port, size):
    begun = time.perf_counter()
    got = subprocess.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{size_download}", f"http://127.0.0.1:{port}/big"], check=True, capture_output=True)
    if int(got.stdout) != size:
        raise SystemExit(f"{got.stdout} bytes of {size}")
    return size / GB / (time.perf_counter() - begun)


def idle(pair, port):
    """KiB of each end for a connection that says nothing after its first answer."""
    wrk(port, 16, 1)
    resident = lambda: [memory_of(process.pid, "VmRSS") * 1024 for process in pair]
    before, open_ones = resident(), []
    for _ in range(IDLE):
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
        if not connection.recv(4096):
            raise SystemExit(f"a connection through port {port} was refused")
        open_ones.append(connection)
    grown = [(now - then) / IDLE for now, then in zip(resident(), before)]
    for connection in open_ones:
        connection.close()
    return grown


def measure(pair, port, options):
    (kept, cpu) = used(pair, lambda: wrk(port, 16, options.seconds))
    requests = kept[0] * options.seconds
    (fresh, _) = used(pair, lambda: wrk(port, 8, options.seconds, "-H", "Connection: close"))
    (rate, big_cpu) = used(pair, lambda: large(port, options.mib << 20))
    size = (options.mib << 20) / GB
    return {
        "requests": kept[0], "p50": kept[1], "p99": kept[2], "cpu_request": sum(cpu) / requests * 1e6, "connections": fresh[0],
        "rate": rate, "server": big_cpu[0] / size, "client": big_cpu[1] / size,
    }  # fmt: skip


ROWS = [
    ("requests/s, 16 kept connections", "requests", "{:.0f}", True),
    ("latency p50, us", "p50", "{:.0f}", False),
    ("latency p99, us", "p99", "{:.0f}", False),
    ("CPU us a request, both ends", "cpu_request", "{:.0f}", False),
    ("requests/s, a connection each", "connections", "{:.0f}", True),
    ("large answer, GB/s", "rate", "{:.2f}", True),
    ("CPU s/GB, server", "server", "{:.2f}", False),
    ("CPU s/GB, client", "client", "{:.2f}", False),
]


def table(name, ours, theirs, direct):
    print(f"\n{name}:\n")
    print("| | cai | tng 2.12 | cai by tng |")
    print("|---|---|---|---|")
    for title, key, form, more_is_better in ROWS:
        middle = lambda runs: statistics.median(run[key] for run in runs)
        ratio = statistics.median(a[key] / b[key] for a, b in zip(ours, theirs))
        note = f" (direct: {form.format(direct[key])})" if key in direct else ""
        verdict = f"{ratio:.2f}x" if more_is_better else f"{ratio:.2f}"
        print(f"| {title}{note} | {form.format(middle(ours))} | {form.format(middle(theirs))} | {verdict} |")
    both = lambda run: run["server"] + run["client"]
    ratio = statistics.median(both(b) / both(a) for a, b in zip(ours, theirs))
    print(f"| GB per CPU second, both ends | {1 / statistics.median(map(both, ours)):.2f} | {1 / statistics.median(map(both, theirs)):.2f} | {ratio:.2f}x |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=4096, help="size of the large answer")
    options = parser.parse_args()
    if not TNG.exists():
        raise SystemExit("no .tools/tng: run scripts/setup.sh test first")
    binaries = options.bin.resolve()
    with workplace() as (work, password, cleanup):
        backend = nginx(cleanup, work, options.mib)
        (work / "plain").mkdir()
        (work / "plain/config.json").write_text("{}")
        run = lambda *command: subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run(binaries / "cai", "encrypt", work / "plain", work / "cipher", "--passfile", password)
        stand = cleanup.enter_context(Stand(binaries, work, password))
        root, server = work / "root", free()
        root.mkdir(mode=0o755)
        stand.configure(root, "model", toml=f'[gateway]\nlisten = "127.0.0.1:{server}"\nbackend = "127.0.0.1:{backend}"\n')
        run(binaries / "cai", "--root", root, "upload", work / "cipher")
        print(f"A port in front of one nginx on loopback, {options.rounds} rounds, {os.cpu_count()} cores for clients, both ends and nginx together:")
        memory = []
        for multiplex in (False, True):
            name = "multiplex" if multiplex else "raw"

            @contextlib.contextmanager
            def pairs():
                with contextlib.ExitStack() as ends:
                    agent = ends.enter_context(stand.agent(root))
                    connect, port = cai_client(ends, stand, work, server, multiplex)
                    egress, ingress, tng_port = tng_pair(ends, work, backend, multiplex)
                    yield {"cai": ([agent, connect], port), "tng": ([egress, ingress], tng_port)}

            with pairs() as both:
                results = {who: [] for who in both}
                for number in range(options.rounds):
                    for who in list(both) if number % 2 == 0 else list(both)[::-1]:
                        results[who].append(measure(*both[who], options))
                plain = wrk(backend, 16, options.seconds)
                direct = dict(zip(("requests", "p50", "p99"), plain)) | {"rate": large(backend, options.mib << 20)}
                table(name, results["cai"], results["tng"], direct)
            # Anew: what an allocator keeps of heavier work would hide what a connection takes.
            with pairs() as both:
                memory.append((name, idle(*both["cai"]), idle(*both["tng"])))
        print("\n| KiB for an idle connection | cai server | cai client | tng server | tng client |")
        print("|---|---|---|---|---|")
        for name, ours, theirs in memory:
            print(f"| {name} | {ours[0]:.0f} | {ours[1]:.0f} | {theirs[0]:.0f} | {theirs[1]:.0f} |")


if __name__ == "__main__":
    main()
