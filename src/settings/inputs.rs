//! Images that the image is made from: varied, repainted in parts, grown, or changed by an instruction.

use super::{By, Draft, Heading, Request, Setting, Value, ValueKind};
use crate::image::{Growth, InputImage, decode, invert_mask, is_empty_mask};
use crate::inputs::{InputFile, files_named};
use crate::sampling::Like;
use crate::spec::ModelSpec;
use crate::{Error, Result};
use ::image::GrayImage;

/// Bytes of an image's file.
const LARGEST_FILE: u64 = 512 << 20;

settings! {
    /// What an image is made from beside the texts.
    InputSettings, InputDraft, draft.inputs, by By<'_>, of |request: &Request| Some(&request.inputs);

    /// The image to start from: PNG, JPEG, WebP, BMP, TIFF or GIF; "-" is standard input; a folder or frames/*.png makes an image of each
    init_image: maybe InputFile => Setting {
        name: "init-image", short: Some('i'), aliases: &["init-img"], hidden_aliases: &["image"], value: "FILE",
        heading: Heading::Inputs, infotext: Some("Init image"), limit: LARGEST_FILE, ..Setting::IMAGE
    };

    /// How much of the image is made anew, from 0 (none) to 1 (all)
    strength: maybe f64 => Setting {
        name: "strength", aliases: &["denoising-strength"], value: "X", default: "0.75, and 1 with a mask", heading: Heading::Inputs,
        range: Some((0.0, 1.0)), infotext: Some("Denoising strength"), ..Setting::IMAGE
    };

    /// Steps at a strength: share (of --steps, as diffusers), share-and-one (A1111, stable-diffusion.cpp) or all (ComfyUI)
    strength_steps: one StrengthSteps = |by| by.like.map_or(StrengthSteps::Share, StrengthSteps::of) => Setting {
        name: "strength-steps", value: "RULE", default: "share", heading: Heading::Inputs, words: || StrengthSteps::NAMES.to_vec(),
        infotext: Some("Strength steps"), off: Some("share"), follows_like: true, ..Setting::IMAGE
    };

    /// Where the image is made anew: white is, black is kept; the init image itself stands for its transparent parts
    mask: maybe InputFile => Setting {
        name: "mask", value: "FILE", heading: Heading::Inputs, infotext: Some("Mask"), limit: LARGEST_FILE, requires: Some("init-image"),
        ..Setting::IMAGE
    };

    /// Pixels over which the mask's edge is feathered
    mask_blur: one f64 = |_| 4.0 => Setting {
        name: "mask-blur", value: "PIXELS", default: "4", heading: Heading::Inputs, range: Some((0.0, 256.0)),
        infotext: Some("Mask blur"), off: Some("4"), ..Setting::IMAGE
    };

    /// Make anew what the mask leaves black
    invert_mask: one bool = |_| false => Setting {
        name: "invert-mask", heading: Heading::Inputs, infotext: Some("Mask mode inverted"), off: Some("false"), requires: Some("mask"),
        ..Setting::IMAGE
    };

    /// Leave what the model made outside of the mask, and do not put the image's own pixels back
    no_composite: one bool = |_| false => Setting {
        name: "no-composite", heading: Heading::Inputs, infotext: Some("No composite"), off: Some("false"), ..Setting::IMAGE
    };

    /// What stands under the mask at the beginning: original, blur, noise or zero
    inpaint_fill: one InpaintFill = |_| InpaintFill::Original => Setting {
        name: "inpaint-fill", value: "HOW", default: "original", heading: Heading::Inputs, words: || InpaintFill::NAMES.to_vec(),
        infotext: Some("Masked content"), off: Some("original"), ..Setting::IMAGE
    };

    /// What is generated: the whole image, or the masked part at full size
    inpaint_area: one InpaintArea = |_| InpaintArea::Whole => Setting {
        name: "inpaint-area", value: "AREA", default: "whole", heading: Heading::Inputs, words: || InpaintArea::NAMES.to_vec(),
        infotext: Some("Inpaint area"), off: Some("whole"), ..Setting::IMAGE
    };

    /// Pixels around the masked part that --inpaint-area masked takes with it
    inpaint_padding: one usize = |_| 32 => Setting {
        name: "inpaint-padding", value: "PIXELS", default: "32", heading: Heading::Inputs, range: Some((0.0, 8192.0)),
        infotext: Some("Masked area padding"), off: Some("32"), ..Setting::IMAGE
    };

    /// Pixels of new canvas: left=128,right=128,top=64,bottom=64, or all=128
    outpaint: maybe Growth => Setting {
        name: "outpaint", value: "SIDES", example: "all=64", heading: Heading::Inputs, infotext: Some("Outpaint"), requires: Some("init-image"),
        ..Setting::IMAGE
    };

    /// Change the init image as the prompt says; for models with 8 input channels, such as InstructPix2Pix
    edit: one bool = |_| false => Setting {
        name: "edit", heading: Heading::Inputs, infotext: Some("Edit"), off: Some("false"), requires: Some("init-image"), ..Setting::IMAGE
    };

    /// How closely an edit keeps to the image
    image_guidance_scale: one f64 = |_| 1.5 => Setting {
        name: "image-guidance-scale", aliases: &["img-cfg-scale"], value: "X", default: "1.5", heading: Heading::Inputs,
        range: Some((0.0, 1000.0)), infotext: Some("Image CFG scale"), off: Some("1.5"), ..Setting::IMAGE
    };
}

