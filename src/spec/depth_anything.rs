//! A network that estimates depth.

/// DepthAnythingForDepthEstimation: a DINOv2 that sees the image, and what makes a map of its states.
#[derive(Debug, Clone, PartialEq)]
pub struct DepthAnythingSpec {
    /// Width of the transformer.
    pub width: usize,
    /// Width of its feed-forward layers.
    pub wide: usize,
    /// Attention heads.
    pub heads: usize,
    /// Pixels of a patch along one side.
    pub patch_size: usize,
    /// Patches along one side of the images that it was trained on.
    pub positions: usize,
    /// The states that are taken: those after so many layers.
    pub taken: [usize; 4],
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Channels of the four maps, the finest first.
    pub neck_channels: [usize; 4],
    /// Channels of the maps as they are joined.
    pub fusion_channels: usize,
    /// Channels before the last layer.
    pub head_channels: usize,
}
