//! What a ControlNet is shown of an image: its edges, its lines, its inverse. What needs a network is left to who has it.

mod canny;
mod lines;

use crate::Result;
use ::image::RgbImage;

/// Makes one image of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preprocessor {
    /// Edges, white on black.
    Canny,
    /// Every level turned around.
    Invert,
    /// The image as it is.
    Tile,
    /// The lines of a drawing, white on black.
    Lineart,
    /// Thick edges, white on black.
    Scribble,
    /// How near everything is, white on black: what a network says.
    Depth,
}

/// Of [`Preprocessor::Canny`]: where an edge goes on, and where one begins.
const CANNY: (i32, i32) = (100, 200);

impl Preprocessor {
    /// As they are typed.
    pub const NAMES: [&str; 6] = ["canny", "invert", "tile", "lineart", "scribble", "depth"];
    const ALL: [Self; 6] = [Self::Canny, Self::Invert, Self::Tile, Self::Lineart, Self::Scribble, Self::Depth];
    /// As A1111's ControlNet extension calls them.
    const A1111: [&str; 6] = [
        "canny",
        "invert (from white bg & black line)",
        "tile_resample",
        "lineart_standard (from white bg & black line)",
        "scribble_xdog",
        "depth_anything_v2",
    ];

    /// Reads a name, ours or A1111's.
    ///
    /// # Errors
    /// There is none of that name, or it needs weights.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let name = name.trim().to_lowercase();
        let at = Self::NAMES.iter().position(|own| *own == name).or_else(|| Self::A1111.iter().position(|own| *own == name));
        at.and_then(|at| Self::ALL.get(at).copied()).ok_or_else(|| {
            let names = Self::NAMES.join(", ");
            match name.starts_with("depth") || name.starts_with("openpose") || name.starts_with("normal") {
                true => format!("{name:?} needs a network that is not here: make its image with another program, and leave preprocess out; here are {names}"),
                false => format!("there is no {name:?}; there are {names}"),
            }
        })
    }

    /// As it is typed.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// As A1111 writes it.
    pub fn a1111_name(self) -> &'static str {
        Self::A1111[self as usize]
    }

    /// The image that the ControlNet is shown, as large as the one that is given; `depth` makes the one that needs a network.
    ///
    /// # Errors
    /// As `depth`.
    pub fn of(self, image: &RgbImage, depth: impl FnOnce(&RgbImage) -> Result<RgbImage>) -> Result<RgbImage> {
        Ok(match self {
            Self::Canny => canny::canny(image, CANNY.0, CANNY.1),
            Self::Invert => {
                let mut inverse = image.clone();
                inverse.iter_mut().for_each(|level| *level = 255 - *level);
                inverse
            }
            Self::Tile => image.clone(),
            Self::Lineart => lines::lineart(image),
            Self::Scribble => lines::scribble(image),
            Self::Depth => depth(image)?,
        })
    }
}

/// The same level in all colours.
fn grey(width: u32, height: u32, levels: impl Iterator<Item = u8>) -> RgbImage {
    let mut image = RgbImage::new(width, height);
    image.pixels_mut().zip(levels).for_each(|(pixel, level)| pixel.0 = [level; 3]);
    image
}

#[cfg(test)]
mod tests;
