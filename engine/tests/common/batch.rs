//! Several requests in one batch, each in its own part of the volume: so what
//! one of them left behind can be told from what the others did.

use tessera_engine::disk::{Operation, Request};

use super::{
    driver::Run,
    model::{Step, write_steps, zero_steps},
};

/// A request before it borrows its buffers.
enum Planned {
    Write { offset: u64, data: Vec<u8> },
    Discard { offset: u64, length: u64 },
    Zero { offset: u64, length: u64 },
    Read { offset: u64, buffer: Vec<u8> },
}

impl Run {
    pub(super) fn batch(&mut self) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let parts = 2 + self.rng.below(6);
        let part = size / parts;
        if part == 0 {
            return;
        }
        let mut planned = Vec::new();
        for number in 0..parts {
            let length = 1 + self.rng.below(part.min(20_000));
            let offset = number * part + self.rng.below(part - length + 1);
            planned.push(match self.rng.below(6) {
                0..3 => Planned::Write {
                    offset,
                    data: self.contents(length as usize),
                },
                3 => Planned::Discard { offset, length },
                4 => Planned::Zero { offset, length },
                _ => Planned::Read {
                    offset,
                    buffer: vec![0xee; length as usize],
                },
            });
        }
        self.note(format!("a batch of {parts} for {name}"));
        let disk = self.pool().disk(&name).unwrap();
        let mut batch: Vec<Request<'_>> = planned
            .iter_mut()
            .map(|request| {
                Request::new(match request {
                    Planned::Write { offset, data } => Operation::Write {
                        offset: *offset,
                        data,
                    },
                    Planned::Discard { offset, length } => Operation::Discard {
                        offset: *offset,
                        length: *length,
                    },
                    Planned::Zero { offset, length } => Operation::WriteZeroes {
                        offset: *offset,
                        length: *length,
                        keep_allocated: true,
                    },
                    Planned::Read { offset, buffer } => Operation::Read {
                        offset: *offset,
                        buffer,
                    },
                })
            })
            .collect();
        disk.execute(&mut batch);
        let results: Vec<_> = batch.iter().map(|request| request.result.clone()).collect();
        drop(batch);
        drop(disk);
        let chunk = self.chunk_of(&name);
        for (request, result) in planned.iter().zip(results) {
            let (discard, steps): (bool, Vec<Step>) = match request {
                Planned::Write { offset, data } => {
                    (false, write_steps(&name, *offset, data, chunk))
                }
                Planned::Discard { offset, length } => {
                    (true, zero_steps(&name, *offset, *length, size, chunk))
                }
                Planned::Zero { offset, length } => {
                    (false, zero_steps(&name, *offset, *length, size, chunk))
                }
                Planned::Read { offset, buffer } => {
                    self.compare(&name, *offset, buffer, result);
                    continue;
                }
            };
            self.settle(result, discard, steps);
        }
    }
}
