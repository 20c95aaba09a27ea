#!/usr/bin/env python3
"""Write amplification of reclaim with one stream or two, for docs/adr/0005.

A model of the policy in engine/src/pool/reclaim: a job begins below a quarter of
free segments and empties those with least live chunks until a 128th of the
space is wasted. Clients write on meanwhile, `pace` chunks for each one moved. With
two streams what is moved has an open segment of its own.

Prints: live part, hot part of the chunks, their part of the writes, pace, and
the write amplification with one stream and with two.
"""

import random

SEGMENTS, CHUNKS, TURNS = 256, 256, 8


class Pool:
    def __init__(self, live, hot_chunks, hot_writes, two_streams):
        self.random = random.Random(1)
        self.mapped = int(SEGMENTS * CHUNKS * live)
        self.hot, self.hot_writes = int(self.mapped * hot_chunks), hot_writes
        self.copies_go_to = "cold" if two_streams else "data"
        self.free = list(range(SEGMENTS))
        self.open, self.filled = {}, {}
        self.holds = [set() for _ in range(SEGMENTS)]
        self.place = [None] * self.mapped
        self.written = self.moved = 0
        self.counted_from = None
        order = list(range(self.mapped))
        self.random.shuffle(order)
        for chunk in order:
            self.append("data", chunk)

    def append(self, stream, chunk):
        segment = self.open.get(stream)
        if segment is None or self.filled[segment] == CHUNKS:
            segment = self.open[stream] = self.free.pop()
            self.filled[segment] = 0
        self.filled[segment] += 1
        if self.place[chunk] is not None:
            self.holds[self.place[chunk]].discard(chunk)
        self.holds[segment].add(chunk)
        self.place[chunk] = segment

    def write(self):
        hot = self.random.random() < self.hot_writes
        first, end = (0, self.hot) if hot else (self.hot, self.mapped)
        self.append("data", self.random.randrange(first, end))
        self.written += 1
        if self.counted_from is None and self.written > TURNS * self.mapped // 3:
            self.counted_from = (self.written, self.moved)

    def sealed(self):
        others = set(self.open.values()) | set(self.free)
        return [segment for segment in range(SEGMENTS) if segment not in others]

    def free_dead(self):
        dead = [segment for segment in self.sealed() if not self.holds[segment]]
        self.free.extend(dead)
        return len(dead) > 0

    def is_low(self):
        return len(self.free) <= SEGMENTS // 4

    def victims(self):
        waste_of = lambda segment: CHUNKS - len(self.holds[segment])
        candidates = sorted(self.sealed(), key=waste_of, reverse=True)
        waste = sum(map(waste_of, candidates))
        tolerated = len(candidates) * CHUNKS / 128
        room = max(0, len(self.free) - 8) * CHUNKS
        chosen = []
        for segment in candidates:
            live = len(self.holds[segment])
            if waste <= tolerated or waste_of(segment) < CHUNKS / 32 or live > room:
                break
            room -= live
            waste -= waste_of(segment)
            chosen.append(segment)
        won = sum(map(waste_of, chosen))
        return chosen if won >= CHUNKS else []

    def job(self, pace, end):
        while self.written < end:
            chosen = self.victims()
            for segment in chosen:
                if len(self.free) <= 4:
                    self.free_dead()
                if len(self.free) <= 4:
                    break
                for chunk in list(self.holds[segment]):
                    if self.place[chunk] != segment:
                        continue
                    self.append(self.copies_go_to, chunk)
                    self.moved += 1
                    due = int(pace) + (self.random.random() < pace % 1)
                    for _ in range(due):
                        if len(self.free) > 8:
                            self.write()
            if not chosen or not self.free_dead():
                return

    def run(self, pace):
        end = TURNS * self.mapped
        while self.written < end:
            if self.is_low():
                self.free_dead()
                if self.is_low():
                    self.job(pace, end)
            if len(self.free) > 4:
                self.write()
        written, moved = self.counted_from
        return 1 + (self.moved - moved) / (self.written - written)


if __name__ == "__main__":
    for live in (0.5, 0.65):
        for hot_chunks, hot_writes in ((0.1, 0.9), (0.2, 0.8)):
            for pace in (0.0, 0.5, 2.0):
                found = [
                    Pool(live, hot_chunks, hot_writes, two).run(pace)
                    for two in (False, True)
                ]
                print(live, hot_chunks, hot_writes, pace, *(f"{one:.2f}" for one in found), flush=True)