/// How many steps are taken from an image at a strength, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrengthSteps {
    /// The last `int(steps · strength)`.
    Share,
    /// One more of them: the last `int(min(strength, 0.999) · steps) + 1`.
    ShareAndOne,
    /// All steps that were asked for, the last ones of `int(steps / strength)`.
    All,
}

impl StrengthSteps {
    const NAMES: [&'static str; 3] = ["share", "share-and-one", "all"];

    fn of(like: Like) -> Self {
        match like {
            Like::A1111 | Like::SdCpp => Self::ShareAndOne,
            Like::ComfyUi => Self::All,
            Like::Diffusers => Self::Share,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::ShareAndOne => "share-and-one",
            Self::All => "all",
        }
    }

    fn from_name(name: &str) -> Result<Self, &'static str> {
        [Self::Share, Self::ShareAndOne, Self::All].into_iter().find(|rule| rule.name() == name).ok_or("give share, share-and-one or all")
    }
}

words!(StrengthSteps, StrengthSteps::from_name, StrengthSteps::name);

impl InputSettings {
    /// How much is made anew.
    pub fn strength(&self) -> f64 {
        self.strength.unwrap_or(0.75)
    }

    /// A part of the image is made anew, and the rest is kept.
    pub fn is_inpainting(&self) -> bool {
        self.init_image.is_some() && (self.mask.is_some() || self.outpaint.is_some())
    }

    /// The image to start from.
    ///
    /// # Errors
    /// [`Error::Setting`]: it is no image that can be read.
    pub fn read_init_image(&self) -> Result<Option<InputImage>> {
        self.init_image.as_ref().map(|file| read("init-image", file)).transpose()
    }

    /// Where `image` is made anew, as large as it.
    ///
    /// # Errors
    /// [`Error::Setting`]: it is no mask for this image.
    pub fn read_mask(&self, image: &InputImage) -> Result<Option<GrayImage>> {
        let Some(file) = &self.mask else { return Ok(None) };
        let mask = if self.init_image.as_ref() == Some(file) {
            let alpha = image.alpha.as_ref();
            invert_mask(alpha.ok_or_else(|| wrong("mask", file, "has no transparent part, which is the mask where it is the init image"))?)
        } else {
            read("mask", file)?.luma()
        };
        if mask.dimensions() != image.rgb.dimensions() {
            let (width, height) = mask.dimensions();
            let (wanted_width, wanted_height) = image.rgb.dimensions();
            return Err(wrong(
                "mask",
                file,
                format!("has {width}x{height} pixels, and the init image {wanted_width}x{wanted_height}; make it as large as that"),
            ));
        }
        let mask = if self.invert_mask { invert_mask(&mask) } else { mask };
        if is_empty_mask(&mask) && self.outpaint.is_none() {
            return Err(wrong("mask", file, "marks nothing to make anew; paint white what is to change, or `invert-mask`"));
        }
        Ok(Some(mask))
    }
}

