"""Drives a stand-in OSS with Alibaba's two official Python SDKs, so that it is judged by clients nobody here wrote.

Every cell (SDK, signature, addressing style) lists with paging, reads whole, by range and in parts, writes, uploads in parts,
deletes, and is refused with a wrong secret. One line per cell on stdout: `SDK SIGNATURE STYLE ok`, or the same with `failed
CODE`. The exit status is 0 when all cells ran; the caller compares the lines.

Tested by tests/sandbox_oss_sdk.rs. Needs tests/peers/requirements.txt.
"""

import argparse
import hashlib
import logging
import os
import socket
import sys
import tempfile
import traceback

import alibabacloud_oss_v2 as v2
import crcmod
import oss2

REGION = "cn-beijing"
BUCKET = "conf-ai"
NAMES = ["a b+c&d=é中%2F.bin", "config.json", "dir/one", "dir/two", "dir/", "empty", "z~-_.!*'()"]
BIG_LEN = 350 * 1024
PART_LEN = 100 * 1024
CRC64 = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, xorOut=0xFFFFFFFFFFFFFFFF, rev=True)


class Wrong(Exception):
    """The server answered something else than it should."""


def expect(what, got, wanted):
    if got != wanted:
        raise Wrong(f"{what}: {got!r} instead of {wanted!r}")


def content(name):
    """Deterministic bytes that differ between names; one object is empty."""
    return b"" if name == "empty" else (name * 40).encode()


def big_key(prefix):
    """Beside the prefix: a listing of `prefix/` must not show it."""
    return prefix.rstrip("/") + "-big"


def big():
    return hashlib.shake_128(b"sandbox").digest(BIG_LEN)


class Oss2:
    """PyPI oss2."""

    def __init__(self, endpoint, signature, identity):
        if identity is None:
            auth = oss2.AnonymousAuth()
        elif identity[2] is None:
            auth = oss2.make_auth(identity[0], identity[1], signature)
        else:
            auth = oss2.StsAuth(*identity, auth_version=signature)
        self.bucket = oss2.Bucket(auth, endpoint, BUCKET, region=REGION)

    @staticmethod
    def code(error):
        return error.code if isinstance(error, oss2.exceptions.OssError) else None

    def put(self, key, data):
        self.bucket.put_object(key, data)

    def list_v2(self, prefix, delimiter=""):
        return list(oss2.ObjectIteratorV2(self.bucket, prefix=prefix, delimiter=delimiter, max_keys=3))

    def names(self, prefix, delimiter=""):
        found = self.list_v2(prefix, delimiter)
        expect("version 1 listing", self.names_v1(prefix, delimiter), sorted(entry.key for entry in found))
        return sorted(entry.key for entry in found)

    def names_v1(self, prefix, delimiter):
        found = oss2.ObjectIterator(self.bucket, prefix=prefix, delimiter=delimiter, max_keys=3)
        return sorted(entry.key for entry in found)

    def head(self, key):
        head = self.bucket.head_object(key)
        return head.content_length, head.etag, head.server_crc, head.object_type

    def get(self, key, span=None, standard=False):
        headers = {"x-oss-range-behavior": "standard"} if standard else None
        answer = self.bucket.get_object(key, byte_range=span, headers=headers)
        return answer.status, answer.read()

    def get_if(self, key, name, value):
        return self.bucket.get_object(key, headers={name: value}).read()

    def upload(self, key, path):
        oss2.resumable_upload(self.bucket, key, path, multipart_threshold=1, part_size=PART_LEN, num_threads=2)

    def download(self, key, path):
        oss2.resumable_download(self.bucket, key, path, multiget_threshold=1, part_size=PART_LEN, num_threads=3)

    def abandon(self, key):
        """Starts an upload, lists it and its part, aborts it; gives what was listed."""
        upload = self.bucket.init_multipart_upload(key).upload_id
        self.bucket.upload_part(key, upload, 7, b"part")
        parts = [(part.part_number, part.size) for part in oss2.PartIterator(self.bucket, key, upload)]
        uploads = [entry.key for entry in oss2.MultipartUploadIterator(self.bucket, prefix=key)]
        self.bucket.abort_multipart_upload(key, upload)
        left = list(oss2.MultipartUploadIterator(self.bucket, prefix=key))
        return parts, uploads, left

    def delete(self, key):
        self.bucket.delete_object(key)


