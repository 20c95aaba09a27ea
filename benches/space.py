#!/usr/bin/env python3
"""Measures what deduplication costs and what it gives back.

  ingest      unique data into a volume that deduplicates inline, one that does
              it later (post) and one that never does, in turns
  scan        the job that deduplicates later, on what was ingested
  reclaim     what `tessera gc start` moves, with 56 % of every 64 KiB discarded
  snapshots   taking one when there are none and when there are 1,000, of an
              empty volume and of one with much mapped, over the control socket
  ratio       two versions of a system image, against what the chunks say
              (counted here with BLAKE2, without the pool) and against btrfs
              with duperemove on a loop device, where they are written in pieces
              of 64 KiB
  read-back   volumes that are 90 % duplicates of earlier data in random order,
              in runs of 64 KiB and chunk by chunk, and the second version of
              the system image, each against unique data, cold and in turns;
              and what the disk itself gives at random 4 KiB reads, which is
              what the chunk-by-chunk case comes down to
  index       what is still found when the index may take a tenth of the disk,
              with 64 MiB of memory for the whole pool: of a second copy, and
              of chunks that repeat one by one

Rates are of one run and one disk: only ratios mean something. Every part has a
pool of its own, RAID 5 of four sparse files, which is removed at its end.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from compare import GIB, MIB, settle, table
from upkeep import Upkeep, rate_of

CHUNK = 4096
# What the largest part takes on disk, by --size-mib: two images and a pool that
# holds both, with parity.
DISK_PER_SIZE = 6
# Parts of a system that are there on most of them, smallest first.
SYSTEM = ["/usr/lib/python3", "/usr/share/perl", "/usr/share/doc", "/usr/include", "/usr/sbin",
          "/usr/lib/git-core", "/usr/bin"]

DISCARD = """
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for offset in range(0, h.get_size(), 64 << 10):
    h.trim(32 << 10, offset)
    h.trim(4096, offset + (48 << 10))
h.flush()
h.shutdown()
"""
WRITE_ALIKE = """
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
import os
data = os.urandom(64 << 10) * 256
for offset in range(0, int(sys.argv[2]), len(data)):
    h.aio_pwrite(data, offset)
    while h.aio_in_flight() > 4:
        h.poll(-1)
while h.aio_in_flight():
    h.poll(-1)