fn wrong(name: &'static str, file: &InputFile, what: impl std::fmt::Display) -> Error {
    Error::setting(name, format!(" {}: {what}", file.path().display()))
}

fn read(name: &'static str, file: &InputFile) -> Result<InputImage> {
    let bytes = file.bytes().map_err(|what| Error::setting(name, format!(" {what}")))?;
    decode(&bytes).map_err(|what| wrong(name, file, what))
}

/// The endings of images in a folder.
const ENDINGS: &[&str] = &["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"];

impl Draft {
    /// One for each image to start from, where a folder or a pattern such as `frames/*.png` stands for several.
    ///
    /// # Errors
    /// [`Error::Setting`]: there is none.
    pub fn each_init_image(self) -> Result<Vec<Draft>> {
        let Some(file) = &self.inputs.init_image else { return Ok(vec![self]) };
        if file.sha256().is_some() {
            return Ok(vec![self]);
        }
        let files = files_named(file.path(), ENDINGS).map_err(|what| Error::setting("init-image", format!(" {what}")))?;
        let of = |path: std::path::PathBuf| self.clone().with(|draft| draft.inputs.init_image = Some(InputFile::named(&path)));
        Ok(files.into_iter().map(of).collect())
    }

    /// With what the images decide: their size, and what the model does with them.
    pub(super) fn with_inputs(&self, spec: &ModelSpec) -> Result<Draft> {
        let mut draft = self.clone();
        let latents = spec.vae.latent_channels;
        let (edits, repaints) = (spec.unet.in_channels == 2 * latents, spec.unet.in_channels == 2 * latents + 1);
        let missing = |name, what: &str| Err(Error::setting(name, format!(": {what}")));
        if draft.inputs.init_image.is_none() {
            let inputs = &draft.inputs;
            for (name, given) in
                [("mask", inputs.mask.is_some()), ("outpaint", inputs.outpaint.is_some()), ("edit", inputs.edit == Some(true))]
            {
                if given {
                    return missing(name, "needs `init-image`, the image to start from");
                }
            }
            if edits || repaints {
                let how = if edits { "changes an image as the prompt says" } else { "makes parts of an image anew; `mask` says which" };
                return missing("init-image", &format!("give one: this model {how}"));
            }
            // What a configuration file says of images to start from changes nothing where there is none.
            draft.inputs = InputDraft::default();
            return Ok(draft);
        }
        if repaints && draft.inputs.mask.is_none() && draft.inputs.outpaint.is_none() {
            return missing("mask", "give one, or `outpaint`: this model makes parts of an image anew");
        }
        if draft.inputs.edit == Some(true) && !edits {
            return missing("edit", &format!("needs a model with {} input channels, such as InstructPix2Pix", 2 * latents));
        }
        draft.inputs.edit = Some(edits);
        if draft.inputs.strength.is_none() && !edits {
            draft.inputs.strength = Some(if draft.inputs.mask.is_some() || draft.inputs.outpaint.is_some() { 1.0 } else { 0.75 });
        }
        if draft.inputs.mask.is_none() {
            let InputDraft { mask_blur, invert_mask, inpaint_area, inpaint_padding, .. } = &mut draft.inputs;
            (*mask_blur, *invert_mask, *inpaint_area, *inpaint_padding) = (None, None, None, None);
            if draft.inputs.outpaint.is_none() {
                (draft.inputs.no_composite, draft.inputs.inpaint_fill) = (None, None);
            }
        }
        if draft.inputs.outpaint.is_some() && draft.inputs.inpaint_area == Some(InpaintArea::Masked) {
            return missing("inpaint-area", "a canvas that grows is generated as a whole; do one after the other");
        }
        let Some(file) = &draft.inputs.init_image else { return Ok(draft) };
        let image = read("init-image", file)?;
        draft.inputs.decide(&By { spec, sampler: spec.scheduler.sampler()?, like: draft.sampling.like }).read_mask(&image)?;
        let multiple = spec.side_multiple() as u32;
        let whole = draft.inputs.inpaint_area != Some(InpaintArea::Masked);
        match draft.inputs.outpaint {
            Some(growth) => {
                let grown = growth.of(image.rgb.dimensions()).unwrap_or((u32::MAX, u32::MAX));
                let canvas = sized(grown, |side| side.div_ceil(multiple).saturating_mul(multiple));
                // The command of an image names the size that it came to.
                let differs = |given: Option<usize>, is: usize| given.is_some_and(|given| given != is);
                if differs(draft.canvas.width, canvas.0) || differs(draft.canvas.height, canvas.1) {
                    return missing(
                        "outpaint",
                        "the image's size and the new canvas say how large it becomes; leave the width and the height out",
                    );
                }
                draft.set_size(Some(canvas));
            }
            None if whole && draft.canvas.width.is_none() && draft.canvas.height.is_none() => {
                draft.set_size(Some(sized(image.rgb.dimensions(), |side| (side / multiple * multiple).max(multiple))));
            }
            None => {}
        }
        Ok(draft)
    }
}

