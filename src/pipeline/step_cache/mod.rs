//! Networks whose calls are answered in part by what earlier calls of the run gave.

mod deep_cache;
mod gate;
mod ucache;

pub(super) use deep_cache::DeepCache;
pub(super) use gate::TemporalGate;
pub(super) use ucache::UCache;

use crate::models::Backbone;
use crate::settings::{Request, StepCache};

/// The network of one run behind the cache that a request asks for; `None` where it asks for none, or for one that is not in the network.
/// `calls` is how many the run makes.
pub(super) fn cached<'a>(network: &'a dyn Backbone, request: &Request, calls: usize) -> Option<Box<dyn Backbone + 'a>> {
    let branches = if request.is_guided() { 2 } else { 1 };
    match request.sampling.cache? {
        StepCache::Spectrum { .. } => None,
        StepCache::UCache { threshold } => Some(Box::new(UCache::new(network, calls, threshold))),
        StepCache::DeepCache { interval, branch } => Some(Box::new(DeepCache::new(network, interval, branch))),
        StepCache::TGate { step } => Some(Box::new(TemporalGate::new(network, branches, step))),
    }
}

#[cfg(test)]
mod tests;
