//! Canny's edges, to the pixel as OpenCV finds them.

use super::grey;
use ::image::RgbImage;

/// A fixed-point fraction.
const SHIFT: u32 = 15;
/// The tangent of 22.5 degrees.
const TANGENT: i64 = 13_573;

/// How strongly an image changes at a pixel, and where to.
#[derive(Debug, Clone, Copy, Default)]
struct Gradient {
    x: i32,
    y: i32,
}

impl Gradient {
    fn size(self) -> i32 {
        self.x.abs() + self.y.abs()
    }
}

/// What is known of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pixel {
    None,
    /// An edge where one leads here.
    Weak,
    Edge,
}

/// White where an edge is: one that begins above `high` and goes on above `low`, in sums of the two derivatives.
///
/// # Source
/// Canny 1986, doi:10.1109/TPAMI.1986.4767851; `cv::Canny` with Sobel's derivatives of size 3 in opencv/opencv@4.10:modules/imgproc/src/canny.cpp.
pub(super) fn canny(image: &RgbImage, low: i32, high: i32) -> RgbImage {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let gradients = gradients(image);
    // Beyond the image nothing changes.
    let at = |x: isize, y: isize| match (usize::try_from(x), usize::try_from(y)) {
        (Ok(x), Ok(y)) if x < width && y < height => gradients.get(y * width + x).copied().unwrap_or_default(),
        _ => Gradient::default(),
    };
    let mut pixels = vec![Pixel::None; width * height];
    let mut reached = Vec::new();
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let (x, y) = ((i % width) as isize, (i / width) as isize);
        let here = at(x, y);
        let size = here.size();
        if size <= low {
            continue;
        }
        let around = |dx: isize, dy: isize| at(x + dx, y + dy).size();
        let (across, along) = (i64::from(here.x.abs()), i64::from(here.y.abs()) << SHIFT);
        let flat = across * TANGENT;
        let is_largest = if along < flat {
            size > around(-1, 0) && size >= around(1, 0)
        } else if along > flat + (across << (SHIFT + 1)) {
            size > around(0, -1) && size >= around(0, 1)
        } else {
            let side = if (here.x ^ here.y) < 0 { -1 } else { 1 };
            size > around(-side, -1) && size > around(side, 1)
        };
        if is_largest {
            *pixel = if size > high { Pixel::Edge } else { Pixel::Weak };
            reached.extend((size > high).then_some(i));
        }
    }
    while let Some(i) = reached.pop() {
        let (x, y) = (i % width, i / width);
        for near_y in y.saturating_sub(1)..=(y + 1).min(height - 1) {
            for near_x in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                let near = near_y * width + near_x;
                if let Some(pixel) = pixels.get_mut(near).filter(|pixel| **pixel == Pixel::Weak) {
                    *pixel = Pixel::Edge;
                    reached.push(near);
                }
            }
        }
    }
    grey(image.width(), image.height(), pixels.into_iter().map(|pixel| if pixel == Pixel::Edge { 255 } else { 0 }))
}

/// Sobel's derivatives of the colour that changes most; beyond the image its edge goes on.
fn gradients(image: &RgbImage) -> Vec<Gradient> {
    let (width, height) = image.dimensions();
    let colours = |x: i64, y: i64| image.get_pixel(x.clamp(0, i64::from(width) - 1) as u32, y.clamp(0, i64::from(height) - 1) as u32).0;
    let mut gradients = Vec::with_capacity((width * height) as usize);
    for y in 0..i64::from(height) {
        for x in 0..i64::from(width) {
            let near: [[[u8; 3]; 3]; 3] = [-1, 0, 1].map(|dy| [-1, 0, 1].map(|dx| colours(x + dx, y + dy)));
            let of = |c: usize| {
                let v = |row: usize, column: usize| i32::from(near[row][column][c]);
                let side = |column| v(0, column) + 2 * v(1, column) + v(2, column);
                let edge = |row| v(row, 0) + 2 * v(row, 1) + v(row, 2);
                Gradient { x: side(2) - side(0), y: edge(2) - edge(0) }
            };
            let first = of(0);
            gradients.push([of(1), of(2)].into_iter().fold(first, |most, other| if other.size() > most.size() { other } else { most }));
        }
    }
    gradients
}
