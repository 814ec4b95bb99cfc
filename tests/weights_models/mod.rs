//! Small models of every family in the original layout, named here by hand: independent of the tables that they test.

#![allow(dead_code, reason = "each test file uses a part")]

use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;

/// Names and shapes.
pub(crate) type Shapes = Vec<(String, Vec<usize>)>;

/// What a model is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) in_channels: usize,
    /// Channels and transformer depth, from fine to coarse.
    pub(crate) levels: Vec<(usize, usize)>,
    pub(crate) mid_depth: Option<usize>,
    pub(crate) blocks: usize,
    pub(crate) linear: bool,
    pub(crate) context: usize,
    pub(crate) label: Option<usize>,
    pub(crate) text: Vec<Text>,
}

#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) prefix: &'static str,
    pub(crate) open_clip: bool,
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) projection: Option<usize>,
}

pub(crate) const VOCABULARY: usize = 96;

pub(crate) fn sd1() -> Plan {
    let text = Text { prefix: "cond_stage_model.transformer.text_model.", open_clip: false, width: 768, layers: 2, projection: None };
    Plan {
        in_channels: 4,
        levels: vec![(32, 1), (64, 1), (64, 1), (64, 0)],
        mid_depth: Some(1),
        blocks: 2,
        linear: false,
        context: 768,
        label: None,
        text: vec![text],
    }
}

pub(crate) fn sd2() -> Plan {
    let text = Text { prefix: "cond_stage_model.model.", open_clip: true, width: 1024, layers: 3, projection: Some(1024) };
    Plan { levels: vec![(64, 1), (128, 1), (128, 1), (128, 0)], linear: true, context: 1024, text: vec![text], ..sd1() }
}

pub(crate) fn sdxl() -> Plan {
    let l = Text { prefix: "conditioner.embedders.0.transformer.text_model.", open_clip: false, width: 768, layers: 2, projection: None };
    let g = Text { prefix: "conditioner.embedders.1.model.", open_clip: true, width: 1280, layers: 2, projection: Some(1280) };
    Plan {
        levels: vec![(64, 0), (128, 2), (192, 3)],
        mid_depth: Some(3),
        linear: true,
        context: 2048,
        label: Some(2816),
        text: vec![l, g],
        ..sd1()
    }
}

pub(crate) fn refiner() -> Plan {
    let g = Text { prefix: "conditioner.embedders.0.model.", open_clip: true, width: 1280, layers: 2, projection: Some(1280) };
    Plan {
        levels: vec![(64, 0), (128, 2), (192, 2), (192, 0)],
        mid_depth: Some(2),
        context: 1280,
        label: Some(2560),
        text: vec![g],
        ..sdxl()
    }
}

struct Names(Shapes);

