//! How large the image is.

use super::{By, Draft, Request, Setting, Together, Value, ValueKind};
use crate::ops::Wrap;
use crate::sampling::Like;

settings! {
    /// The image's size in pixels.
    CanvasSettings, CanvasDraft, draft.canvas, by By<'_>, of |request: &Request| Some(&request.canvas);

    /// Pixels, a multiple of 8
    width: one usize = |by| by.spec.default_size => Setting {
        name: "width", short: Some('W'), value: "PIXELS", default: "the model's own", conflicts: &["size"], ..Setting::IMAGE
    };

    /// Pixels, a multiple of 8
    height: one usize = |by| by.spec.default_size => Setting {
        name: "height", short: Some('H'), value: "PIXELS", default: "the model's own", conflicts: &["size"], ..Setting::IMAGE
    };

    /// An image that repeats without seams: x (left and right), y (top and bottom) or both
    tiling: maybe Tiling => Setting {
        name: "tiling", hidden_aliases: &["circular"], value: "HOW", words: || vec!["x", "y", "both"], infotext: Some("Tiling"),
        ..Setting::IMAGE
    };

    /// How colours become whole numbers: nearest, or down (A1111, ComfyUI, stable-diffusion.cpp)
    rounding: one PixelRounding = |by| by.like.map_or(PixelRounding::Nearest, PixelRounding::of) => Setting {
        name: "pixel-rounding", value: "HOW", default: "nearest", words: || vec!["nearest", "down"], infotext: Some("Pixel rounding"),
        off: Some("nearest"), follows_like: true, together: Together::Free, ..Setting::IMAGE
    };
}

/// The sides at which an image goes on at its other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiling {
    /// Left and right.
    X,
    /// Top and bottom.
    Y,
    /// All of them.
    Both,
}

impl Value for Tiling {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_lowercase().as_str() {
            "x" => Ok(Self::X),
            "y" => Ok(Self::Y),
            // A1111's word.
            "both" | "true" => Ok(Self::Both),
            _ => Err("give x, y or both".into()),
        }
    }

    fn typed(&self) -> String {
        match self {
            Self::X => "x",
            Self::Y => "y",
            Self::Both => "both",
        }
        .into()
    }

    fn public(&self) -> String {
        if *self == Self::Both { "True".into() } else { self.typed() }
    }
}

impl Request {
    /// At which sides its image goes on at the other side.
    pub fn wrap(&self) -> Wrap {
        let tiling = self.canvas.tiling;
        Wrap { x: matches!(tiling, Some(Tiling::X | Tiling::Both)), y: matches!(tiling, Some(Tiling::Y | Tiling::Both)) }
    }
}

/// How a colour becomes one of 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelRounding {
    /// The nearest one.
    Nearest,
    /// What is behind the point is cut off.
    Down,
}

impl PixelRounding {
    fn of(like: Like) -> Self {
        if like == Like::Diffusers { Self::Nearest } else { Self::Down }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Down => "down",
        }
    }

    fn from_name(name: &str) -> Result<Self, &'static str> {
        match name {
            "nearest" => Ok(Self::Nearest),
            "down" => Ok(Self::Down),
            _ => Err("give nearest or down"),
        }
    }
}

words!(PixelRounding, PixelRounding::from_name, PixelRounding::name);

/// Both sides in one word.
pub(super) const SIZE: &[Setting] = &[Setting {
    name: "size",
    value: "WxH",
    help: "Width and height at once",
    kind: ValueKind::Word,
    example: "768x512",
    conflicts: &["width", "height"],
    access: super::Access {
        read: |draft, values| {
            let size = match values {
                [] => None,
                [value] => Some(parse_size(&value.to_string_lossy()).map_err(|what| (0, what))?),
                values => return Err((1, format!("takes one value, and {} were given", values.len()))),
            };
            draft.set_size(size);
            Ok(())
        },
        ..Setting::IMAGE.access
    },
    ..Setting::IMAGE
}];

impl Draft {
    /// Width and height at once; `None` leaves both to the model.
    pub fn set_size(&mut self, size: Option<(usize, usize)>) {
        (self.canvas.width, self.canvas.height) = size.unzip();
    }
}

/// Reads `768x512`.
///
/// # Errors
/// What to give instead.
pub fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once(['x', 'X', '×']);
    let parsed = parts.and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    parsed.ok_or_else(|| "give width and height like 768x512".into())
}
