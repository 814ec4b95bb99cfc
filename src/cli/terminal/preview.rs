//! When a forming image is looked at, and how several of them become one.

use crate::cli::terminal::screen::Drawing;
use crate::settings::Graphics;
use ::image::imageops::replace;
use ::image::{Rgb, RgbImage};
use std::time::{Duration, Instant};

/// The share of the time that looking may take.
const SHARE: u32 = 33;
/// Sooner than this nobody sees a difference.
const SHORTEST: Duration = Duration::from_millis(100);
/// Images of a batch beside each other.
const ABREAST: usize = 4;

/// Draws images as they form.
pub(in crate::cli) struct Preview {
    graphics: Graphics,
    /// Tells the image that is forming from those that are finished.
    number: u32,
    due: Option<Instant>,
}

impl Preview {
    pub(in crate::cli) fn new(graphics: Graphics) -> Self {
        // Other programs number the images of a terminal too.
        Self { graphics, number: (std::process::id() % 1000 + 1) * 100_000, due: None }
    }

    /// The last look was long enough ago for what it cost.
    pub(in crate::cli) fn is_due(&self) -> bool {
        self.due.is_none_or(|due| Instant::now() >= due)
    }

    /// The images that form; to estimate them took `cost`.
    pub(in crate::cli) fn forming(&mut self, images: &[RgbImage], cost: Duration) -> Drawing {
        let began = Instant::now();
        let drawing = self.graphics.draw(&beside(images), self.number);
        let cost = cost + began.elapsed();
        self.due = Some(Instant::now() + (cost * SHARE).max(SHORTEST));
        drawing
    }

    /// A finished image.
    pub(in crate::cli) fn finished(&mut self, image: &RgbImage) -> Drawing {
        let drawing = self.graphics.draw(image, self.number);
        self.number += 1;
        // The next image's first look is not made to wait for this one.
        self.due = None;
        drawing
    }
}

/// Images of one size as one image, in rows.
fn beside(images: &[RgbImage]) -> RgbImage {
    let [first, rest @ ..] = images else { return RgbImage::new(1, 1) };
    if rest.is_empty() {
        return first.clone();
    }
    let (width, height) = first.dimensions();
    let gap = (width / 16).max(1);
    let (columns, rows) = (images.len().min(ABREAST), images.len().div_ceil(ABREAST));
    let along = |count: usize, size: u32| count as u32 * (size + gap) - gap;
    let mut sheet = RgbImage::from_pixel(along(columns, width), along(rows, height), Rgb([128; 3]));
    for (i, image) in images.iter().enumerate() {
        let (x, y) = ((i % ABREAST) as u32 * (width + gap), (i / ABREAST) as u32 * (height + gap));
        replace(&mut sheet, image, x.into(), y.into());
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(level: u8) -> RgbImage {
        RgbImage::from_pixel(32, 16, Rgb([level; 3]))
    }

    #[test]
    fn a_batch_becomes_a_sheet() {
        assert_eq!(beside(&[plain(7)]), plain(7));
        let sheet = beside(&[plain(1), plain(2), plain(3), plain(4), plain(5)]);
        assert_eq!(sheet.dimensions(), (4 * 32 + 3 * 2, 2 * 16 + 2));
        assert_eq!(
            [(0, 0), (34, 0), (102, 15), (0, 18), (33, 0), (40, 20)].map(|(x, y)| sheet.get_pixel(x, y).0[0]),
            [1, 2, 4, 5, 128, 128]
        );
    }

    #[test]
    fn a_dear_look_is_not_repeated_at_once() {
        let mut preview = Preview::new(Graphics::Blocks);
        assert!(preview.is_due());
        preview.forming(&[plain(9)], Duration::from_secs(10));
        assert!(!preview.is_due());
        preview.finished(&plain(9));
        assert!(preview.is_due(), "the next image is looked at from its first step");
    }
}
