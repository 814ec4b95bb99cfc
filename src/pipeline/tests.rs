//! The built-in model: images that repeat, and tiles of the autoencoder.

use super::*;
use crate::models::{Backbone, ModelCall};
use crate::settings::Draft;
use crate::weights::Checkpoint;
use std::path::Path;

fn emoji() -> Pipeline {
    let model = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap();
    Pipeline::load_shared(Arc::new(model), &Device::Cpu, DType::F32, DType::F32, &mut Silent).unwrap()
}

/// Smooth latents, as an image's are.
fn latents(height: usize, width: usize) -> Tensor {
    let value = |i: usize| {
        let (c, y, x) = (i / (height * width), i / width % height, i % width);
        ((x * (c + 2)) as f32 * 0.09).sin() + ((y * (c + 1)) as f32 * 0.13).cos() * 0.7
    };
    Tensor::from_vec((0..4 * height * width).map(value).collect::<Vec<_>>(), (1, 4, height, width), &Device::Cpu).unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f32 {
    let off: Vec<f32> = (a - b).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    off.into_iter().fold(0.0, |worst, x| worst.max(x.abs()))
}

fn rolled(x: &Tensor, rows: usize, columns: usize) -> Tensor {
    x.roll(rows as i32, 2).unwrap().roll(columns as i32, 3).unwrap()
}

#[test]
fn an_image_that_repeats_may_be_cut_anywhere() {
    let pipeline = emoji();
    let (height, width) = (16, 24);
    let noisy = latents(height, width);
    for (wrap, rows, columns) in
        [(Wrap { x: true, y: true }, 8, 12), (Wrap { x: true, y: false }, 0, 12), (Wrap { x: false, y: true }, 8, 0)]
    {
        let context = Tensor::full(0.3f32, (1, 77, pipeline.spec.unet.cross_attention_dim), &Device::Cpu).unwrap();
        let predict = |latents: &Tensor| {
            let call = ModelCall { wrap, ..ModelCall::new(latents.clone(), 500.0, context.clone()) };
            let predict = |unet: &crate::models::DenoisingNetwork, _: &mut dyn Observer| Ok(unet.call(&call)?.prediction);
            pipeline.components.with_unet(&AdapterSet::default(), &mut Silent, predict).unwrap()
        };
        let whole = predict(&noisy);
        assert!(apart(&predict(&rolled(&noisy, rows, columns)), &rolled(&whole, rows, columns)) < 1e-4, "{wrap:?}");
        let decode = |latents: &Tensor, wrap| pipeline.decode_observed(latents, None, wrap, &mut Silent).unwrap();
        let image = decode(&noisy, wrap);
        assert!(apart(&decode(&rolled(&noisy, rows, columns), wrap), &rolled(&image, 8 * rows, 8 * columns)) < 1e-3, "{wrap:?}");
        assert!(apart(&image, &decode(&noisy, Wrap::default())) > 1e-2, "{wrap:?}: the edges are not those of an image that ends there");
    }
}

/// The largest differences of neighbours along a side, across the borders of tiles and elsewhere.
fn across(x: &Tensor, whole: &Tensor, axis: usize, borders: &[usize]) -> (f32, f32) {
    let off = (x - whole).unwrap();
    let side = off.dim(axis).unwrap();
    let (mut at_borders, mut elsewhere) = (0f32, 0f32);
    for i in 1..side {
        let step = apart(&off.narrow(axis, i, 1).unwrap(), &off.narrow(axis, i - 1, 1).unwrap());
        let worst = if borders.contains(&i) { &mut at_borders } else { &mut elsewhere };
        *worst = worst.max(step);
    }
    (at_borders, elsewhere)
}

#[test]
fn tiles_leave_no_border() {
    let pipeline = emoji().with_vae_tiling(VaeTiling::On);
    let plain = emoji().with_vae_tiling(VaeTiling::Off);
    // Tiles of 64 latents begin at 0 and 8 along one side, at 0, 48 and 56 along the other.
    let (height, width) = (72, 120);
    let latents = latents(height, width);
    let (tiled, whole) = (pipeline.decode(&latents).unwrap(), plain.decode(&latents).unwrap());
    let borders =
        |scale: usize| -> [Vec<usize>; 2] { [[8, 64].as_slice(), &[48, 56, 64, 112]].map(|all| all.iter().map(|at| at * scale).collect()) };
    for (axis, borders) in [2, 3].into_iter().zip(borders(8)) {
        let (at_borders, elsewhere) = across(&tiled, &whole, axis, &borders);
        assert!(at_borders <= elsewhere, "decoded, axis {axis}: {at_borders} across borders, {elsewhere} inside");
    }
    let image = whole.clamp(-1.0, 1.0).unwrap();
    let encode = |pipeline: &Pipeline| pipeline.encode(&image, None, Wrap::default(), &mut Silent).unwrap().mean;
    let (tiled, whole) = (encode(&pipeline), encode(&plain));
    assert_eq!(tiled.dims(), [1, 4, height, width]);
    for (axis, borders) in [2, 3].into_iter().zip(borders(1)) {
        let (at_borders, elsewhere) = across(&tiled, &whole, axis, &borders);
        assert!(at_borders <= elsewhere, "encoded, axis {axis}: {at_borders} across borders, {elsewhere} inside");
    }
    // What repeats still does, in tiles.
    let wrap = Wrap { x: true, y: true };
    let decode = |pipeline: &Pipeline, latents: &Tensor| pipeline.decode_observed(latents, None, wrap, &mut Silent).unwrap();
    let shifted = decode(&pipeline, &rolled(&latents, 36, 60));
    let exact = decode(&plain, &latents);
    let off = [apart(&decode(&pipeline, &latents), &exact), apart(&rolled(&shifted, 36 * 8, 60 * 8), &exact)];
    assert!(off[1] < 1.5 * off[0] + 0.05, "{off:?}");
}

#[test]
fn blocks_that_are_read_again_at_every_step_give_the_same_latents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity");
    for (name, dtype) in [("sd15", DType::F32), ("sd15", DType::BF16), ("sdxl", DType::F32)] {
        let model: SharedModel = Arc::new(Checkpoint::open(&folder.join(name)).unwrap());
        let draft = Draft::new("a lighthouse").with(|draft| {
            draft.sampling.steps = Some(3);
            draft.set_size(Some((128, 64)));
        });
        let request = draft.resolve(model.spec()).unwrap();
        let denoised = |pipeline: &Pipeline| {
            let prompt = pipeline.encode_prompt(&request, &mut Silent).unwrap();
            let latents = pipeline.denoise(&BatchItem::of_seeds(&request, &prompt, &[1, 2]), &mut Silent).unwrap();
            latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let whole = denoised(&Pipeline::load_shared(model.clone(), &Device::Cpu, dtype, dtype, &mut Silent).unwrap());
        let streamed = Pipeline::in_turn(model, &Device::Cpu, dtype, dtype).unwrap();
        assert_eq!(denoised(&streamed), whole, "{name}: all blocks stay");
        // No room for anything beside the images.
        streamed.components.make_room(u64::MAX);
        assert_eq!(denoised(&streamed), whole, "{name}: none stays");
    }
}
