//! Showing a job: one paragraph for people, and a bar while it is followed.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tessera_engine::api::{JobInfo, JobKind, JobState};

use crate::{
    access::Management,
    failure::{Failure, Kind},
    output::{Align, Outcome, Table},
    size,
};

/// How often a followed job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Steps of the bar.
const BAR_STEPS: u64 = 10_000;

pub(crate) fn kind(job: &JobInfo) -> &'static str {
    match job.kind {
        JobKind::Rebuild => "rebuild",
        JobKind::Scrub => "scrub",
        JobKind::Reclaim => "reclaim",
        JobKind::Dedup => "dedup",
    }
}

pub(crate) fn state(job: &JobInfo) -> &'static str {
    match job.state {
        JobState::Idle => "idle",
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Done => "done",
        JobState::Failed => "failed",
    }
}

/// One line: what it is, how far, how fast, how long.
pub(crate) fn line(job: &JobInfo) -> String {
    let mut text = state(job).to_owned();
    if matches!(job.state, JobState::Running | JobState::Paused) {
        text.push_str(&format!(
            ", {:.1} % ({} of {})",
            job.progress * 100.0,
            size::format(job.bytes_done),
            size::format(job.bytes_total)
        ));
    }
    if job.bytes_per_second > 0 {
        text.push_str(&format!(", {}/s", size::format(job.bytes_per_second)));
    }
    if let Some(seconds) = job.eta_seconds {
        text.push_str(&format!(", {} left", duration(seconds)));
    }
    if !job.message.is_empty() {
        text.push_str(&format!(": {}", job.message));
    }
    text
}

/// The job for people, with what it found on each member.
pub(crate) fn render(job: &JobInfo) -> String {
    let name = match (job.kind, job.member) {
        (JobKind::Rebuild, Some(member)) => format!("Rebuild of member {member}"),
        (JobKind::Rebuild, None) => "Rebuild".to_owned(),
        (JobKind::Scrub, _) => "Scrub".to_owned(),
        (JobKind::Reclaim, _) => "Reclaim".to_owned(),
        (JobKind::Dedup, _) => "Deduplication".to_owned(),
    };
    if job.id == 0 {
        return format!("{name}: never run\n");
    }
    let mut text = format!("{name} (job {}): {}\n", job.id, line(job));
    text.push_str(&match job.kind {
        JobKind::Reclaim => format!("Moved {}\n", size::format(job.bytes_done)),
        JobKind::Dedup => format!(
            "Hashed {} chunks, found {} duplicates, merged {} ({})\n",
            job.checked,
            job.found,
            job.repaired,
            size::format(job.merged_bytes)
        ),
        JobKind::Rebuild | JobKind::Scrub => format!(
            "Checked {}, found {} wrong, repaired {}, lost {}\n",
            job.checked, job.found, job.repaired, job.lost
        ),
    });
    if !job.members.is_empty() {
        let mut table = Table::new(&[
            ("MEMBER", Align::Right),
            ("CHECKED", Align::Right),
            ("FOUND", Align::Right),
            ("REPAIRED", Align::Right),
        ]);
        for member in &job.members {
            table.row(vec![
                member.index.to_string(),
                member.checked.to_string(),
                member.found.to_string(),
                member.repaired.to_string(),
            ]);
        }
        text.push_str(&table.render(2));
    }
    for loss in &job.losses {
        text.push_str(&format!("LOST  {loss}\n"));
    }
    text
}

/// Waits until a job neither runs nor is paused, drawing a bar on a terminal.
pub(crate) fn follow(pool: &dyn Management, id: u64) -> Result<JobInfo, Failure> {
    // Draws to stderr, and hides itself where that is no terminal.
    let bar = ProgressBar::new(BAR_STEPS);
    let style = ProgressStyle::with_template("{wide_bar} {percent:>3} % {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    loop {
        let job = pool.job(id)?;
        // The fraction is between 0 and 1.
        bar.set_position((job.progress.clamp(0.0, 1.0) * BAR_STEPS as f64) as u64);
        bar.set_message(line(&job));
        match job.state {
            JobState::Running => std::thread::sleep(LOOK_EVERY),
            JobState::Idle | JobState::Paused | JobState::Done | JobState::Failed => {
                bar.finish_and_clear();
                return Ok(job);
            }
        }
    }
}

/// How a command ends that has seen a job to its end: with a failure where the
/// job failed, with problems where something is lost.
pub(crate) fn outcome(job: &JobInfo) -> Result<Outcome, Failure> {
    match job.state {
        JobState::Failed => Err(Failure::new(
            Kind::Failed,
            format!("The {} has failed: {}", kind(job), job.message),
        )),
        _ if job.lost > 0 => Ok(Outcome::Problems),
        _ => Ok(Outcome::Done),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobInfo {
        JobInfo {
            id: 7,
            state: JobState::Running,
            progress: 0.25,
            bytes_done: 1 << 20,
            bytes_total: 4 << 20,
            bytes_per_second: 1 << 20,
            eta_seconds: Some(3 * 60 + 3),
            member: Some(2),
            ..JobInfo::none(JobKind::Rebuild)
        }
    }

    #[test]
    fn a_running_job_tells_how_far_how_fast_and_how_long() {
        assert_eq!(
            line(&job()),
            "running, 25.0 % (1M of 4M), 1M/s, 3 min 3 s left"
        );
        assert!(render(&job()).starts_with("Rebuild of member 2 (job 7): running"));
    }

    #[test]
    fn a_deduplication_tells_what_it_has_merged() {
        let text = render(&JobInfo {
            id: 3,
            state: JobState::Done,
            checked: 9,
            found: 5,
            repaired: 4,
            merged_bytes: 16 << 10,
            ..JobInfo::none(JobKind::Dedup)
        });
        let counts = "Hashed 9 chunks, found 5 duplicates, merged 4 (16K)";
        assert!(text.contains(counts), "{text}");
    }

    #[test]
    fn a_job_that_never_was_says_so() {
        assert_eq!(render(&JobInfo::none(JobKind::Scrub)), "Scrub: never run\n");
    }

    #[test]
    fn what_is_lost_is_a_problem_and_a_failed_job_a_failure() {
        let done = |state, lost| JobInfo {
            state,
            lost,
            ..job()
        };
        assert_eq!(outcome(&done(JobState::Done, 0)).unwrap(), Outcome::Done);
        assert_eq!(
            outcome(&done(JobState::Done, 1)).unwrap(),
            Outcome::Problems
        );
        assert!(outcome(&done(JobState::Failed, 0)).is_err());
    }
}
