"""A client of the service port that knows nothing of cai: checks the evidence certificate by hand, then speaks the tunnel.

python3 tunnel_client.py HOST PORT legacy|current ALPN  < request  > answer
Written from spec/tng.md sections 3, 4 and 6 with nothing but the standard library and openssl. Exit status 1 and a line say
what is wrong. HTTP/2 is spoken in raw frames; the whole of standard input is one stream, its end the stream's.
"""

import base64
import hashlib
import json
import socket
import ssl
import struct
import subprocess
import sys


def check(condition, what):
    if not condition:
        sys.exit(f"tunnel_client: {what}")


def cbor(data, at=0):
    """One item of CBOR: value and the offset behind it. Definite lengths only."""
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info < 24:
        n = info
    else:
        size = {24: 1, 25: 2, 26: 4, 27: 8}[info]
        n = int.from_bytes(data[at:at + size], "big")
        at += size
    if major == 0:
        return n, at
    if major in (2, 3):
        value = data[at:at + n]
        check(len(value) == n, "a CBOR string is cut")
        return (value if major == 2 else value.decode()), at + n
    if major == 4:
        items = []
        for _ in range(n):
            item, at = cbor(data, at)
            items.append(item)
        return items, at
    if major == 5:
        pairs = {}
        for _ in range(n):
            key, at = cbor(data, at)
            pairs[key], at = cbor(data, at)
        return pairs, at
    if major == 6:
        item, at = cbor(data, at)
        return (n, item), at
    check((major, n) == (7, 22), "an unexpected item of CBOR")
    return None, at


def der_value(der, at):
    """Content of the DER element at `at`."""
    length = der[at + 1]
    at += 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[at:at + size], "big")
        at += size
    return der[at:at + length]


def openssl(*arguments, data):
    return subprocess.run(["openssl", *arguments], input=data, check=True, capture_output=True).stdout


def check_certificate(der, expected):
    pem = openssl("x509", "-inform", "DER", data=der)
    spki = openssl("pkey", "-pubin", "-outform", "DER", data=openssl("x509", "-noout", "-pubkey", data=pem))
    check(len(spki) == 91, "the key is not P-256")
    # OID 2.23.133.5.4.9, then the OCTET STRING.
    oid = bytes.fromhex("060667810505 0409")
    check(der.count(oid) == 1, "there is not one evidence extension")
    blob = der_value(der, der.index(oid) + len(oid))
    (tag, (inner, claims)), end = cbor(blob)
    check((tag, end) == (0xC0C000, len(blob)), "the blob is not evidence")
    inner, end = cbor(inner)
    check(inner["aa_runtime_data_hash_algo"] == 7, "the runtime data is not hashed with SHA-384")
    pubkey_hash = bytes.fromhex("82015820") + hashlib.sha256(spki).digest()
    runtime = inner["aa_runtime_data"]
    if expected == "legacy":
        check(claims == b"\xa1\x6bpubkey-hash\x58\x24" + pubkey_hash, "the claims buffer does not bind the key")
        raw = base64.urlsafe_b64encode(hashlib.sha256(claims).digest()).decode().rstrip("=")
        check(runtime == '{"rats-rs.raw_runtime_data":"%s"}' % raw, "the runtime data does not bind the claims")
        check("aa_additional_evidence" not in inner, "legacy evidence has additional evidence")
    else:
        check(claims == b"", "the current format has a claims buffer")
        members = json.loads(runtime)
        check(members["pubkey-hash"] == base64.b64encode(pubkey_hash).decode(), "the runtime data does not bind the key")
        canonical = json.dumps(members, sort_keys=True, separators=(",", ":"))
        check(runtime == canonical, "the runtime data is not canonical JSON")
    evidence = json.loads(inner["aa_evidence"])
    check(inner["tee_type"] == "sample", "the TEE is not sample")
    report_data = base64.b64decode(evidence["report_data"])
    check(report_data == hashlib.sha384(runtime.encode()).digest(), "the evidence does not bind the runtime data")


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8


def exactly(line, n):
    data = b""
    while len(data) < n:
        more = line.recv(n - len(data))
        check(more, "the tunnel ended early")
        data += more
    return data


def http2(line, request):
    # HPACK literals without indexing: `:method` is name 2, `:authority` name 1 of the static table.
    headers = b"\x02\x07CONNECT" + b"\x01\x0ctng.internal"
    line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + frame(HEADERS, 4, 1, headers))
    answer, answered, window = b"", False, 65535
    check(len(request) <= window, "the request does not fit the first window")
    while True:
        head = exactly(line, 9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        payload = exactly(line, length)
        if kind == SETTINGS and not flags & 1:
            line.sendall(frame(SETTINGS, 1, 0))
        elif kind == PING and not flags & 1:
            line.sendall(frame(PING, 1, 0, payload))
        elif kind == HEADERS:
            # Exactly :status 200, entry 8 of the static table.
            check(payload[:1] == b"\x88" and not flags & 1, f"the answer to CONNECT is {payload!r}")
            answered = True
            line.sendall(b"".join(frame(DATA, 0, 1, request[at:at + 16384]) for at in range(0, len(request), 16384)))
            line.sendall(frame(DATA, 1, 1))
        elif kind == DATA:
            check(answered, "bytes came before the answer to CONNECT")
            answer += payload
            if payload:
                grant = struct.pack(">I", len(payload))
                line.sendall(frame(WINDOW_UPDATE, 0, 0, grant) + frame(WINDOW_UPDATE, 0, 1, grant))
            if flags & 1:
                return answer
        else:
            check(kind not in (RST_STREAM, GOAWAY), f"the tunnel was broken off by frame {kind}: {payload!r}")


def main():
    host, port, expected, alpn = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([alpn])
    line = context.wrap_socket(socket.create_connection((host, int(port)), 30), server_hostname="tng.internal")
    check(line.selected_alpn_protocol() == alpn, f"ALPN {alpn} was not taken")
    check_certificate(line.getpeercert(True), expected)
    sys.stdout.buffer.write(http2(line, sys.stdin.buffer.read()))


main()
