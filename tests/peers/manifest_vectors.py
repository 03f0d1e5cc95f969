#!/usr/bin/env python3
"""Writes tests/vectors/manifest.json: a manifest made without a line of cai, from the layout in src/manifest/mod.rs.

BLAKE3 is written out below from its specification (it takes half a minute); Ed25519 is openssl's. Run it only to see that it
still gives the frozen file: `python3 tests/peers/manifest_vectors.py | diff - tests/vectors/manifest.json`.
"""

import hashlib
import json
import struct
import subprocess
import tempfile
from base64 import b64encode
from pathlib import Path

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MASK = 0xFFFFFFFF
MIB8 = 8 << 20


def compress(chaining, words, counter, length, flags):
    s = [*chaining, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                                          (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))):
            for x, r, q in ((words[2 * i], 16, 12), (words[2 * i + 1], 8, 7)):
                s[a] = (s[a] + s[b] + x) & MASK
                t = s[d] ^ s[a]
                s[d] = (t >> r | t << 32 - r) & MASK
                s[c] = (s[c] + s[d]) & MASK
                t = s[b] ^ s[c]
                s[b] = (t >> q | t << 32 - q) & MASK
        words = [words[i] for i in ORDER]
    return [s[i] ^ s[i + 8] for i in range(8)]


def leaf(data, counter, root):
    value, blocks = list(IV), [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        flags = (CHUNK_START if i == 0 else 0) | ((CHUNK_END | root) if i == len(blocks) - 1 else 0)
        value = compress(value, struct.unpack("<16I", block.ljust(64, b"\0")), counter, len(block), flags)
    return value


def tree(data, counter=0, root=0):
    """Chaining value of the subtree that begins at 1 KiB chunk `counter`."""
    if len(data) <= 1024:
        return leaf(data, counter, root)
    left = 1024
    while left * 2 < len(data):
        left *= 2
    both = tree(data[:left], counter) + tree(data[left:], counter + left // 1024)
    return compress(list(IV), both, 0, 64, PARENT | root)


def as_bytes(value):
    return struct.pack("<8I", *value)


def content(length):
    return bytes(i % 251 for i in range(251)) * (length // 251 + 1)


def hashes(data):
    if len(data) <= MIB8:
        return [as_bytes(tree(data, root=ROOT))]
    return [as_bytes(tree(data[i:i + MIB8], i // 1024)) for i in range(0, len(data), MIB8)]


def text(value):
    return struct.pack(">H", len(value.encode())) + value.encode()


def main():
    assert as_bytes(tree(b"", root=ROOT)).hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    seed = bytes(range(32))
    pem = b64encode(bytes.fromhex("302e020100300506032b657004220420") + seed).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n"
    with tempfile.TemporaryDirectory() as directory:
        key, message, signature = (Path(directory) / name for name in ("key", "message", "signature"))
        key.write_text(pem)
        public = subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"], check=True,
                                capture_output=True).stdout[-32:]
        licence = {"id": "LD-0001", "licensee": "Example GmbH", "policy": "default", "text": "for tests\nonly",
                   "not_before": 1767225600, "not_after": 1798761599}
        section = b"".join(text(licence[name]) for name in ("id", "licensee", "policy", "text"))
        section += struct.pack(">QQ", licence["not_before"], licence["not_after"])
        lengths = {"a-b": 0, "a/b": 1, "gocryptfs.conf": 1025, "gocryptfs.diriv": 16, "weights": MIB8 + 3000}
        objects = [(path, length, hashes(content(length)[:length])) for path, length in sorted(lengths.items())]
        listed = struct.pack(">I", len(objects))
        for path, length, values in objects:
            listed += text(path) + struct.pack(">Q", length) + b"".join(values)

        def signed(fields):
            body = b"cai-manifest 1\r\n" + public + struct.pack(">QH", 7, len(fields))
            body += b"".join(struct.pack(">HI", tag, len(data)) + data for tag, data in fields) + listed
            identity = hashlib.sha256(body).digest()
            message.write_bytes(b"cai-manifest 1 signature\0" + identity)
            sign = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", message, "-out", signature]
            subprocess.run(sign, check=True)
            return identity.hex(), (body + signature.read_bytes()).hex()

        identity, manifest = signed([(0x8001, section)])
        roots = {path: as_bytes(tree(content(length)[:length], root=ROOT)).hex() for path, length in lengths.items()}
        print(json.dumps({
            "private_key": pem,
            "public_key": b64encode(public).decode(),
            "revision": 7,
            "licence": licence,
            "content": "byte i of every object is i % 251",
            "objects": [{"path": path, "len": length, "hashes": [value.hex() for value in values], "root": roots[path]}
                        for path, length, values in objects],
            "identity": identity,
            "manifest": manifest,
            "with_a_field_to_pass_over": signed([(0x0002, b"note"), (0x8001, section)])[1],
            "with_a_field_that_must_be_known": signed([(0x8001, section), (0x8002, b"note")])[1],
        }, indent=1))


if __name__ == "__main__":
    main()
