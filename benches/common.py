"""What the benches share: daemons mounted and ended again, what /proc says of them, caches.

Imported by the scripts beside it; stdlib only.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHUNK = 1 << 20
GB = 1e9
TICK = os.sysconf("SC_CLK_TCK")


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def stat_of(pid):
    """The fields of /proc/PID/stat from the state (the third) on, proc(5); None when the process is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def descendants(pid):
    """Its children and theirs."""
    parents = {int(path.name): stat_of(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = [pid]
    for parent in found:
        found += [child for child, fields in parents.items() if fields and int(fields[1]) == parent]
    return found[1:]


def cpu_of(pid):
    """User and system seconds of a process with all its threads and its children, the ended ones too."""
    every = filter(None, map(stat_of, [pid, *descendants(pid)]))
    return sum(int(ticks) for fields in every for ticks in fields[11:15]) / TICK


def memory_of(pid, field):
    """A field of /proc/PID/status, VmHWM or VmRSS, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field}")


def cpu_used(who):
    """User and system seconds of resource.RUSAGE_SELF or resource.RUSAGE_CHILDREN."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def wait_for(condition, what, process=None, limit=120):
    deadline = time.monotonic() + limit
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"waiting for {what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {limit} s for {what}")
        time.sleep(0.01)


def read_all(directory):
    """Read every file sequentially, 1 MiB at a time; bytes."""
    total, buffer = 0, bytearray(CHUNK)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
    return total


@contextlib.contextmanager
def mounted(command, point, announced=False):
    """A FUSE daemon in the foreground, mounted at point; yields its process and the file with what it says.

    It is ready when something is mounted, and with `announced` when it has said so too: it may still set things up before.
    Ctrl-C does not reach it, so that it is ended here and nowhere else.
    """
    point.mkdir()
    with tempfile.NamedTemporaryFile(prefix="cai-bench.") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        said = Path(log.name)
        try:
            wait_for(lambda: os.path.ismount(point) and (said.stat().st_size or not announced), f"{command[0]} to mount", process)
            yield process, said
        except BaseException:
            print(said.read_text(errors="replace"), end="", file=sys.stderr)
            raise
        finally:
            try:
                end(process)
            finally:
                process.terminate()
                while subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL).returncode == 0:
                    pass
                point.rmdir()


def end(process):
    """SIGTERM; what is left after half a minute is killed, and so are its children 5 s later."""
    family = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while left := [pid for pid in family if (stat_of(pid) or "Z")[0] != "Z"]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"{process.args[0]} left processes behind: {left}, killed now")
        time.sleep(0.01)
