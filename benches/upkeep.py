#!/usr/bin/env python3
"""Measures rebuild and scrub, and what they leave to clients meanwhile.

A RAID 5 pool of four sparse files is filled with unique data. Then, without a
limit on the rate:

  alone       fio writes 4 KiB blocks at random, nothing else happens
  rebuild     a member is replaced while nobody else works
  + clients   another one is replaced while fio writes as before
  scrub       everything is verified while nobody else works
  + clients   the same while fio writes

Rates of jobs are the bytes they dealt with by the time from start to end;
clients' rates are those of the time that the job ran, as a ratio to `alone`.
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

WRITES = Workload("4k randwrite qd32", "randwrite", "4k", 32)


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


def with_clients(pool, start, options):
    """Runs a job under load: its rate, and the load's operations a second."""
    job = start()
    _, iops = fio(pool, WRITES, options, seconds=options.seconds)
    if pool.ask("job", "list", pool.pool)[-1]["state"] != "running":
        print("note: the job ended before the load did; use a larger --region-gib",
              file=sys.stderr)
    return pool.end_of(job), iops


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", default="tessera", help="the tessera binary")
    parser.add_argument("--region-gib", type=int, default=4, help="GiB of data (default 4)")
    parser.add_argument("--seconds", type=int, default=4, help="seconds of load (default 4)")
    parser.add_argument("--work", default="bench-work", help="directory for the disks; removed")
    asked = parser.parse_args()
    work = Path(asked.work).resolve()
    if work.exists():
        sys.exit(f"{work} exists: remove it or choose another --work")
    region = asked.region_gib * GIB
    options = SimpleNamespace(
        tessera=asked.tessera, memory=None, io=None, region=region, seconds=asked.seconds,
        member_bytes=2 * region)
    pool = Upkeep(work, options)
    try:
        pool.start()
        pool.ask("pool", "set", pool.pool, "--rebuild-rate", "0", "--scrub-rate", "0")
        fio(pool, Workload("fill", "write", "1M", 8, fill=True), options)
        _, alone = fio(pool, WRITES, options, seconds=asked.seconds)
        rows = [["", "job", "clients", "clients : alone"],
                ["alone", "-", f"{alone / 1e3:.1f} k/s", "1.00"]]
        for name, start, loaded in (
                ("rebuild", lambda: pool.replace(0), lambda: pool.replace(1)),
                ("scrub", pool.scrub, pool.scrub)):
            settle()
            job = pool.end_of(start())
            rows.append([name, f"{rate_of(job) / 1e6:.0f} MB/s", "-", ""])
            job, iops = with_clients(pool, loaded, options)
            rows.append([f"{name} + clients", f"{rate_of(job) / 1e6:.0f} MB/s",
                         f"{iops / 1e3:.1f} k/s", f"{iops / alone:.2f}"])
        print()
        table(rows)
        print(f"\n{asked.region_gib} GiB of unique data on RAID 5 of four files, no rate limit; "
              "higher is better.")
    finally:
        pool.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
