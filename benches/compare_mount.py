#!/usr/bin/env python3
"""Compares a mounted pool under fio with the same pool over NBD, and with
qemu-storage-daemon, in turns within one run.

Ways to reach a disk:
  mount      a file of `tessera serve --mount`: a RAID 5 pool of four sparse
             files, a 1 TiB thin volume, inline dedup, default memory budget
  nbd        the same volume of the same process, over its Unix socket
  qsd        qemu-storage-daemon's FUSE export of a raw sparse file,
             cache.direct=on: the yardstick

One fio job each: libaio with O_DIRECT on files, fio's own client over NBD. As
in compare.py, all data is incompressible and new, every workload runs on one
after the other before the next one starts, a figure is the median of its
rounds, and only ratios of one run mean something.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from compare import GIB, MIB, Server, Tessera, Workload, settle, shown, table

# The least ratios to `nbd` and to `qsd` that count as done.
WORKLOADS = [
    (Workload("1M write qd8", "write", "1M", 8, fill=True), 0.7, 1.0),
    (Workload("1M read qd8", "read", "1M", 8), 0.7, 1.0),
    (Workload("4k randread qd32", "randread", "4k", 32), None, 1.0),
    (Workload("4k randwrite qd32", "randwrite", "4k", 32), None, 1.0),
]


class MountedTessera(Tessera):
    """One process that shows its volume both ways."""

    def command(self):
        self.point = self.work / "mnt"
        self.point.mkdir()
        self.file = self.point / "volumes" / "bench"
        return super().command() + ["--mount", str(self.point)]

    def ready(self):
        return "mounted on" in (self.work / "server.log").read_text()


class QemuStorageDaemon(Server):
    name = "qsd"

    def prepare(self):
        with open(self.work / "disk.raw", "wb") as disk:
            disk.truncate(self.options.region)
        self.file = self.work / "export"
        self.file.touch()

    def command(self):
        return ["qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=disk,filename={self.work}/disk.raw,"
                              f"cache.direct=on,aio={self.options.qemu_aio},discard=unmap",
                "--export", f"type=fuse,id=export,node-name=disk,mountpoint={self.file},"
                            "writable=on"]

    def ready(self):
        # Before it is mounted, an empty file is there.
        return self.file.stat().st_size == self.options.region


def fio(way, server, workload, options):
    """Runs a workload; returns bytes per second and operations per second."""
    command = ["fio", "--name=bench", f"--rw={workload.rw}", f"--bs={workload.block}",
               f"--iodepth={workload.depth}", f"--size={options.region}", "--refill_buffers",
               "--randrepeat=0", "--norandommap", "--output-format=json"]
    if way == "nbd":
        command += ["--ioengine=nbd", f"--uri=nbd+unix:///bench?socket={server.socket}"]
    else:
        command += ["--ioengine=libaio", "--direct=1", f"--filename={server.file}"]
    if not workload.fill:
        command += ["--time_based", f"--runtime={options.seconds}"]
    if "write" in workload.rw:
        command += ["--end_fsync=1"]
    settle()
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0 or server.process.poll() is not None:
        sys.exit(f"fio failed on {way}, {workload.name}:\n{answer.stdout}{answer.stderr}")
    job = json.loads(answer.stdout[answer.stdout.index("{"):])["jobs"][0]
    side = job["read" if "read" in workload.rw else "write"]
    return side["bw_bytes"], side["iops"]


def report(rates, options):
    print()
    rows = [["workload", *options.ways, "mount : nbd", "at least", "",
             "mount : qsd", "at least", ""]]
    short = []
    for workload, to_nbd, to_qsd in WORKLOADS:
        medians = {way: statistics.median(rates[workload.name, way])
                   for way in options.ways if (workload.name, way) in rates}
        if not medians:
            continue
        row = [workload.name, *(shown(workload, medians.get(way)) for way in options.ways)]
        for other, least in (("nbd", to_nbd), ("qsd", to_qsd)):
            ours, theirs = medians.get("mount"), medians.get(other)
            ratio = ours / theirs if ours and theirs else None
            verdict = ""
            if ratio and least:
                verdict = "ok" if ratio >= least else "SHORT"
                if verdict == "SHORT":
                    short.append(f"{workload.name} to {other}")
            row += [f"{ratio:.2f}" if ratio else "-", f"{least:.1f}" if least else "", verdict]
        rows.append(row)
    table(rows)
    print(f"\nMedian of {options.rounds} round(s); {options.region / GIB:g} GiB region, "
          f"{options.seconds} s a workload; higher is better.")
    return short


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="tessera", help="the tessera binary")
    parser.add_argument("--quick", action="store_true", help="one short round on a small region")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    parser.add_argument("--seconds", type=int, help="seconds a workload (default 6)")
    parser.add_argument("--region-gib", type=int, help="GiB written and read (default 4)")
    parser.add_argument("--only", help="only workloads whose name contains this (and the fill)")
    parser.add_argument("--ways", default="mount,nbd,qsd", help="which to run")
    parser.add_argument("--work", default="bench-mount-work",
                        help="directory for the disks; removed")
    parser.add_argument("--memory", help="tessera's memory budget instead of its default")
    parser.add_argument("--io", help="tessera's device implementation: uring or threads")
    parser.add_argument("--qemu-aio", default="threads",
                        help="qemu-storage-daemon's aio (default: threads, as its own)")
    parser.add_argument("--strict", action="store_true", help="fail where a ratio is short")
    options = parser.parse_args()
    options.ways = options.ways.split(",")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (4 if options.quick else 6)
    options.region = (options.region_gib or (2 if options.quick else 4)) * GIB
    # Both ways to the pool write to the same volume.
    options.written = 2 * (options.region + options.seconds * 1200 * MIB)
    options.member_bytes = 2 * options.written // GIB * GIB
    return options


def main():
    options = parse_arguments()
    work = Path(options.work).resolve()
    if work.exists():
        sys.exit(f"{work} exists: remove it or choose another --work")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        sys.exit("/dev/fuse cannot be opened: nothing can be mounted here")
    work.mkdir(parents=True)
    # A signal ends the run through the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rates, servers = {}, []
    try:
        for turn in range(options.rounds):
            servers = []
            pool = None
            if {"mount", "nbd"} & set(options.ways):
                pool = MountedTessera(work, options)
                servers.append(pool)
            ways = {"mount": pool, "nbd": pool}
            if "qsd" in options.ways:
                ways["qsd"] = QemuStorageDaemon(work, options)
                servers.append(ways["qsd"])
            for server in servers:
                server.start()
            for workload, _, _ in WORKLOADS:
                if not workload.fill and options.only and options.only not in workload.name:
                    continue
                # Another order each round, so that nobody always goes first.
                start = turn % len(options.ways)
                for way in options.ways[start:] + options.ways[:start]:
                    bandwidth, iops = fio(way, ways[way], workload, options)
                    rate = bandwidth if workload.in_bytes else iops
                    rates.setdefault((workload.name, way), []).append(rate)
                    print(f"round {turn + 1}  {workload.name:18} {way:6} {shown(workload, rate)}",
                          file=sys.stderr, flush=True)
            for server in servers:
                server.stop()
        short = report(rates, options)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(work, ignore_errors=True)
    if options.strict and short:
        sys.exit(f"short: {', '.join(short)}")


if __name__ == "__main__":
    main()
