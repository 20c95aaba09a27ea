#!/usr/bin/env python3
"""Measures rebuild and scrub, and what they leave to clients meanwhile.

For each of the two a RAID 5 pool of four sparse files is filled with unique
data. Then, without a limit on the rate:

  rebuild     a member is replaced while nobody else works
  + clients   another one is replaced while fio works at random
  scrub       everything is verified while nobody else works
  + clients   the same while fio works at random

Rates of jobs are the bytes of data they dealt with by the time from start to
end. A client's rate is that of the first seconds of the job; what it is
compared with is the mean of the same load right before and right after, when
no job runs, because a disk drifts within minutes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from compare import GIB, Tessera, Workload, fio, settle, table

LOADS = {rw: Workload(f"4k {rw} qd32", rw, "4k", 32) for rw in ("randwrite", "randread")}
# What a loaded pool and one member twice come to, by the region: parity, what
# random writes add, and a target beside the member it replaces.
DISK_PER_REGION = 4


class Upkeep(Tessera):
    """A served pool whose jobs are followed through the command line."""

    name = "upkeep"

    def ask(self, *arguments):
        answer = subprocess.run([self.options.tessera, *arguments, "--json"],
                                capture_output=True, text=True)
        if answer.returncode not in (0, 2):
            sys.exit(f"tessera {' '.join(arguments)} failed: {answer.stderr}")
        return json.loads(answer.stdout)

    def replace(self, member):
        return self.ask("member", "replace", self.pool, str(member),
                        str(self.work / f"new{member}.img"))

    def forget_replaced(self):
        """Deletes the files of members that have been replaced."""
        used = {Path(m["path"]) for m in self.ask("pool", "status", self.pool)["members"]}
        for file in self.files():
            if file not in used:
                file.unlink()

    def files(self):
        return [*self.work.glob("*.img"), *Path(self.pool).glob("*.img")]

    def disk_bytes(self):
        return sum(file.stat().st_blocks * 512 for file in self.files())

    def scrub(self):
        return self.ask("scrub", "start", self.pool)

    def end_of(self, job):
        """The job when it has ended."""
        while True:
            job = next(j for j in self.ask("job", "list", self.pool) if j["id"] == job["id"])
            if job["state"] not in ("running", "paused"):
                if job["state"] != "done":
                    sys.exit(f"a job has ended as {job['state']}: {job['message']}")
                return job
            time.sleep(0.1)


def rate_of(job):
    """Bytes a second from a job's start to its end."""
    seconds = max(job["ended_unix_ms"] - job["started_unix_ms"], 1) / 1e3
    return job["bytes_done"] / seconds


def with_clients(pool, start, load, options):
    """Runs a job under load: the job, and by how much the load slowed down."""
    _, before = fio(pool, load, options)
    job = start()
    _, during = fio(pool, load, options)
    if next(j for j in pool.ask("job", "list", pool.pool) if j["id"] == job["id"])["state"] != "running":
        print("note: the job ended before the load did; use a larger --region-gib",
              file=sys.stderr)
    job = pool.end_of(job)
    _, after = fio(pool, load, options)
    return job, during, (before + after) / 2


def measure(name, work, load, options):
    """Rows of the table for one kind of job."""
    pool = Upkeep(work, options)
    members = iter(range(4))
    start = {"rebuild": lambda: pool.replace(next(members)), "scrub": pool.scrub}[name]
    try:
        pool.start()
        pool.ask("pool", "set", pool.pool, "--rebuild-rate", "0", "--scrub-rate", "0")
        fio(pool, Workload("fill", "write", "1M", 8, fill=True), options)
        settle()
        quiet = pool.end_of(start())
        pool.forget_replaced()
        busy, during, alone = with_clients(pool, start, load, options)
        print(f"{name}: {pool.disk_bytes() / GIB:.1f} GiB of disk in use at the end",
              file=sys.stderr)
    finally:
        pool.stop()
    return [
        [name, f"{rate_of(quiet) / 1e6:.0f} MB/s", "-", "-", ""],
        [f"{name} + clients", f"{rate_of(busy) / 1e6:.0f} MB/s", f"{during / 1e3:.1f} k/s",
         f"{alone / 1e3:.1f} k/s", f"{during / alone:.2f}"],
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="tessera", help="the tessera binary")
    parser.add_argument("--region-gib", type=int, default=3, help="GiB of data (default 3)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds of load (default 3)")
    parser.add_argument("--load", choices=LOADS, default="randwrite",
                        help="what clients do (default randwrite)")
    parser.add_argument("--work", default="bench-work", help="directory for the disks; removed")
    asked = parser.parse_args()
    work = Path(asked.work).resolve()
    if work.exists():
        sys.exit(f"{work} exists: remove it or choose another --work")
    region = asked.region_gib * GIB
    free = shutil.disk_usage(work.parent).free
    if free < DISK_PER_REGION * region:
        sys.exit(f"{free / GIB:.0f} GiB of disk are free and about "
                 f"{DISK_PER_REGION * asked.region_gib} are needed: "
                 "free some, or use a smaller --region-gib")
    options = SimpleNamespace(
        tessera=asked.tessera, memory=None, io=None, region=region, seconds=asked.seconds,
        member_bytes=2 * region)
    rows = [["", "job", "clients", "alone", "ratio"]]
    try:
        for name in ("rebuild", "scrub"):
            rows += measure(name, work, LOADS[asked.load], options)
        print()
        table(rows)
        print(f"\n{asked.region_gib} GiB of unique data on RAID 5 of four files, no rate limit; "
              f"clients: {LOADS[asked.load].name}; higher is better.")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