fn sized((width, height): (u32, u32), side: impl Fn(u32) -> u32) -> (usize, usize) {
    (side(width) as usize, side(height) as usize)
}

/// What stands under the mask when a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InpaintFill {
    /// The image as it is.
    #[default]
    Original,
    /// Colours from around.
    Blur,
    /// Noise in the latents.
    Noise,
    /// Zeros in the latents.
    Zero,
}

/// What is generated of an image that is made anew in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InpaintArea {
    /// All of it.
    #[default]
    Whole,
    /// The box around the mask, at full size.
    Masked,
}

impl InpaintFill {
    /// As they are typed.
    pub const NAMES: [&str; 4] = ["original", "blur", "noise", "zero"];
    const ALL: [Self; 4] = [Self::Original, Self::Blur, Self::Noise, Self::Zero];
}

impl InpaintArea {
    /// As they are typed.
    pub const NAMES: [&str; 2] = ["whole", "masked"];
    const ALL: [Self; 2] = [Self::Whole, Self::Masked];
}

/// The member that a word names.
fn named<T: Copy>(text: &str, names: &[&str], all: &[T]) -> Result<T, String> {
    let at = names.iter().position(|name| *name == text.trim().to_lowercase());
    at.and_then(|at| all.get(at).copied()).ok_or_else(|| format!("can be {}", names.join(", ")))
}

words!(InpaintFill, |text| named(text, &InpaintFill::NAMES, &InpaintFill::ALL), |fill: &InpaintFill| InpaintFill::NAMES[*fill as usize]);
words!(InpaintArea, |text| named(text, &InpaintArea::NAMES, &InpaintArea::ALL), |area: &InpaintArea| InpaintArea::NAMES[*area as usize]);

impl Value for Growth {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        const HOW: &str = "give sides with pixels, as in left=128,right=128 or all=64";
        let mut growth = Growth::default();
        for part in text.split(',') {
            let (side, pixels) = part.split_once('=').ok_or(HOW)?;
            let pixels: u32 = pixels.trim().parse().map_err(|_| HOW)?;
            if pixels > 16_384 {
                return Err("at most 16384 pixels a side".into());
            }
            match side.trim().to_lowercase().as_str() {
                "left" => growth.left = pixels,
                "right" => growth.right = pixels,
                "top" => growth.top = pixels,
                "bottom" => growth.bottom = pixels,
                "all" => growth = Growth { left: pixels, right: pixels, top: pixels, bottom: pixels },
                _ => return Err(HOW.into()),
            }
        }
        if growth.is_none() { Err(HOW.into()) } else { Ok(growth) }
    }

    fn typed(&self) -> String {
        let sides = [("left", self.left), ("right", self.right), ("top", self.top), ("bottom", self.bottom)];
        sides.iter().filter(|(_, pixels)| *pixels > 0).map(|(side, pixels)| format!("{side}={pixels}")).collect::<Vec<_>>().join(",")
    }
}
