//! A run whose every choice is a byte of the input.

use super::{Rng, driver::Run, hazards::Mode, world::SHAPES};

/// The first byte chooses the level, the second the mode and the sizes; the
/// others are the run. Compression adapts to what its thread has seen, so each
/// run has a thread of its own.
pub fn run(bytes: &[u8]) {
    let [shape, mode, choices @ ..] = bytes else {
        return;
    };
    let (level, width) = SHAPES[usize::from(*shape) % SHAPES.len()];
    let (mode, seed) = match mode % 2 {
        0 => (Mode::Within, u64::from(*mode / 2)),
        _ => (Mode::Beyond, u64::from(*mode / 2)),
    };
    let choices = choices.to_vec();
    let run = std::thread::spawn(move || {
        let operations = choices.len() as u64;
        let mut run = Run::with(level, width, seed, mode, Rng::from_choices(choices));
        run.run(operations);
    });
    run.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