class OssV2:
    """PyPI alibabacloud-oss-v2."""

    def __init__(self, endpoint, signature, identity):
        config = v2.config.load_default()
        config.credentials_provider = (
            v2.credentials.AnonymousCredentialsProvider()
            if identity is None
            else v2.credentials.StaticCredentialsProvider(*identity)
        )
        config.region, config.endpoint, config.signature_version = REGION, endpoint, signature
        config.retry_max_attempts = 1
        self.client = v2.Client(config)

    @staticmethod
    def code(error):
        while error is not None:
            if isinstance(error, v2.exceptions.ServiceError):
                return error.code
            error = error.unwrap() if hasattr(error, "unwrap") else None
        return None

    def put(self, key, data):
        self.client.put_object(v2.PutObjectRequest(bucket=BUCKET, key=key, body=data))

    def names(self, prefix, delimiter=""):
        pages = self.client.list_objects_v2_paginator(limit=3)
        request = v2.ListObjectsV2Request(bucket=BUCKET, prefix=prefix, delimiter=delimiter)
        found = []
        for page in pages.iter_page(request):
            found += [entry.key for entry in page.contents or []]
            found += [entry.prefix for entry in page.common_prefixes or []]
        return sorted(found)

    def head(self, key):
        head = self.client.head_object(v2.HeadObjectRequest(bucket=BUCKET, key=key))
        return head.content_length, head.etag.strip('"'), int(head.hash_crc64), head.object_type

    def get(self, key, span=None, standard=False):
        if span is not None:
            span = f"bytes={span[0]}-{'' if span[1] is None else span[1]}"
        behaviour = "standard" if standard else None
        request = v2.GetObjectRequest(bucket=BUCKET, key=key, range_header=span, range_behavior=behaviour)
        answer = self.client.get_object(request)
        return answer.status_code, answer.body.content

    def get_if(self, key, name, value):
        name = name.lower().replace("-", "_")
        return self.client.get_object(v2.GetObjectRequest(bucket=BUCKET, key=key, **{name: value})).body.content

    def upload(self, key, path):
        uploader = self.client.uploader(part_size=PART_LEN, parallel_num=2)
        uploader.upload_file(v2.PutObjectRequest(bucket=BUCKET, key=key), path)

    def download(self, key, path):
        downloader = self.client.downloader(part_size=PART_LEN, parallel_num=3)
        downloader.download_file(v2.GetObjectRequest(bucket=BUCKET, key=key), path)

    def abandon(self, key):
        request = v2.InitiateMultipartUploadRequest(bucket=BUCKET, key=key)
        upload = self.client.initiate_multipart_upload(request).upload_id
        self.client.upload_part(
            v2.UploadPartRequest(bucket=BUCKET, key=key, upload_id=upload, part_number=7, body=b"part")
        )
        listed = self.client.list_parts(v2.ListPartsRequest(bucket=BUCKET, key=key, upload_id=upload))
        parts = [(part.part_number, part.size) for part in listed.parts]

        def uploads():
            answer = self.client.list_multipart_uploads(v2.ListMultipartUploadsRequest(bucket=BUCKET, prefix=key))
            return [entry.key for entry in answer.uploads or []]

        found = uploads()
        self.client.abort_multipart_upload(
            v2.AbortMultipartUploadRequest(bucket=BUCKET, key=key, upload_id=upload)
        )
        return parts, found, uploads()

    def delete(self, key):
        self.client.delete_object(v2.DeleteObjectRequest(bucket=BUCKET, key=key))


SDKS = {"oss2": Oss2, "oss-v2": OssV2}


def refused(sdk, what, code, act):
    try:
        act()
    except Exception as error:  # noqa: BLE001: the SDKs share no base class
        expect(what, sdk.code(error), code)
        return
    raise Wrong(f"{what}: allowed, expected {code}")


def check_reading(sdk, prefix):
    """Everything that reads, on the objects `fill` made."""
    keys = sorted(prefix + name for name in NAMES)
    expect("all keys", sdk.names(prefix), keys)
    rolled = sorted([key for key in keys if not key.startswith(prefix + "dir/")] + [prefix + "dir/"])
    expect("one level", sdk.names(prefix, "/"), rolled)
    expect("no keys", sdk.names(prefix + "absent"), [])
    for name in NAMES:
        data = content(name)
        wanted = (len(data), hashlib.md5(data).hexdigest().upper(), CRC64(data), "Normal")
        expect(f"head of {name}", sdk.head(prefix + name), wanted)
        expect(f"get of {name}", sdk.get(prefix + name), (200, data))
    key, data = prefix + NAMES[0], content(NAMES[0])
    last = len(data) - 1
    expect("range", sdk.get(key, (5, 9)), (206, data[5:10]))
    expect("open range", sdk.get(key, (5, None)), (206, data[5:]))
    expect("range over the end", sdk.get(key, (5, last + 1)), (200, data))
    expect("standard range over the end", sdk.get(key, (5, last + 1), True), (206, data[5:]))
    refused(sdk, "standard range after the end", "InvalidRange", lambda: sdk.get(key, (last + 1, None), True))
    refused(sdk, "absent key", "NoSuchKey", lambda: sdk.get(prefix + "absent"))
    refused(sdk, "head of an absent key", "NoSuchKey", lambda: sdk.head(prefix + "absent"))
    etag = hashlib.md5(data).hexdigest().upper()
    expect("matching etag", sdk.get_if(key, "If-Match", f'"{etag}"'), data)
    refused(sdk, "another etag", "PreconditionFailed", lambda: sdk.get_if(key, "If-Match", '"00"'))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "down")
        sdk.download(big_key(prefix), path)
        with open(path, "rb") as file:
            expect("download in parts", file.read() == big(), True)


