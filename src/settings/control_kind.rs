//! What an image is that a ControlNet for several kinds of them is shown.

use crate::image::Preprocessor;

/// A kind of image.
///
/// # Source
/// The order is that of xinsir/controlnet-union-sdxl-1.0; the last two are those of its ProMax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlKind {
    /// A pose as coloured limbs.
    OpenPose,
    /// Near is white.
    Depth,
    /// Thick and soft edges: HED, PiDiNet, scribbles.
    Scribble,
    /// Thin edges: Canny, lines of drawings, straight lines.
    Canny,
    /// Where surfaces look to, as colours.
    Normal,
    /// What belongs together, as colours.
    Segment,
    /// A blurred or small image.
    Tile,
    /// An image with holes.
    Inpaint,
}

impl ControlKind {
    const ALL: [Self; 8] =
        [Self::OpenPose, Self::Depth, Self::Scribble, Self::Canny, Self::Normal, Self::Segment, Self::Tile, Self::Inpaint];
    /// As they are typed.
    pub const NAMES: [&str; 8] = ["openpose", "depth", "scribble", "canny", "normal", "segment", "tile", "inpaint"];
    /// Other names: those of A1111's extension, of diffusers' documentation, and of what makes such images.
    const ALSO: [&[&str]; 8] = [
        &["pose"],
        &[],
        &["softedge", "hed", "pidi", "ted"],
        &["hardedge", "lineart", "animelineart", "mlsd"],
        &["normalmap"],
        &["segmentation", "seg"],
        &["blur"],
        &["repaint"],
    ];

    /// Reads a name; case, spaces and hyphens do not matter.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let folded: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        let known = |at: usize| Self::NAMES[at] == folded || Self::ALSO[at].contains(&folded.as_str());
        let at = (0..Self::ALL.len()).find(|at| known(*at));
        at.map(|at| Self::ALL[at]).ok_or_else(|| format!("there is no type {name:?}; there are {}", Self::NAMES.join(", ")))
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        Self::NAMES[self.number()]
    }

    /// Its number in the network.
    pub fn number(self) -> usize {
        self as usize
    }

    /// What is made by a preprocessor.
    pub fn made_by(how: Preprocessor) -> Self {
        match how {
            Preprocessor::Canny | Preprocessor::Lineart | Preprocessor::Invert => Self::Canny,
            Preprocessor::Scribble => Self::Scribble,
            Preprocessor::Tile => Self::Tile,
            Preprocessor::Depth => Self::Depth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_several_names() {
        for name in ControlKind::NAMES {
            assert_eq!(ControlKind::from_name(name).map(ControlKind::name), Ok(name));
        }
        for (name, number) in [("Soft Edge", 2), ("anime_lineart", 3), ("Normal Map", 4), ("repaint", 7)] {
            assert_eq!(ControlKind::from_name(name).map(ControlKind::number), Ok(number));
        }
        assert!(ControlKind::from_name("edges").unwrap_err().contains("openpose, depth"));
    }
}