impl Names {
    fn put(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    fn layer(&mut self, name: &str, weight: &[usize]) {
        self.put(format!("{name}.weight"), weight);
        self.put(format!("{name}.bias"), &weight[..1]);
    }

    fn resnet(&mut self, at: &str, input: usize, output: usize, time: usize) {
        self.layer(&format!("{at}.in_layers.0"), &[input]);
        self.layer(&format!("{at}.in_layers.2"), &[output, input, 3, 3]);
        self.layer(&format!("{at}.emb_layers.1"), &[output, time]);
        self.layer(&format!("{at}.out_layers.0"), &[output]);
        self.layer(&format!("{at}.out_layers.3"), &[output, output, 3, 3]);
        if input != output {
            self.layer(&format!("{at}.skip_connection"), &[output, input, 1, 1]);
        }
    }

    fn transformer(&mut self, at: &str, c: usize, depth: usize, plan: &Plan) {
        let projection: &[usize] = if plan.linear { &[c, c] } else { &[c, c, 1, 1] };
        self.layer(&format!("{at}.norm"), &[c]);
        self.layer(&format!("{at}.proj_in"), projection);
        self.layer(&format!("{at}.proj_out"), projection);
        for d in 0..depth {
            let at = format!("{at}.transformer_blocks.{d}");
            for (attention, context) in [("attn1", c), ("attn2", plan.context)] {
                self.put(format!("{at}.{attention}.to_q.weight"), &[c, c]);
                self.put(format!("{at}.{attention}.to_k.weight"), &[c, context]);
                self.put(format!("{at}.{attention}.to_v.weight"), &[c, context]);
                self.layer(&format!("{at}.{attention}.to_out.0"), &[c, c]);
            }
            self.layer(&format!("{at}.ff.net.0.proj"), &[8 * c, c]);
            self.layer(&format!("{at}.ff.net.2"), &[c, 4 * c]);
            for norm in ["norm1", "norm2", "norm3"] {
                self.layer(&format!("{at}.{norm}"), &[c]);
            }
        }
    }

    fn unet(&mut self, plan: &Plan) {
        let p = "model.diffusion_model";
        let first = plan.levels[0].0;
        let time = 4 * first;
        self.layer(&format!("{p}.time_embed.0"), &[time, first]);
        self.layer(&format!("{p}.time_embed.2"), &[time, time]);
        if let Some(label) = plan.label {
            self.layer(&format!("{p}.label_emb.0.0"), &[time, label]);
            self.layer(&format!("{p}.label_emb.0.2"), &[time, time]);
        }
        self.layer(&format!("{p}.input_blocks.0.0"), &[first, plan.in_channels, 3, 3]);
        let (mut n, mut c, mut skips) = (1, first, vec![first]);
        for (i, &(channels, depth)) in plan.levels.iter().enumerate() {
            for _ in 0..plan.blocks {
                self.resnet(&format!("{p}.input_blocks.{n}.0"), c, channels, time);
                if depth > 0 {
                    self.transformer(&format!("{p}.input_blocks.{n}.1"), channels, depth, plan);
                }
                c = channels;
                skips.push(c);
                n += 1;
            }
            if i + 1 < plan.levels.len() {
                self.layer(&format!("{p}.input_blocks.{n}.0.op"), &[c, c, 3, 3]);
                skips.push(c);
                n += 1;
            }
        }
        if let Some(depth) = plan.mid_depth {
            self.resnet(&format!("{p}.middle_block.0"), c, c, time);
            if depth > 0 {
                self.transformer(&format!("{p}.middle_block.1"), c, depth, plan);
                self.resnet(&format!("{p}.middle_block.2"), c, c, time);
            }
        }
        n = 0;
        for (i, &(channels, depth)) in plan.levels.iter().enumerate().rev() {
            for j in 0..=plan.blocks {
                self.resnet(&format!("{p}.output_blocks.{n}.0"), c + skips.pop().unwrap(), channels, time);
                if depth > 0 {
                    self.transformer(&format!("{p}.output_blocks.{n}.1"), channels, depth, plan);
                }
                c = channels;
                if i > 0 && j == plan.blocks {
                    let slot = if depth > 0 { 2 } else { 1 };
                    self.layer(&format!("{p}.output_blocks.{n}.{slot}.conv"), &[c, c, 3, 3]);
                }
                n += 1;
            }
        }
        self.layer(&format!("{p}.out.0"), &[first]);
        self.layer(&format!("{p}.out.2"), &[4, first, 3, 3]);
    }

    fn vae_resnet(&mut self, at: &str, input: usize, output: usize) {
        self.layer(&format!("{at}.norm1"), &[input]);
        self.layer(&format!("{at}.conv1"), &[output, input, 3, 3]);
        self.layer(&format!("{at}.norm2"), &[output]);
        self.layer(&format!("{at}.conv2"), &[output, output, 3, 3]);
        if input != output {
            self.layer(&format!("{at}.nin_shortcut"), &[output, input, 1, 1]);
        }
    }

    fn vae_mid(&mut self, at: &str, c: usize) {
        self.vae_resnet(&format!("{at}.block_1"), c, c);
        self.vae_resnet(&format!("{at}.block_2"), c, c);
        self.layer(&format!("{at}.attn_1.norm"), &[c]);
        for name in ["q", "k", "v", "proj_out"] {
            self.layer(&format!("{at}.attn_1.{name}"), &[c, c, 1, 1]);
        }
    }

    fn vae(&mut self) {
        let p = "first_stage_model";
        let levels = [32, 32, 64, 64];
        self.layer(&format!("{p}.quant_conv"), &[8, 8, 1, 1]);
        self.layer(&format!("{p}.post_quant_conv"), &[4, 4, 1, 1]);
        self.layer(&format!("{p}.encoder.conv_in"), &[32, 3, 3, 3]);
        let mut c = 32;
        for (i, channels) in levels.into_iter().enumerate() {
            for j in 0..2 {
                self.vae_resnet(&format!("{p}.encoder.down.{i}.block.{j}"), c, channels);
                c = channels;
            }
            if i < 3 {
                self.layer(&format!("{p}.encoder.down.{i}.downsample.conv"), &[c, c, 3, 3]);
            }
        }
        self.vae_mid(&format!("{p}.encoder.mid"), 64);
        self.layer(&format!("{p}.encoder.norm_out"), &[64]);
        self.layer(&format!("{p}.encoder.conv_out"), &[8, 64, 3, 3]);
        self.layer(&format!("{p}.decoder.conv_in"), &[64, 4, 3, 3]);
        self.vae_mid(&format!("{p}.decoder.mid"), 64);
        for (i, channels) in levels.into_iter().enumerate().rev() {
            for j in 0..3 {
                self.vae_resnet(&format!("{p}.decoder.up.{i}.block.{j}"), c, channels);
                c = channels;
            }
            if i > 0 {
                self.layer(&format!("{p}.decoder.up.{i}.upsample.conv"), &[c, c, 3, 3]);
            }
        }
        self.layer(&format!("{p}.decoder.norm_out"), &[32]);
        self.layer(&format!("{p}.decoder.conv_out"), &[3, 32, 3, 3]);
    }

    fn text(&mut self, text: &Text) {
        let (p, w, inner) = (text.prefix, text.width, 64);
        if text.open_clip {
            self.put(format!("{p}token_embedding.weight"), &[VOCABULARY, w]);
            self.put(format!("{p}positional_embedding"), &[77, w]);
            self.layer(&format!("{p}ln_final"), &[w]);
            if let Some(projection) = text.projection {
                self.put(format!("{p}text_projection"), &[w, projection]);
            }
            self.put(format!("{p}logit_scale"), &[]);
        } else {
            self.put(format!("{p}embeddings.token_embedding.weight"), &[VOCABULARY, w]);
            self.put(format!("{p}embeddings.position_embedding.weight"), &[77, w]);
            self.layer(&format!("{p}final_layer_norm"), &[w]);
        }
        for i in 0..text.layers {
            if text.open_clip {
                let at = format!("{p}transformer.resblocks.{i}");
                self.layer(&format!("{at}.ln_1"), &[w]);
                self.layer(&format!("{at}.ln_2"), &[w]);
                self.put(format!("{at}.attn.in_proj_weight"), &[3 * w, w]);
                self.put(format!("{at}.attn.in_proj_bias"), &[3 * w]);
                self.layer(&format!("{at}.attn.out_proj"), &[w, w]);
                self.layer(&format!("{at}.mlp.c_fc"), &[inner, w]);
                self.layer(&format!("{at}.mlp.c_proj"), &[w, inner]);
            } else {
                let at = format!("{p}encoder.layers.{i}");
                self.layer(&format!("{at}.layer_norm1"), &[w]);
                self.layer(&format!("{at}.layer_norm2"), &[w]);
                for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    self.layer(&format!("{at}.self_attn.{name}"), &[w, w]);
                }
                self.layer(&format!("{at}.mlp.fc1"), &[inner, w]);
                self.layer(&format!("{at}.mlp.fc2"), &[w, inner]);
            }
        }
    }
}