def fill(sdk, prefix):
    for name in NAMES:
        sdk.put(prefix + name, content(name))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "up")
        with open(path, "wb") as file:
            file.write(big())
        sdk.upload(big_key(prefix), path)


def check_writing(sdk, prefix):
    size, etag, crc, kind = sdk.head(big_key(prefix))
    expect("object of parts", (size, crc, kind), (BIG_LEN, CRC64(big()), "Multipart"))
    expect("its etag is no MD5", etag == hashlib.md5(big()).hexdigest().upper(), False)
    expect("abandoned upload", sdk.abandon(prefix + "x"), ([(7, 4)], [prefix + "x"], []))
    sdk.put(prefix + "dir/one", b"replaced")
    expect("replaced object", sdk.get(prefix + "dir/one"), (200, b"replaced"))
    sdk.put(prefix + "dir/one", content("dir/one"))
    for name in NAMES:
        sdk.delete(prefix + name)
    sdk.delete(big_key(prefix))
    expect("after deleting", sdk.names(prefix), [])
    refused(sdk, "deleted key", "NoSuchKey", lambda: sdk.get(prefix + NAMES[1]))


def check_cell(make, signature, endpoint, prefix, identity, writer):
    if signature == "anonymous":
        fill(writer, prefix)
        sdk = make(endpoint, "v1", None)
        check_reading(sdk, prefix)
        refused(sdk, "anonymous put", "AccessDenied", lambda: sdk.put(prefix + "new", b""))
        return
    sdk = make(endpoint, signature, identity)
    fill(sdk, prefix)
    check_reading(sdk, prefix)
    check_writing(sdk, prefix)
    impostor = make(endpoint, signature, (identity[0], identity[1] + "x", identity[2]))
    refused(sdk, "wrong secret", "SignatureDoesNotMatch", lambda: impostor.get(prefix + NAMES[1]))
    stranger = make(endpoint, signature, ("LTAI-other", identity[1], identity[2]))
    refused(sdk, "wrong id", "InvalidAccessKeyId", lambda: stranger.names(prefix))
    unsigned = make(endpoint, signature, None)
    refused(sdk, "no signature", "AccessDenied", lambda: unsigned.names(prefix))


def resolve_all_to_loopback():
    """Any name is the sandbox: virtual-hosted style needs names."""
    original = socket.getaddrinfo
    socket.getaddrinfo = lambda host, port, *rest, **more: original("127.0.0.1", port, *rest, **more)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--access-key-id", required=True)
    parser.add_argument("--secret-file", required=True)
    parser.add_argument("--token-file")
    parser.add_argument("--anonymous", action="store_true", help="read without signatures; the bucket allows it")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    resolve_all_to_loopback()

    def read(path):
        with open(path, encoding="ascii") as file:
            return file.read().strip()

    token = read(arguments.token_file) if arguments.token_file else None
    identity = (arguments.access_key_id, read(arguments.secret_file), token)
    endpoints = {
        "path": f"http://127.0.0.1:{arguments.port}",
        "virtual": f"http://oss-cn-beijing.aliyuncs.com:{arguments.port}",
    }
    signatures = ["anonymous"] if arguments.anonymous else ["v1", "v4"]
    for name, make in SDKS.items():
        for signature in signatures:
            for style, endpoint in endpoints.items():
                prefix = f"{name}/{signature}/{style}/"
                try:
                    check_cell(make, signature, endpoint, prefix, identity, Oss2(endpoint, "v4", identity))
                    verdict = "ok"
                except Exception as error:  # noqa: BLE001: any failure is this cell's verdict
                    verdict = f"failed {SDKS[name].code(error) or type(error).__name__}"
                    traceback.print_exc(file=sys.stderr)
                print(name, signature, style, verdict, flush=True)


if __name__ == "__main__":
    main()
