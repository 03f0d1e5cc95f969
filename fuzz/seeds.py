"""Write a small seed corpus for every fuzz target: python3 fuzz/seeds.py OUT [VECTORS]

Made here or taken from this project's own files. VECTORS is a directory of other people's recordings (real quotes, event
logs, GPU reports); where it exists they are used from there, and never copied into the tree.
"""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1])
VECTORS = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None


def seed(target, name, data):
    if isinstance(data, (dict, list)):
        data = json.dumps(data)
    if isinstance(data, str):
        data = data.encode()
    directory = OUT / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def kbs():
    vectors = json.loads((ROOT / "tests/vectors/kbs-vectors.json").read_text())
    for name, value in vectors.items():
        if isinstance(value, dict) and "protected" in value:
            seed("kbs_jwe", name, value)
    recorded = json.loads((ROOT / "tests/vectors/kbs-exchange-0.4.0.json").read_text())
    for index, step in enumerate(recorded):
        seed("kbs_messages", f"recorded-{index}", step["resp_body"])
    seed("kbs_messages", "hash", {"nonce": "A" * 44, "extra-params": {"selected-hash-algorithm": "sha384"}})
    seed("kbs_messages", "uri", "kbs:///default/aliyun/model-decryption-key")
    seed("kbs_messages", "old-mismatch", {
        "type": "https://github.com/confidential-containers/kbs/errors/ProtocolVersion",
        "detail": "KBS Client Protocol Version Mismatch: expected version: <=0.1.0, requested version: 0.4.0"})


def helper():
    for verb in ["mount", "readahead", "unmount", "event-logs", "gpu-ready", "gpu-not-ready"]:
        seed("helper_packet", verb, {"verb": verb})
    for verb, length in [("tsm-quote", 64), ("tdx-report", 64), ("library-quote", 64), ("gpu-evidence", 32)]:
        seed("helper_packet", verb, {"verb": verb, "data": "04" * length})
    seed("helper_packet", "done", {"reply": "done", "text": "mounted"})
    seed("helper_packet", "refused", {"reply": "refused", "code": "fuse.device", "text": "no", "hint": "modprobe fuse"})
    seed("helper_packet", "logs", {"ccel": "AAEC", "aael": None})
    gpu = {"uuid": "GPU-1", "name": "H20", "arch": "HOPPER", "vbios_version": "96", "report": "AAEC",
           "attestation_chain": "", "device_chain": ""}
    seed("helper_packet", "gpus", {"driver_version": "550", "cc_enabled": True, "dev_tools": False, "production": True,
                                   "gpus": [gpu]})


def files():
    seed("gocryptfs_conf", "conf", (ROOT / "tests/vectors/gocryptfs.conf").read_bytes())
    env = (ROOT / "etc/cai/cai.env").read_text()
    seed("config_env", "set", "\n".join(line.lstrip("#") for line in env.splitlines() if "=" in line and " " not in line))
    toml = (ROOT / "etc/cai/cai.toml").read_text()
    seed("config_toml", "shipped", toml)
    lines = (line.lstrip("#") for line in toml.splitlines())
    seed("config_toml", "set", "\n".join(line for line in lines if line.startswith("[") or " = " in line))


kbs()
helper()
files()
