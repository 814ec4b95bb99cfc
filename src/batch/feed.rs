//! What the engine is fed with: the jobs that are left, in the plan's order, claimed from other processes batch by batch.

use super::engine::{Batch, Hear, News, Task};
use super::key::Key;
use super::ledger::{Ledger, Standing};
use super::plan::{Job, groups};
use super::size::Sizes;
use crate::Result;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often other processes are asked for what they are painting.
const PATIENCE: Duration = Duration::from_millis(500);

/// The jobs that were handed to the engine, by their ids.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<Mutex<HashMap<usize, Job>>>);

impl Book {
    /// The prompt of a job that is being painted.
    pub fn prompt(&self, id: usize) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).map(|job| job.request.prompt.clone())
    }

    /// Takes a job out, when it is done with.
    pub(super) fn take(&self, id: usize) -> Option<Job> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    fn add(&self, job: Job) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id, job);
    }
}

/// The batches of jobs that come window by window.
pub struct Feed<W, S> {
    /// Gives the next jobs that can be planned together; may wait for them. `None` is the end.
    windows: W,
    /// How a group of so many pictures like this one is painted.
    sizes: S,
    /// Who has painted what.
    ledger: Arc<Mutex<Ledger>>,
    /// Where the engine's jobs are noted.
    book: Book,
    /// Tells the user.
    hear: Hear,
    /// What is planned.
    planned: VecDeque<(Vec<Job>, usize)>,
    /// What other processes were painting when they were asked.
    elsewhere: Vec<(Vec<Job>, usize)>,
    /// That other processes are waited for was said.
    waiting: bool,
}

impl<W: FnMut(&Hear) -> Option<Vec<Job>>, S: Fn(&Job, usize) -> Sizes> Feed<W, S> {
    /// Nothing is planned yet.
    pub fn new(windows: W, sizes: S, ledger: Arc<Mutex<Ledger>>, book: Book, hear: Hear) -> Self {
        Self { windows, sizes, ledger, book, hear, planned: VecDeque::new(), elsewhere: Vec::new(), waiting: false }
    }

    fn plan(&mut self, jobs: Vec<Job>) {
        for group in groups(jobs) {
            let Some(first) = group.first() else { continue };
            let Sizes { batch, at_once } = (self.sizes)(first, group.len());
            let mut group = group.into_iter().peekable();
            while group.peek().is_some() {
                self.planned.push_back((group.by_ref().take(batch.max(1)).collect(), at_once));
            }
        }
    }

    /// Of a planned batch, what is for this process.
    fn claim(&mut self, jobs: Vec<Job>, at_once: usize) -> Result<Option<Batch>> {
        let keys: Vec<Key> = jobs.iter().map(|job| job.key).collect();
        let standings = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).claim(&keys)?;
        let (mut tasks, mut elsewhere) = (Vec::new(), Vec::new());
        for (job, standing) in jobs.into_iter().zip(standings) {
            let id = job.id;
            match standing {
                Standing::Open => {
                    tasks.push(Task { id, model: job.model, request: job.request.clone(), seed: job.seed });
                    self.book.add(job);
                }
                Standing::Elsewhere => elsewhere.push(job),
                Standing::Painted(_) => self.hear.tell(News::Known { failed: false }),
                Standing::Failed(_) => self.hear.tell(News::Known { failed: true }),
            }
        }
        if !elsewhere.is_empty() {
            self.elsewhere.push((elsewhere, at_once));
        }
        Ok(Some(Batch { tasks, at_once }).filter(|batch| !batch.tasks.is_empty()))
    }

    fn next_batch(&mut self) -> Result<Option<Batch>> {
        loop {
            if let Some((jobs, at_once)) = self.planned.pop_front() {
                match self.claim(jobs, at_once)? {
                    Some(batch) => return Ok(Some(batch)),
                    None => continue,
                }
            }
            if let Some(jobs) = (self.windows)(&self.hear) {
                self.plan(jobs);
                continue;
            }
            if self.elsewhere.is_empty() || self.hear.is_stopped() {
                return Ok(None);
            }
            // Another process may be killed before it has painted them.
            if !self.waiting {
                let left: usize = self.elsewhere.iter().map(|(jobs, _)| jobs.len()).sum();
                self.hear.tell(News::Remark(format!("the last {left} pictures are being painted by another process; waiting for them")));
                self.waiting = true;
            }
            std::thread::sleep(PATIENCE);
            self.planned.extend(self.elsewhere.drain(..));
        }
    }
}

impl<W: FnMut(&Hear) -> Option<Vec<Job>>, S: Fn(&Job, usize) -> Sizes> Iterator for Feed<W, S> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}
