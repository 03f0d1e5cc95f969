"""Write a small seed corpus for every fuzz target: python3 fuzz/seeds.py OUT [VECTORS]

Made here or taken from this project's own files. VECTORS is a directory of other people's recordings (real quotes, event
logs, GPU reports); where it exists they are used from there, and never copied into the tree.
"""

import base64
import json
import pathlib
import struct
import subprocess
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
    for index in [0, 1, 2]:
        seed("kbs_refusal", f"recorded-{index}", struct.pack("<H", 401) + recorded[index]["resp_body"].encode())
    seed("kbs_refusal", "gateway", struct.pack("<H", 502) + b'{"error":"upstream"}')
    seed("kbs_refusal", "html", struct.pack("<H", 404) + b"<html>404</html>")
    token = json.loads(recorded[2]["resp_body"])["token"]
    seed("kbs_token", "recorded", token)
    seed("kbs_token", "unbound", ".".join([token.split(".")[0], "eyJleHAiOjE3OTUzNDEzODR9", "c2ln"]))
    chain = json.dumps({"alg": "ES256", "jwk": {"x5c": ["MIIB", "MIIB"]}}).encode()
    seed("kbs_token", "chain", base64.urlsafe_b64encode(chain).decode().rstrip("=") + ".e30.c2ln")
    cookie = next(value for name, value in recorded[1]["resp_headers"] if name == "set-cookie")
    seed("kbs_cookies", "recorded", cookie + "\nalb=a1b2; Path=/; HttpOnly")
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
    seed("helper_packet", "gpus", gpu_reports(b"\0\1\2", ""))


def gpu_reports(report, chain):
    gpu = {"uuid": "GPU-1", "name": "NVIDIA H100", "arch": "HOPPER", "vbios_version": "96.00.74.00.1a",
           "report": base64.b64encode(report).decode(), "attestation_chain": chain, "device_chain": chain}
    return {"driver_version": "550.90.07", "cc_enabled": True, "dev_tools": False, "production": True,
            "protected_pcie": False, "gpus": [gpu]}


def gpu():
    measurement = struct.pack("<BBHBH", 1, 1, 51, 0, 48) + b"\x22" * 48
    opaque = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in [
        (3, b"550.90.07\0"), (6, bytes([0, 0x74, 0, 0x96, 0x1A, 0, 0, 0])), (20, b"\x33" * 48)])
    made = (bytes([0x11, 0xE0, 1, 0xFF]) + bytes([7] * 32) + b"\0"
            + bytes([0x11, 0x60, 0, 0, 1]) + struct.pack("<I", len(measurement))[:3] + measurement
            + b"\x44" * 32 + struct.pack("<H", len(opaque)) + opaque + b"\x55" * 96)
    seed("spdm_report", "made", made)
    seed("spdm_report", "padded", made + bytes(4))
    seed("gpu_evidence", "made", gpu_reports(made, ""))
    if VECTORS and (VECTORS / "nvidia").is_dir():
        root = (VECTORS / "nvidia/nvidia_device_root.pem").read_text()
        seed("gpu_evidence", "root", root)
        for report, chain in [("hopperAttestationReport.txt", "hopper_cert_chain_case1.txt"),
                              ("hopper_coco_report1.txt", "hopper_coco_certs1.txt")]:
            recorded = bytes.fromhex("".join((VECTORS / "nvidia" / report).read_text().split()))
            pem = (VECTORS / "nvidia" / chain).read_text()
            seed("spdm_report", report, recorded)
            seed("gpu_evidence", chain, pem)
            seed("gpu_evidence", report, gpu_reports(recorded, pem))


def files():
    seed("gocryptfs_conf", "conf", (ROOT / "tests/vectors/gocryptfs.conf").read_bytes())
    env = (ROOT / "etc/cai/cai.env").read_text()
    good = ("TRUSTEE_URL=https://trustee.example.com\nMODEL_KEY_ID=kbs:///default/aliyun/key\n"
            "MODEL_OSS_BUCKET_PATH=conf-ai:/model/\nMODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n"
            "MODEL_OSS_ACCESS_KEY_ID=LTAI5tExample\nMODEL_MOUNT_POINT=/tmp/model\n")
    seed("config_env", "good", good)
    seed("config_env", "set", "\n".join(line.lstrip("#") for line in env.splitlines() if "=" in line and " " not in line))
    toml = (ROOT / "etc/cai/cai.toml").read_text()
    seed("config_toml", "shipped", toml)
    lines = (line.lstrip("#") for line in toml.splitlines())
    seed("config_toml", "set", "\n".join(line for line in lines if line.startswith("[") or " = " in line))


def quote(version):
    body_len = {4: 584, 5: 648}[version]
    head = struct.pack("<HHI", version, 2, 0x81) + bytes(40)
    body = bytes(range(256)) * 3
    five = struct.pack("<HI", 3, body_len) if version == 5 else b""
    signature = b"s" * 64
    return head + five + body[:body_len] + struct.pack("<I", len(signature)) + signature