h.flush()
h.shutdown()
"""


class Pool(Upkeep):
    """A served pool with volumes of any name."""

    name = "space"

    def prepare(self):
        self.run("pool", "create", self.pool, "--level", "raid5", "--files", "4",
                 "--file-size", str(self.options.member_bytes))

    def run(self, *arguments):
        subprocess.run([self.options.tessera, *arguments], check=True, capture_output=True)

    def volume(self, name, size, *arguments):
        self.run("volume", "create", self.pool, name, "--size", str(size), *arguments)
        return self.export(name)

    def export(self, name):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def again(self):
        """The same pool served by a new process, whose caches are empty."""
        self.process.terminate()
        self.process.wait(120)
        self.log.close()
        self.socket.unlink(missing_ok=True)
        self.log = open(self.work / "server.log", "w+")
        self.process = subprocess.Popen(
            self.command(), stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        while not self.ready():
            if self.process.poll() is not None:
                sys.exit("the server did not start again")
            time.sleep(0.05)
        settle()

    def call(self, method, path, body=None):
        """One request to the control socket, and how long it took."""
        connection = http.client.HTTPConnection("tessera")
        connection.sock = socket.socket(socket.AF_UNIX)
        began = time.perf_counter()
        connection.sock.connect(str(Path(self.pool) / "control.sock"))
        connection.request(method, path, body=json.dumps(body) if body else None)
        answer = connection.getresponse()
        text = answer.read()
        took = time.perf_counter() - began
        connection.close()
        if answer.status not in (200, 201):
            sys.exit(f"{method} {path}: {text}")
        return took


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def copy(source, uri):
    """Copies with nbdcopy; returns bytes a second."""
    settle()
    began = time.perf_counter()
    run("nbdcopy", "--flush", source, uri)
    return Path(source).stat().st_size / (time.perf_counter() - began)


def python(script, *arguments):
    run(sys.executable, "-c", script, *arguments)


def read_back(pool, uri, size):
    """Bytes a second of one cold sequential read."""
    pool.again()
    answer = subprocess.run(
        ["fio", "--name=read", "--ioengine=nbd", f"--uri={uri}", "--rw=read", "--bs=1M",
         "--iodepth=8", f"--size={size}", "--output-format=json"],
        capture_output=True, text=True)
    if answer.returncode != 0:
        sys.exit(f"fio failed: {answer.stdout}{answer.stderr}")
    return json.loads(answer.stdout[answer.stdout.index("{"):])["jobs"][0]["read"]["bw_bytes"]


def random_file(path, size):
    with open(path, "wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))


def scattered_file(path, source, seed, duplicates, run=CHUNK):
    """As large as `source`, with so many of its runs, in random order."""
    rng = random.Random(seed)
    order = list(range(source.stat().st_size // run))
    rng.shuffle(order)
    with open(source, "rb") as runs, open(path, "wb") as file:
        for number in order:
            if rng.random() < duplicates:
                runs.seek(number * run)
                file.write(runs.read(run))
            else:
                file.write(os.urandom(run))


def random_reads(path):
    """Bytes a second that the disk gives at 4 KiB reads in random order."""
    answer = subprocess.run(
        ["fio", "--name=disk", f"--filename={path}", "--rw=randread", "--bs=4k", "--direct=1",
         "--ioengine=io_uring", "--iodepth=256", "--runtime=3", "--time_based",
         "--output-format=json"], capture_output=True, text=True)
    if answer.returncode != 0:
        return None
    return json.loads(answer.stdout[answer.stdout.index("{"):])["jobs"][0]["read"]["bw_bytes"]


def mb(rate):
    return f"{rate / 1e6:.0f} MB/s"


def has(tool):
    return shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def unique_bytes(pool):
    return pool.status()["unique_bytes"]


def ingest(work, options):
    """Rows for ingest by mode, and for the scan after it."""
    files = [work / f"new{n}" for n in range(3)]
    for file in files:
        random_file(file, options.size // 2)
    modes = ["inline", "post", "off"]
    rates = {mode: [] for mode in modes}
    pool = Pool(work, options)
    rows = []
    try:
        pool.start()
        for turn, file in enumerate(files):
            # Another mode begins each turn; every volume gets every file once.
            for at in range(len(modes)):
                mode = modes[(turn + at) % len(modes)]
                uri = pool.volume(f"{mode}{turn}", options.size // 2, "--dedup", mode)
                rates[mode].append(copy(file, uri))
        # The first to write a file has the new data, the others may find it.
        fresh = {mode: rates[mode][modes.index(mode)] for mode in modes}
        for mode in modes:
            rows.append([f"ingest, unique, {mode}", mb(fresh[mode]),
                         f"{fresh[mode] / fresh['inline']:.2f} of inline"])
        known = subprocess.run([options.tessera, "dedup", "--help"], capture_output=True)
        if known.returncode == 0:
            job = pool.ask("dedup", "start", pool.pool, "--wait")
            seconds = max(job["ended_unix_ms"] - job["started_unix_ms"], 1) / 1e3
            hashed = job["checked"] * CHUNK
            rows.append(["post-process scan", mb(hashed / seconds),
                         f"{job['repaired'] * CHUNK / MIB:.0f} of {hashed / MIB:.0f} MiB merged"])
        else:
            rows.append(["post-process scan", "-", "not in this build"])
    finally:
        pool.stop()
        for file in files:
            file.unlink(missing_ok=True)
    return rows


def reclaim(work, options):
    file = work / "new"
    random_file(file, options.size)
    pool = Pool(work, options)
    try:
        pool.start()
        uri = pool.volume("a", options.size)
        copy(file, uri)
        python(DISCARD, uri)
        before = pool.disk_bytes()
        job = pool.ask("gc", "start", pool.pool, "--wait")
        after = pool.disk_bytes()
        return [["reclaim", mb(rate_of(job)),
                 f"members {before / MIB:.0f} to {after / MIB:.0f} MiB"]]
    finally:
        pool.stop()
        file.unlink(missing_ok=True)


def snapshots(work, options):
    """Medians over ten snapshots."""
    mapped = options.mapped_gib * GIB
    pool = Pool(work, options)
    rows = []
    try:
        pool.start()
        pool.volume("small", GIB)
        large = pool.volume("large", mapped, "--chunk-size", "64K")
        python(WRITE_ALIKE, large, mapped)
        real = pool.ask("volume", "show", pool.pool, "large")["logical_bytes"]

        def take(volume, first, count):
            return [pool.call("POST", f"/v1/snapshots/{volume}@s{n}")
                    for n in range(first, first + count)]

        def row(name, times):
            rows.append([name, f"{statistics.median(times) * 1e3:.1f} ms",
                         f"slowest of {len(times)}: {max(times) * 1e3:.1f} ms"])

        row("snapshot, none before", take("small", 0, 10))
        row(f"snapshot, {real / GIB:.0f} GiB mapped", take("large", 0, 10))
        take("small", 10, 980)
        row("snapshot, 1,000 before", take("small", 990, 10))
        row(f"snapshot, 1,000 before, {real / GIB:.0f} GiB mapped", take("large", 10, 10))
    finally:
        pool.stop()
    return rows


def system_images(work, limit):
    """Two ext4 images: parts of this system, and the same with changes."""
    tree = work / "tree"
    tree.mkdir()
    taken = 0
    for part in map(Path, SYSTEM):
        if not part.is_dir() or taken > limit // 2:
            continue
        target = tree / part.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-a", "--reflink=never", part, target)
        taken = int(subprocess.check_output(["du", "-sk", tree]).split()[0]) * 1024
    image_bytes = -(-(taken * 6 // 5 + 16 * MIB) // MIB) * MIB
    images = [work / "first.img", work / "second.img"]
    for image in images:
        if image == images[1]:
            # An upgrade: some files grow by a line, some go, some are new.
            rng = random.Random(5)
            files = sorted(f for f in tree.rglob("*") if f.is_file() and not f.is_symlink())
            for number, file in enumerate(files):
                if number % 20 == 0:
                    with open(file, "ab") as out:
                        out.write(b"a line more\n")
                elif number % 50 == 1:
                    file.unlink()
                elif number % 50 == 2:
                    (file.parent / f"new-{number}").write_bytes(rng.randbytes(20_000))
        with open(image, "wb") as out:
            out.truncate(image_bytes)
        run(has("mke2fs"), "-q", "-t", "ext4", "-b", CHUNK, "-m", 0, "-d", tree, image)
    shutil.rmtree(tree)
    return images


def theory(images):
    """Bytes that are not zero, and of distinct chunks among them."""
    zero = bytes(CHUNK)
    seen, mapped = set(), 0
    for image in images:
        with open(image, "rb") as file:
            while chunk := file.read(CHUNK):
                if chunk != zero:
                    mapped += 1
                    seen.add(hashlib.blake2b(chunk, digest_size=16).digest())
    return mapped * CHUNK, len(seen) * CHUNK


def duperemove(work, images):
    """Bytes that btrfs needs for both after duperemove, or why not."""
    missing = [tool for tool in ("mkfs.btrfs", "duperemove") if not has(tool)]
    if missing:
        return None, f"not measured: no {' and no '.join(missing)}"
    if os.geteuid() != 0:
        return None, "not measured: only root may mount"
    disk, mount = work / "btrfs.img", work / "btrfs"
    mount.mkdir()
    with open(disk, "wb") as file:
        file.truncate(max(GIB, 4 * sum(image.stat().st_size for image in images)))
    run("mkfs.btrfs", "-q", disk)
    mounted = subprocess.run(["mount", "-o", "loop", disk, mount], capture_output=True, text=True)
    if mounted.returncode != 0:
        disk.unlink()
        return None, f"not measured: {mounted.stderr.strip()}"
    try:
        # As a virtual disk writes: btrfs keeps an extent as long as any part of
        # it is in use, and of a copy in one piece no part could be freed.
        for image in images:
            run("dd", f"if={image}", f"of={mount / image.name}", "bs=64K", "oflag=direct",
                "conv=sparse", "status=none")
        run("sync", "-f", mount)
        began = time.perf_counter()
        done = subprocess.run(
            ["duperemove", "-d", "-r", "-b", str(CHUNK), "--dedupe-options=partial", mount],
            capture_output=True, text=True)
        if done.returncode != 0:
            return None, f"duperemove failed: {done.stderr.strip()[-80:]}"
        took = time.perf_counter() - began
        run("sync", "-f", mount)
        # Data only: its metadata is not what the ratio is about.
        usage = subprocess.check_output(
            ["btrfs", "filesystem", "df", "-b", mount], text=True)
        data = next(line for line in usage.splitlines() if line.startswith("Data"))
        # It offers ranges as equal that the kernel then finds to differ.
        refused = done.stdout.count("data changed")
        return (int(data.rsplit("used=", 1)[1]),
                f"{took:.1f} s after the copies, {refused} merges refused as unequal")
    finally:
        run("umount", mount)
        disk.unlink()


def ratio(work, options):
    images = system_images(work, options.size)
    pool = Pool(work, options)
    rows = []
    try:
        mapped, distinct = theory(images)
        pool.start()
        uris = [pool.volume(image.stem, image.stat().st_size) for image in images]
        for image, uri in zip(images, uris):
            copy(image, uri)
        stored = unique_bytes(pool)
        best = mapped / distinct
        ours = mapped / stored
        rows.append(["ratio of two images, by chunks", f"{best:.3f}",
                     f"{mapped / MIB:.0f} MiB, {distinct / MIB:.0f} MiB distinct"])
        rows.append(["ratio, Tessera", f"{ours:.3f}", f"{ours / best * 100:.1f} % of it"])
        used, note = duperemove(work, images)
        rows.append(["ratio, btrfs and duperemove", f"{mapped / used:.3f}" if used else "-",
                     f"{mapped / used / best * 100:.1f} % of it, {note}" if used else note])

        plain = work / "plain"
        size = images[0].stat().st_size
        random_file(plain, size)
        copy(plain, pool.volume("plain", size))
        plain.unlink()
        rates = {name: [] for name in ("plain", "first", "second")}
        for _ in range(options.rounds):
            for name in rates:
                rates[name].append(read_back(pool, pool.export(name), size))
        plain_rate = statistics.median(rates["plain"])
        first_rate = statistics.median(rates["first"])
        for name in ("first", "second"):
            rate = statistics.median(rates[name])
            rows.append([f"read-back, {name} image", mb(rate),
                         f"{rate / plain_rate:.2f} of unique data, {mb(plain_rate)}"
                         + (f"; {rate / first_rate:.2f} of the first" if name == "second" else "")])
    finally:
        pool.stop()
        for image in images:
            image.unlink(missing_ok=True)
    return rows


def locality(work, options):
    """Read-back of duplicates in random order."""
    source = work / "source"
    random_file(source, options.size)
    runs = {"in runs of 64 KiB": 64 << 10, "chunk by chunk": CHUNK}
    pool = Pool(work, options)
    rows = []
    try:
        pool.start()
        copy(source, pool.volume("unique", options.size))
        volumes = {}
        for number, (name, run_bytes) in enumerate(runs.items()):
            file = work / "scattered"
            scattered_file(file, source, number, 0.9, run_bytes)
            before = unique_bytes(pool)
            copy(file, pool.volume(f"v{number}", options.size))
            found = 1 - (unique_bytes(pool) - before) / options.size
            volumes[f"read-back, {found * 100:.0f} % duplicates {name}"] = f"v{number}"
            file.unlink()
        rates = {name: [] for name in ("unique", *volumes.values())}
        for _ in range(options.rounds):
            for name in rates:
                rates[name].append(read_back(pool, pool.export(name), options.size))
        medians = {name: statistics.median(rate) for name, rate in rates.items()}
        rows.append(["read-back, unique", mb(medians["unique"]), ""])
        for name, volume in volumes.items():
            rows.append([name, mb(medians[volume]),
                         f"{medians[volume] / medians['unique']:.2f} of unique"])
        disk = random_reads(source)
        if disk:
            rows.append(["the disk at random 4 KiB reads", mb(disk),
                         f"{disk / medians['unique']:.2f} of unique"])
    finally:
        pool.stop()
        source.unlink(missing_ok=True)
    return rows


def index(work, options):
    source, scattered = work / "source", work / "scattered"
    size = options.size
    # Little, or all summaries would be cached and answer for the index.
    options = SimpleNamespace(**{**vars(options), "memory": "64M"})
    random_file(source, size)
    scattered_file(scattered, source, 8, 1)
    # What an index of all of it is kept to, see docs/index.md.
    whole = size // CHUNK * 90
    rows = []
    try:
        for name, limit in (("all", 0), ("a tenth", max(whole // 10, MIB))):
            pool = Pool(work, options)
            try:
                pool.start()
                pool.run("pool", "set", pool.pool, "--index-disk", str(limit))
                copy(source, pool.volume("source", size))
                pool.again()
                facts = pool.ask("index", "status", pool.pool)
                copy(source, pool.volume("second", size))
                run_found = 1 - (unique_bytes(pool) - size) / size
                pool.run("volume", "delete", pool.pool, "second")
                pool.again()
                before = unique_bytes(pool)
                copy(scattered, pool.volume("scattered", size))
                found = 1 - (unique_bytes(pool) - before) / size
                rows.append([f"index of {name}, 1 in {facts['kept_one_in']} kept",
                             f"{facts['disk_bytes'] / MIB:.1f} MiB disk",
                             f"{run_found * 100:.1f} % of a second copy found, "
                             f"{found * 100:.1f} % of scattered chunks"])
                rows.append(["  for a TiB of unique data",
                             f"{facts['disk_bytes_per_tib'] / MIB:.0f} MiB disk",
                             f"{facts['memory_bytes_per_tib'] / MIB:.0f} MiB memory"])
            finally:
                pool.stop()
    finally:
        source.unlink(missing_ok=True)
        scattered.unlink(missing_ok=True)
    return rows


PARTS = {"ingest": ingest, "reclaim": reclaim, "snapshots": snapshots, "ratio": ratio,
         "locality": locality, "index": index}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="tessera", help="the tessera binary")
    parser.add_argument("--size-mib", type=int, default=768, help="MiB of data (default 768)")
    parser.add_argument("--mapped-gib", type=int, default=32,
                        help="GiB mapped for the snapshots, by equal chunks (default 32; 1024 "
                             "is a TiB and takes a while)")
    parser.add_argument("--rounds", type=int, default=3, help="reads of each (default 3)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default all)")
    parser.add_argument("--work", default="bench-work", help="directory for the disks; removed")
    asked = parser.parse_args()
    work = Path(asked.work).resolve()
    if work.exists():
        sys.exit(f"{work} exists: remove it or choose another --work")
    size = asked.size_mib * MIB
    free = shutil.disk_usage(work.parent).free
    if free < DISK_PER_SIZE * size:
        sys.exit(f"{free / GIB:.0f} GiB of disk are free and {DISK_PER_SIZE * size / GIB:.0f} are "
                 "needed: free some, or use a smaller --size-mib")
    work.mkdir()
    options = SimpleNamespace(tessera=asked.tessera, memory=None, io=None, size=size,
                              rounds=asked.rounds, mapped_gib=asked.mapped_gib,
                              member_bytes=4 * size)
    rows = [["", "", ""]]
    try:
        for part in asked.parts.split(","):
            print(f"measuring: {part}", file=sys.stderr)
            rows += PARTS[part](work, options)
        print()
        table(rows)
        print(f"\n{asked.size_mib} MiB of data on RAID 5 of four files, 4 KiB chunks unless said.")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
