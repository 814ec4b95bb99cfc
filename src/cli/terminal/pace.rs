//! How long the rest of a run takes, by the images that were finished per second.
//!
//! Several batches are at work at once and finish in bursts, so the pace is taken anew only when as many images were finished as are
//! still at work: a whole round, in which every generator had its turn. In between the time that is left counts down.

use std::time::{Duration, Instant};

/// The pace of a run.
#[derive(Debug, Default)]
pub(in crate::cli) struct StepPace {
    /// When the first image came to the device: reading the model is over by then.
    began: Option<Instant>,
    /// Images that are begun and not finished.
    at_work: usize,
    finished: usize,
    /// The last step that was heard of.
    step: Option<PaceStep>,
    round: Option<Round>,
}

/// How far a batch is.
#[derive(Debug)]
struct PaceStep {
    at: Instant,
    images: usize,
    /// Of its work, from 0 to 1.
    share: f64,
}

/// The end of the last whole round.
#[derive(Debug)]
struct Round {
    at: Instant,
    finished: usize,
    /// Seconds an image, over the whole run.
    each: f64,
}

impl StepPace {
    /// A batch of so many images comes to the device.
    pub(in crate::cli) fn begun(&mut self, images: usize, now: Instant) {
        self.began.get_or_insert(now);
        self.at_work += images;
    }

    /// A batch of so many images has done a share of its work.
    pub(in crate::cli) fn step(&mut self, images: usize, share: f64, now: Instant) {
        self.step = Some(PaceStep { at: now, images, share });
    }

    /// An image is finished, well or badly.
    pub(in crate::cli) fn finished(&mut self, now: Instant) {
        self.finished += 1;
        self.at_work = self.at_work.saturating_sub(1);
        let before = self.round.as_ref().map_or(0, |round| round.finished);
        if let Some(began) = self.began
            && self.finished >= before + self.at_work
        {
            let each = seconds(began, now) / self.finished as f64;
            self.round = Some(Round { at: now, finished: self.finished, each });
        }
    }

    /// Seconds an image, once it is known.
    pub(in crate::cli) fn each(&self) -> Option<f64> {
        self.round.as_ref().map(|round| round.each)
    }

    /// Seconds that the rest of `all` images takes, once something is known of it.
    pub(in crate::cli) fn left(&self, all: usize, now: Instant) -> Option<f64> {
        let after = |seconds_then: f64, then: Instant| (seconds_then - seconds(then, now)).max(0.0);
        if let Some(Round { at, finished, each }) = self.round {
            let waiting = all.saturating_sub(self.finished + self.at_work);
            return Some(after(each * all.saturating_sub(finished) as f64, at).max(each * waiting as f64));
        }
        // The first batch, where it is alone, is judged by its steps.
        let (Some(began), Some(PaceStep { at, images, share })) = (self.began, &self.step) else { return None };
        let done = *images as f64 * share;
        let is_alone = *images == self.at_work && self.finished == 0;
        (is_alone && done > 0.0).then(|| after(seconds(began, *at) / done * (all as f64 - done).max(0.0), *at))
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.checked_duration_since(from).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the pace says of a run whose generators began so many seconds after the first one and generate so many batches each. A batch takes
    /// ten seconds, and a tenth more to be written, in which the next one has begun. Gives the largest error of the end that is foretold,
    /// once a fifth of the run is over, as a share of the run, and how often the end moved to and fro by more than a fiftieth of it.
    fn judged(offsets: &[f64], batch: usize, rounds: usize) -> (f64, usize) {
        enum PaceEvent {
            Begun,
            PaceStep(f64),
            Finished,
        }
        let mut events = Vec::new();
        for offset in offsets {
            for round in 0..rounds {
                let start = offset + round as f64 * 10.0;
                events.push((start, PaceEvent::Begun));
                events.extend((1..=8).map(|step| (start + 1.1 * f64::from(step), PaceEvent::PaceStep(f64::from(step) / 9.0))));
                // Written one by one.
                events.extend((0..batch).map(|n| (start + 10.1 + 0.002 * n as f64, PaceEvent::Finished)));
            }
        }
        events.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (all, end) = (offsets.len() * batch * rounds, events.last().unwrap().0);
        let (start, mut pace) = (Instant::now(), StepPace::default());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut events = events.into_iter().peekable();
        let (mut worst, mut turns, mut last, mut direction) = (0.0_f64, 0, None, 0.0);
        // Drawn as often as the lines are.
        for tick in 1..=(end * 4.0) as u32 {
            let now = f64::from(tick) / 4.0;
            while let Some((time, event)) = events.next_if(|(time, _)| *time <= now) {
                match event {
                    PaceEvent::Begun => pace.begun(batch, at(time)),
                    PaceEvent::PaceStep(share) => pace.step(batch, share, at(time)),
                    PaceEvent::Finished => pace.finished(at(time)),
                }
            }
            let Some(left) = pace.left(all, at(now)) else { continue };
            let foretold = now + left;
            if now > end / 5.0 {
                worst = worst.max((foretold - end).abs() / end);
            }
            let moved = foretold - last.replace(foretold).unwrap_or(foretold);
            if moved.abs() > end / 50.0 {
                turns += usize::from(moved.signum() == -direction);
                direction = moved.signum();
            }
        }
        (worst, turns)
    }

    #[test]
    fn the_end_that_is_foretold_stands_still_however_many_batches_are_at_work() {
        for (offsets, batch) in
            [(&[0.0][..], 1), (&[0.0], 16), (&[0.0, 0.05], 16), (&[0.0, 3.0], 16), (&[0.0, 2.0], 4), (&[0.0, 1.0, 2.0, 3.0], 8)]
        {
            let (worst, turns) = judged(offsets, batch, 20);
            assert!(worst < 0.1 && turns == 0, "{offsets:?}: wrong by {worst} of the run, and to and fro {turns} times");
        }
    }

    #[test]
    fn a_first_batch_is_judged_by_its_steps_where_it_is_alone() {
        let (start, mut pace) = (Instant::now(), StepPace::default());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(pace.left(4, at(0)), None);
        pace.begun(2, at(5));
        pace.step(2, 0.25, at(15));
        assert_eq!((pace.left(4, at(15)), pace.left(4, at(25)), pace.each()), (Some(70.0), Some(60.0), None));
        pace.begun(2, at(20));
        assert_eq!(pace.left(4, at(25)), None, "nobody knows what the other one does");
        (0..4).for_each(|_| pace.finished(at(45)));
        assert_eq!((pace.left(4, at(45)), pace.each()), (Some(0.0), Some(10.0)));
    }
}