def event(register, kind, data, digest=b"\x11" * 48):
    return struct.pack("<IIIH", register, kind, 1, 0x0C) + digest + struct.pack("<I", len(data)) + data


def log_header():
    spec = b"Spec ID Event03\0" + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<IHH", 1, 0x0C, 48) + b"\0"
    return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec


def tdx():
    for version in [4, 5]:
        seed("tdx_quote", f"made-{version}", quote(version))
    events = event(1, 0x80000001, b"SecureBoot") + event(2, 13, b"Kernel\0") + event(3, 13, b"grub_cmd linux quiet\0")
    seed("event_log", "made", log_header() + events + b"\xff" * 64)
    content = b"cryptpilot.alibabacloud.com load_config {}"
    agent = event(4, 6, struct.pack("<II", 0x4141454C, len(content)) + content)
    seed("event_log", "made-with-agent", log_header() + events + agent + b"\0" * 16)
    seed("agent_log", "binary", agent)
    seed("agent_log", "text", "INIT sha384/" + "0" * 96 + "\ncryptpilot.alibabacloud.com load_config {}\n")
    made = quote(4)
    answer = struct.pack("<HHIIIII", 1, 1, 1, 24 + 4 + len(made), 0, 4, len(made)) + b"kkkk" + made
    seed("qgs_answer", "message", answer)
    seed("qgs_answer", "stream", struct.pack(">I", len(answer)) + answer)
    seed("qgs_answer", "refusal", struct.pack("<HHIIIII", 1, 1, 1, 24, 0x12001, 0, 0))
    seed("qgs_answer", "conf", "# Intel\nport = 4050\n")
    if VECTORS and (VECTORS / "tdx").is_dir():
        for name in ["tdx_quote_4.dat", "tdx_quote_5.dat"]:
            seed("tdx_quote", name, (VECTORS / "tdx" / name).read_bytes())
        # The table is mostly unused space.
        seed("event_log", "recorded", (VECTORS / "tdx" / "CCEL_data").read_bytes().rstrip(b"\xff") + b"\xff" * 16)


def oss():
    page = """<?xml version="1.0"?><ListBucketResult><Name>conf-ai</Name><Prefix>m%2F</Prefix><MaxKeys>1000</MaxKeys>
<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>Cg%3D%3D</NextContinuationToken>
<Contents><Key>m%2Fgocryptfs.conf</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>"5B3C"</ETag>
<Type>Normal</Type><Size>385</Size><StorageClass>Standard</StorageClass></Contents>
<Contents><Key>m%2F</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>"D41D"</ETag><Type>Normal</Type>
<Size>0</Size><StorageClass>Standard</StorageClass></Contents></ListBucketResult>"""
    seed("oss_list", "truncated", page)
    seed("oss_list", "plain", page.replace("<EncodingType>url</EncodingType>", "").replace("true", "false").replace("%2F", "/"))


def service_port():
    vectors = json.loads((ROOT / "tests/vectors/tng-vectors.json").read_text())
    for name in ["legacy_le_2_2_6", "current_ge_2_3_0"]:
        blob = vectors[name]["extension_2_23_133_5_4_9_hex"]
        seed("ratls_evidence", name, bytes.fromhex(blob))
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256",
             "-keyout", "/dev/null", "-outform", "DER", "-subj", "/O=Inclavare Containers/CN=TNG",
             "-addext", f"2.23.133.5.4.9=DER:{blob}"],
            check=True, capture_output=True)
        seed("ratls_certificate", name, made.stdout)
    seed("gateway_plaintext", "check", "GET /health HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: probe\r\n\r\n")
    seed("gateway_plaintext", "old", "HEAD /health HTTP/1.0\r\nContent-Length: 0\r\n\r\n")

    seed("peer_wire", "hello", b"caipeer1" + bytes(range(48)) + b"\1")
    seed("peer_wire", "have", bytes([1, 0, 0, 0, 3, 0, 0, 0, 255, 1, 8]))
    seed("peer_wire", "ask", bytes([1, 0, 0, 0]) + b"".join(n.to_bytes(8, "little") for n in (2, 0, 4096)) + b"\0")
    seed("peer_wire", "answer", bytes(33))

    def token(claims):
        segment = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
        return f'{segment({"alg": "ES256"})}.{segment(claims)}.c2ln'

    data = {"pubkey-hash": "ggFY", "model-identity": "aa"}
    cpu = {"ear.status": "affirming", "ear.appraisal-policy-id": "default",
           "ear.veraison.annotated-evidence": {"runtime_data_claims": data}}
    seed("ratls_token", "ear", token({"exp": 1795341384, "submods": {"cpu0": cpu}}))
    seed("ratls_token", "simple", token({"exp": 1795341384, "evaluation-reports": [{"policy-id": "default"}],
                                         "customized_claims": {"runtime_data": data}}))


kbs()
helper()
files()
gpu()
tdx()
oss()
service_port()
