#!/usr/bin/env python3
"""Compares NBD servers under fio, on the same disk, in turns within one run.

Servers:
  tessera    a RAID 5 pool of four sparse files, a 1 TiB thin volume, inline
             dedup, default memory budget
  qemu-nbd   a raw sparse file, cache=none: the yardstick
  file       nbdkit's file plugin: the page cache in between
  null       nbdkit's null plugin: no disk at all, the transport's ceiling

Every workload runs on one server after the other before the next workload
starts, and the whole is repeated in rounds with fresh files; a figure is the
median of its rounds. What a disk gives drifts by tens of percent within
minutes, so only ratios of one run mean something.

All data is incompressible and new in every run (fio: refill_buffers,
randrepeat=0). Duplicates are drawn from a working set of 5 % of the blocks
written, so they are not simply the block before; servers that do not look at
data skip those workloads. Each write workload ends with a flush, and what the
system holds is written out and dropped before the next one.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Workload:
    """One fio job; `least` is the ratio to qemu-nbd that counts as done."""

    name: str
    rw: str
    block: str
    depth: int
    duplicates: int = 0
    flush_each: bool = False
    fill: bool = False
    least: float | None = None

    @property
    def in_bytes(self):
        return self.block == "1M"


WORKLOADS = [
    # The first one fills the region that the others read and write over.
    Workload("1M write qd8", "write", "1M", 8, fill=True, least=0.7),
    Workload("1M read qd8", "read", "1M", 8, least=1.0),
    Workload("4k randread qd32", "randread", "4k", 32, least=1.0),
    Workload("4k randwrite qd32", "randwrite", "4k", 32, least=2.5),
    Workload("4k write+flush qd1", "randwrite", "4k", 1, flush_each=True, least=0.8),
    Workload("1M write qd8, 50 % dup", "write", "1M", 8, duplicates=50),
    Workload("1M write qd8, 90 % dup", "write", "1M", 8, duplicates=90, least=1.5),
    Workload("4k randwrite, 50 % dup", "randwrite", "4k", 32, duplicates=50),
    Workload("4k randwrite, 90 % dup", "randwrite", "4k", 32, duplicates=90),
]


class Server:
    """A running NBD server; stopped by its process id."""

    name = ""
    # Whether duplicates could make a difference, to it or to a ratio.
    takes_duplicates = False

    def __init__(self, work, options):
        self.work = work / self.name
        self.options = options
        self.socket = self.work / "nbd.sock"
        self.process = None
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def start(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.prepare()
        self.log = open(self.work / "server.log", "w+")
        self.process = subprocess.Popen(
            self.command(), stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{self.name} did not start:\n{(self.work / 'server.log').read_text()}")
            time.sleep(0.05)

    def ready(self):
        return self.socket.exists()

    def prepare(self):
        pass

    def command(self):
        raise NotImplementedError

    def peak_bytes(self):
        """The most physical memory the process has had so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        self.log.close()
        shutil.rmtree(self.work, ignore_errors=True)


class Tessera(Server):
    name = "tessera"
    takes_duplicates = True

    def prepare(self):
        # Overwritten data stays until its whole segment is dead, so the pool
        # has room for everything that one round writes.
        self.run("pool", "create", self.pool, "--level", "raid5", "--files", "4",
                 "--file-size", str(self.options.member_bytes))
        self.run("volume", "create", self.pool, "bench", "--size", "1T")

    @property
    def pool(self):
        return str(self.work / "pool")

    def run(self, *arguments):
        subprocess.run([self.options.tessera, *arguments], check=True, stdout=subprocess.DEVNULL)

    def command(self):
        command = [self.options.tessera, "serve", self.pool, "--socket", str(self.socket)]
        if self.options.memory:
            command += ["--memory", self.options.memory]
        if self.options.io:
            command += ["--io", self.options.io]
        return command

    def ready(self):
        return "listening on" in (self.work / "server.log").read_text()

    def status(self):
        answer = subprocess.run([self.options.tessera, "pool", "status", self.pool, "--json"],
                                check=True, capture_output=True, text=True)
        return json.loads(answer.stdout)


