//! What a denoiser gives: the guided estimate, and the estimates that it was made of.

use candle_core::Tensor;

/// Which condition a row of the network's batch is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Branch {
    /// The negative prompt, or the empty text.
    Negative,
    /// The prompt.
    Prompt,
    /// A further part of the prompt, counted from 1 (`AND` of the prompt language).
    Part(usize),
    /// The image to edit without the instruction (instruction editing's third row).
    ImageOnly,
    /// The prompt, with the network's attention disturbed.
    Perturbed,
    /// The prompt, by a network without some of its layers.
    SkippedLayers,
}

/// One tensor a branch, `(images, channels, height, width)` each, in the order of the network's rows.
#[derive(Debug, Clone, Default)]
pub struct Branches(Vec<(Branch, Tensor)>);

impl Branches {
    /// Of tensors in the order of their rows.
    pub fn new(rows: Vec<(Branch, Tensor)>) -> Self {
        Self(rows)
    }

    /// The tensor of a branch, where that branch was computed.
    pub fn get(&self, branch: Branch) -> Option<&Tensor> {
        self.0.iter().find(|(which, _)| *which == branch).map(|(_, tensor)| tensor)
    }

    /// All of them, in the order of their rows.
    pub fn iter(&self) -> impl Iterator<Item = (Branch, &Tensor)> {
        self.0.iter().map(|(branch, tensor)| (*branch, tensor))
    }
}

/// Estimates of the clean latents.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// With guidance: what a step goes towards.
    pub guided: Tensor,
    /// Without: each branch's own estimate. Empty unless the solver reads them (`super::Solver::reads_branches`).
    pub branches: Branches,
}

impl Denoised {
    /// An estimate that no guidance had a part in.
    pub fn plain(estimate: Tensor) -> Self {
        Self { guided: estimate, branches: Branches::default() }
    }

    /// The estimate without guidance: the negative branch's, or the only one where nothing is guided.
    pub fn unguided(&self) -> &Tensor {
        self.branches.get(Branch::Negative).unwrap_or(&self.guided)
    }
}
