"""Stand-in Trustee and OSS, a private system bus, and `cai run` between them, for the benches.

Imported by the scripts beside it; stdlib only. Needs root.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from common import wait_for


def ensure_user(cleanup):
    """The daemon's user, made and removed where it is missing."""
    if subprocess.run(["id", "cai"], capture_output=True).returncode != 0:
        subprocess.run(["useradd", "--system", "--no-create-home", "cai"], check=True)
        cleanup.callback(subprocess.run, ["userdel", "cai"], check=True)


@contextlib.contextmanager
def workplace():
    """A directory that the daemon's user can pass, a password file in it, and a stack of what is to be undone at the end."""
    with tempfile.TemporaryDirectory(prefix="cai-bench.") as directory, contextlib.ExitStack() as cleanup:
        work = Path(directory)
        work.chmod(0o711)
        ensure_user(cleanup)
        password = work / "password"
        password.write_text("bench password\n")
        yield work, password, cleanup


def sample_model(binaries, work, password, mib, name="cipher"):
    """A sample model of `mib` MiB, encrypted, in `name` below `work`; the plaintext is gone."""
    plain, cipher = work / "plain", work / name
    subprocess.run([binaries / "cai-sandbox", "sample-model", "--mib", str(mib), plain], check=True)
    command = [binaries / "cai", "encrypt", plain, cipher, "--passfile", password]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.rmtree(plain)
    return cipher


def end(process):
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)


def start_bus(work, stack):
    """A system bus of one's own, at `bus` in `work`; the environment in which programs find it."""
    bus = work / "bus"
    (work / "bus.conf").write_text(
        f"<busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>'
        '<allow receive_sender="*"/></policy></busconfig>'
    )
    daemon = subprocess.Popen(["dbus-daemon", f"--config-file={work}/bus.conf", "--nofork", "--nosyslog"])
    stack.callback(end, daemon)
    wait_for(bus.exists, "the bus", daemon)
    return {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}


class Agent:
    """`cai run` behind the words of `prefix`; its log is `agent.log` in `work`."""

    def __init__(self, binaries, root, work, environment, prefix=()):
        self.path, self.log = work / "notify", work / "agent.log"
        self.path.unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.path))
        self.path.chmod(0o666)
        self.notify.settimeout(60)
        command = [*prefix, str(binaries / "cai"), "--root", str(root), "run"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, env={**environment, "NOTIFY_SOCKET": str(self.path)}, stderr=log)

    def ready(self):
        """Wait for READY=1."""
        while b"READY=1" not in self.notify.recv(4096):
            pass
        # Nobody reads its later notifications, and a full socket would hold it up.
        self.path.unlink()

    def end(self):
        self.notify.close()
        if self.process.poll() is None:
            end(self.process)


class Stand:
    """The stand-ins, on loopback or at `address` of a network namespace."""

    def __init__(self, binaries, work, password, namespace=None, address="127.0.0.1"):
        self.binaries, self.work, self.password = binaries, work, password
        self.prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self.address = address
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        (self.work / "access-key").write_text("bench-secret")
        command = [
            *self.prefix, self.binaries / "cai-sandbox", "serve", "--state-dir", self.work / "oss", "--bucket", "conf-ai",
            "--region", "cn-beijing", "--access-key-id", "bench", "--access-key-secret-file", self.work / "access-key",
            "--resource", f"default/aliyun/model-decryption-key={self.password}", "--allow-anonymous-read",
            "--listen", f"{self.address}:0", "--oss-listen", f"{self.address}:0",
        ]  # fmt: skip
        log = self.stack.enter_context(open(self.work / "sandbox.log", "wb"))
        sandbox = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=log)
        self.stack.callback(end, sandbox)
        self.addresses = json.loads(sandbox.stdout.readline())
        self.environment = start_bus(self.work, self.stack)
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def configure(self, root, name, endpoint=None, toml="", env=""):
        """Configuration below `root` for the model at `name`, mounted at /tmp/model below it."""
        directory = root / "etc/cai"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cai.env").write_text(
            f"TRUSTEE_URL={self.addresses['kbs']}\nMODEL_KEY_ID=kbs:///default/aliyun/model-decryption-key\n"
            f"MODEL_OSS_BUCKET_PATH=conf-ai:/{name}/\nMODEL_OSS_ENDPOINT={endpoint or self.addresses['oss']}\n"
            "MODEL_OSS_REGION=cn-beijing\nMODEL_OSS_ACCESS_KEY_ID=bench\nMODEL_OSS_SECRET_ACCESS_KEY=bench-secret\n"
            f"MODEL_MOUNT_POINT=/tmp/model\n{env}"
        )
        (directory / "cai.env").chmod(0o600)
        (directory / "cai.toml").write_text(f'[attest]\ntee = "sample"\n{toml}')

    @contextlib.contextmanager
    def agent(self, root):
        """`cai run` from READY=1 to its end."""
        agent = Agent(self.binaries, root, self.work, self.environment)
        try:
            agent.ready()
            yield agent.process
        finally:
            agent.end()

    def status(self):
        """What `cai status --json` says."""
        command = [str(self.binaries / "cai"), "status", "--json"]
        return json.loads(subprocess.run(command, env=self.environment, check=True, capture_output=True).stdout)
