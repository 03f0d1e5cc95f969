"""A stand-in attestation agent for the real `tng`: ttrpc on a unix socket, the sample TEE. Usage: attestation_agent.py SOCKET [LOG_LEN]

Written from tng.md 4.5: a frame is a header of 10 bytes (length and stream id, 32 bits big endian; type; flags) and a
protobuf message: Request{1 service, 2 method, 3 payload}, Response{1 Status{1 code, 2 message}, 2 payload}. LOG_LEN
characters of event log make the evidence long.
"""

import base64
import json
import os
import socketserver
import struct
import sys

REQUEST, RESPONSE = 1, 2
UNIMPLEMENTED = 12


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def fields(data):
    """Number and value of each field; byte strings and numbers only."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        value, at = varint(data, at)
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        yield key >> 3, value


def encode_varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, data):
    return encode_varint(number << 3 | 2) + encode_varint(len(data)) + data


def evidence(runtime_data, log_len):
    return json.dumps(
        {
            "svn": "1",
            "report_data": base64.b64encode(runtime_data).decode(),
            "measure_register": "0" * 64,
            "cc_eventlog": "x" * log_len if log_len else None,
        }
    ).encode()


class Agent(socketserver.BaseRequestHandler):
    def exactly(self, length):
        data = b""
        while len(data) < length:
            more = self.request.recv(length - len(data))
            if not more:
                return None
            data += more
        return data

    def handle(self):
        while header := self.exactly(10):
            length, stream, kind, _ = struct.unpack(">IIBB", header)
            message = dict(fields(self.exactly(length)))
            if kind != REQUEST or message[1] != b"attestation_agent.AttestationAgentService":
                return
            reply = self.reply(message[2].decode(), message.get(3, b""))
            self.request.sendall(struct.pack(">IIBB", len(reply), stream, RESPONSE, 0) + reply)

    def reply(self, method, payload):
        arguments = dict(fields(payload))
        if method == "GetTeeType":
            return field(2, field(1, b"sample"))
        if method == "GetEvidence":
            return field(2, field(1, evidence(arguments[1], self.server.log_len)))
        return field(1, b"\x08" + encode_varint(UNIMPLEMENTED) + field(2, method.encode()))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    path = sys.argv[1]
    with Server(path, Agent) as server:
        server.log_len = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        print("ready", flush=True)
        # Ends with whoever started it.
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
    os.unlink(path)
