//! Growing an image by more than half of its side, strip by strip: each one sees as much of the image as it adds.

use super::prompt::Conditioning;
use super::{BatchItem, GeneratedImage, Observer, Pipeline};
use crate::image::{Growth, write_png};
use crate::inputs::InputFile;
use crate::settings::Request;
use crate::{Error, Result};

/// What an image of a size grows by, one after the other; no side by more than half of what is there.
fn strips((mut width, mut height): (u32, u32), mut left: Growth) -> Vec<Growth> {
    // Whole latents, so that no strip begins inside of one.
    let most = |side: u32| (side / 2 / 8 * 8).max(8);
    let mut strips = Vec::new();
    while !left.is_none() {
        let (columns, rows) = (most(width), most(height));
        let strip =
            Growth { left: left.left.min(columns), right: left.right.min(columns), top: left.top.min(rows), bottom: left.bottom.min(rows) };
        left = Growth {
            left: left.left - strip.left,
            right: left.right - strip.right,
            top: left.top - strip.top,
            bottom: left.bottom - strip.bottom,
        };
        (width, height) = (width + strip.left + strip.right, height + strip.top + strip.bottom);
        strips.push(strip);
    }
    strips
}

impl Pipeline {
    /// The strips of a request that grows an image by too much for one.
    pub(super) fn strips(&self, request: &Request) -> Result<Option<Vec<Growth>>> {
        let (Some(growth), Some(image)) = (request.inputs.outpaint, request.inputs.read_init_image()?) else { return Ok(None) };
        Ok(Some(strips(image.rgb.dimensions(), growth)).filter(|strips| strips.len() > 1))
    }

    /// An image that grows strip by strip.
    pub(super) fn grow_in_strips(&self, item: BatchItem<'_>, strips: &[Growth], observer: &mut dyn Observer) -> Result<GeneratedImage> {
        let refiner = self.refiner(item.request, observer)?;
        let mut request = item.request.clone();
        let mut grown: Option<GeneratedImage> = None;
        for (i, strip) in strips.iter().enumerate() {
            if let Some(last) = &grown {
                let mut bytes = Vec::new();
                write_png(&last.image, &[], &mut bytes).map_err(|e| Error::Image(format!("the image so far cannot be kept: {e}")))?;
                request.inputs.init_image = Some(InputFile::of_bytes("the image so far", bytes));
                request.inputs.mask = None;
            }
            let image = request.inputs.read_init_image()?.ok_or_else(|| Error::Image("the image to grow is gone".into()))?;
            let (width, height) = strip.of(image.rgb.dimensions()).ok_or_else(|| Error::Image("the canvas becomes too large".into()))?;
            let multiple = self.spec.vae.factor().max(8);
            request.inputs.outpaint = Some(*strip);
            request.canvas.width = (width as usize).next_multiple_of(multiple);
            request.canvas.height = (height as usize).next_multiple_of(multiple);
            request.passes.upscale = item.request.passes.upscale.clone().filter(|_| i + 1 == strips.len());
            let conditioning: Conditioning = item.prompt.of_size(&self.spec, refiner.as_ref().map(|refiner| refiner.spec()), &request);
            let batch = [BatchItem { request: &request, prompt: &conditioning, seed: item.seed }];
            grown = self.make_batch(&batch, observer)?.pop();
        }
        grown.ok_or_else(|| Error::Image("there is nothing to grow".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_add_up_and_none_is_larger_than_half() {
        let growth = Growth { left: 700, right: 0, top: 20, bottom: 300 };
        let all = strips((256, 200), growth);
        assert!(all.len() > 2, "{all:?}");
        let sum = |of: fn(&Growth) -> u32| all.iter().map(of).sum::<u32>();
        assert_eq!((sum(|g| g.left), sum(|g| g.right), sum(|g| g.top), sum(|g| g.bottom)), (700, 0, 20, 300));
        assert!(all.first().is_some_and(|first| first.left == 128 && first.bottom == 96));
        assert_eq!(strips((64, 64), Growth { left: 32, right: 0, top: 0, bottom: 0 }).len(), 1);
        assert!(strips((1, 1), growth).len() < 40);
    }
}