/// The names and shapes of a model in the original layout.
pub(crate) fn original(plan: &Plan) -> Shapes {
    let mut names = Names(Vec::new());
    names.unet(plan);
    names.vae();
    plan.text.iter().for_each(|text| names.text(text));
    names.0
}

/// f16 numbers of either sign, different in every tensor, of `exponent` (a power of two, as f16's bits) and any mantissa.
pub(crate) fn numbers(name: &str, count: usize, exponent: u16) -> Vec<u8> {
    let mut state = name.bytes().fold(0x2545_f491_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as u16 & 0x83ff) | exponent
    };
    (0..count).flat_map(|_| next().to_le_bytes()).collect()
}

/// A safetensors file of f16 tensors, by the format's own writer, with numbers from 1/32 to 1/16.
pub(crate) fn file(shapes: &Shapes, metadata: &[(&str, &str)]) -> Vec<u8> {
    file_of_size(shapes, metadata, 0x2800)
}

/// As [`file`], with other numbers.
pub(crate) fn file_of_size(shapes: &Shapes, metadata: &[(&str, &str)], exponent: u16) -> Vec<u8> {
    let data: Vec<Vec<u8>> = shapes.iter().map(|(name, shape)| numbers(name, shape.iter().product(), exponent)).collect();
    let view =
        |((name, shape), data): (&(String, Vec<usize>), _)| (name.clone(), TensorView::new(Dtype::F16, shape.clone(), data).unwrap());
    let tensors: Vec<(String, TensorView<'_>)> = shapes.iter().zip(data.iter().map(Vec::as_slice)).map(view).collect();
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize(tensors, (!metadata.is_empty()).then_some(metadata)).unwrap()
}