class QemuNbd(Server):
    name = "qemu-nbd"
    takes_duplicates = True

    def prepare(self):
        with open(self.work / "disk.raw", "wb") as disk:
            disk.truncate(self.options.region)

    def command(self):
        return ["qemu-nbd", "-f", "raw", "--cache=none", f"--aio={self.options.qemu_aio}",
                "--discard=unmap", "-t", "-e", "4", "-k", str(self.socket),
                str(self.work / "disk.raw")]


class NbdkitFile(QemuNbd):
    name = "file"
    takes_duplicates = False

    def command(self):
        return ["nbdkit", "-f", "-U", str(self.socket), "file", str(self.work / "disk.raw")]


class NbdkitNull(Server):
    name = "null"

    def command(self):
        return ["nbdkit", "-f", "-U", str(self.socket), "null", "1T"]


def settle():
    """Writes out what the last workload left behind, and forgets it."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        pass  # Only root may; then reads of nbdkit's file come from memory.


def fio(server, workload, options, seconds=None, size=None):
    """Runs a workload; returns bytes per second and operations per second."""
    command = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={workload.rw}",
        f"--bs={workload.block}", f"--iodepth={workload.depth}", f"--size={size or options.region}",
        "--refill_buffers", "--randrepeat=0", "--norandommap", "--output-format=json",
    ]
    if not workload.fill:
        command += ["--time_based", f"--runtime={seconds or options.seconds}"]
    if workload.duplicates:
        command += [f"--dedupe_percentage={workload.duplicates}", "--dedupe_mode=working_set",
                    "--dedupe_working_set_percentage=5"]
    if workload.flush_each:
        command += ["--fsync=1"]
    elif "write" in workload.rw:
        command += ["--end_fsync=1"]
    settle()
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0 or server.process.poll() is not None:
        sys.exit(f"fio failed on {server.name}, {workload.name}:\n{answer.stdout}{answer.stderr}")
    job = json.loads(answer.stdout[answer.stdout.index("{"):])["jobs"][0]
    side = job["read" if "read" in workload.rw else "write"]
    return side["bw_bytes"], side["iops"]


@dataclass
class Results:
    rates: dict = field(default_factory=dict)
    peaks: dict = field(default_factory=dict)

    def add(self, workload, server, rate):
        self.rates.setdefault((workload.name, server.name), []).append(rate)

    def median(self, workload, name):
        rates = self.rates.get((workload.name, name))
        return statistics.median(rates) if rates else None


def shown(workload, rate):
    if rate is None:
        return "-"
    return f"{rate / 1e6:.0f} MB/s" if workload.in_bytes else f"{rate / 1e3:.1f} k/s"


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def report(results, names, workloads, options):
    print()
    rows = [["workload", *names, "tessera : qemu-nbd", "at least", ""]]
    short = []
    for workload in workloads:
        rates = {name: results.median(workload, name) for name in names}
        ours, theirs = rates.get("tessera"), rates.get("qemu-nbd")
        ratio = ours / theirs if ours and theirs else None
        verdict = ""
        if ratio is not None and workload.least is not None:
            verdict = "ok" if ratio >= workload.least else "SHORT"
            if verdict == "SHORT":
                short.append(workload.name)
        rows.append([
            workload.name,
            *(shown(workload, rates[name]) for name in names),
            f"{ratio:.2f}" if ratio else "-",
            f"{workload.least:.1f}" if workload.least else "",
            verdict,
        ])
    peak = max(results.peaks.get("tessera", [0]))
    if peak:
        fits = peak < 700 * MIB
        if not fits and not options.memory:
            short.append("peak memory")
        rows.append([
            "peak memory",
            *(f"{max(results.peaks[n]) / MIB:.0f} MiB" if n in results.peaks else "-" for n in names),
            "", "< 700 MiB" if not options.memory else "",
            ("ok" if fits else "SHORT") if not options.memory else "",
        ])
    table(rows)
    print(f"\nMedian of {options.rounds} round(s); {options.region / GIB:g} GiB region, "
          f"{options.seconds} s a workload; higher is better.")
    if options.json:
        Path(options.json).write_text(json.dumps({
            "rates": {f"{w} / {s}": r for (w, s), r in results.rates.items()},
            "peak_bytes": results.peaks,
        }, indent=2) + "\n")
    return short


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="tessera", help="the tessera binary")
    parser.add_argument("--quick", action="store_true", help="one short round on a small region")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    parser.add_argument("--seconds", type=int, help="seconds a workload (default 6)")
    parser.add_argument("--region-gib", type=int, help="GiB written and read (default 4)")
    parser.add_argument("--servers", default="tessera,qemu-nbd,file,null",
                        help="which to run, in this order")
    parser.add_argument("--only", help="only workloads whose name contains this (and the fill)")
    parser.add_argument("--work", default="bench-work", help="directory for the disks; removed")
    parser.add_argument("--memory", help="tessera's memory budget instead of its default")
    parser.add_argument("--io", help="tessera's device implementation: uring or threads")
    parser.add_argument("--qemu-aio", default="threads",
                        help="qemu-nbd's --aio (default: threads, as qemu-nbd's own)")
    parser.add_argument("--json", help="write the rates of every round to this file")
    parser.add_argument("--strict", action="store_true", help="fail where a ratio is short")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (4 if options.quick else 6)
    options.region = (options.region_gib or (2 if options.quick else 4)) * GIB
    # About what one round stores on a fast machine, and ample room for it: the
    # members are sparse.
    options.written = options.region + options.seconds * 1600 * MIB
    options.member_bytes = 2 * options.written // GIB * GIB
    return options


def main():
    options = parse_arguments()
    kinds = {kind.name: kind for kind in (Tessera, QemuNbd, NbdkitFile, NbdkitNull)}
    names = options.servers.split(",")
    for name in names:
        if name not in kinds:
            sys.exit(f"there is no server {name}: choose from {', '.join(kinds)}")
    workloads = [w for w in WORKLOADS if w.fill or not options.only or options.only in w.name]
    work = Path(options.work).resolve()
    if work.exists():
        sys.exit(f"{work} exists: remove it or choose another --work")
    work.mkdir(parents=True)
    needed = 2 * options.region + options.written * 4 // 3
    if shutil.disk_usage(work).free < needed:
        print(f"warning: up to {needed / GIB:.0f} GiB may be written and the disk has less free",
              file=sys.stderr)

    # A signal ends the run through the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = Results()
    servers = []
    try:
        for turn in range(options.rounds):
            servers = [kinds[name](work, options) for name in names]
            for server in servers:
                server.start()
            for workload in workloads:
                # Another order each round, so that nobody always goes first.
                for server in servers[turn % len(servers):] + servers[:turn % len(servers)]:
                    if workload.duplicates and not server.takes_duplicates:
                        continue
                    bandwidth, iops = fio(server, workload, options)
                    rate = bandwidth if workload.in_bytes else iops
                    results.add(workload, server, rate)
                    print(f"round {turn + 1}  {workload.name:24} {server.name:10} "
                          f"{shown(workload, rate)}", file=sys.stderr, flush=True)
            for server in servers:
                if isinstance(server, Tessera):
                    # Memory when writes are spread over the whole terabyte.
                    spread = Workload("spread", "randwrite", "4k", 32)
                    _, iops = fio(server, spread, options, size=1 << 40)
                    status = server.status()
                    print(f"round {turn + 1}  4k randwrite over 1 TiB  {server.name:10} "
                          f"{iops / 1e3:.1f} k/s; dedup ratio {status['dedup_ratio']:.2f}, "
                          f"{status['io_engine']}", file=sys.stderr, flush=True)
                results.peaks.setdefault(server.name, []).append(server.peak_bytes())
                server.stop()
        short = report(results, names, workloads, options)
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(work, ignore_errors=True)
    if options.strict and short:
        sys.exit(f"short: {', '.join(short)}")


if __name__ == "__main__":
    main()
