"""Copies a directory to or from a stand-in OSS with Alibaba's own SDK (PyPI oss2), large files in parts.

usage: oss2_copy.py put|get ENDPOINT KEY-ID SECRET-FILE PREFIX DIR

Used by tests/download.rs and benches/upload.py. Needs tests/peers/requirements.txt.
"""

import sys
from pathlib import Path

import oss2

REGION = "cn-beijing"
BUCKET = "conf-ai"
PART_LEN = 8 << 20
THREADS = 8


def main():
    verb, endpoint, key_id, secret_file, prefix, directory = sys.argv[1:]
    auth = oss2.make_auth(key_id, Path(secret_file).read_text(), "v4")
    bucket = oss2.Bucket(auth, endpoint, BUCKET, region=REGION)
    directory = Path(directory)
    # Its checkpoints, which it would leave in the home directory.
    store = {"root": str(directory.parent), "dir": ".oss2"}
    if verb == "put":
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                oss2.resumable_upload(
                    bucket, prefix + path.relative_to(directory).as_posix(), str(path), store=oss2.ResumableStore(**store),
                    multipart_threshold=PART_LEN, part_size=PART_LEN, num_threads=THREADS,
                )  # fmt: skip
    else:
        for entry in oss2.ObjectIteratorV2(bucket, prefix=prefix):
            path = directory / entry.key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            oss2.resumable_download(
                bucket, entry.key, str(path), store=oss2.ResumableDownloadStore(**store),
                multiget_threshold=PART_LEN, part_size=PART_LEN, num_threads=THREADS,
            )  # fmt: skip


if __name__ == "__main__":
    main()
