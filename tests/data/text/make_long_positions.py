#!/usr/bin/env python3
"""Makes what transformers computes with a text encoder of 248 positions, as LongCLIP's, from the small model beside the parity tests.

    pip install torch transformers
    python make_long_positions.py

long_positions.safetensors:
    position_embedding  (248, 32), which takes the place of the model's 77 rows
    hidden              (248, 32), the state of the text in long_positions.txt after the final norm, computed in f32
    pooled              (32,)
"""
import pathlib
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "parity/sd15"
POSITIONS = 248
TEXT = " ".join(f"a {colour} {thing}," for thing in ["apple", "cat", "table", "hat"] for colour in ["red", "old", "tin", "big", "wet"])

torch.manual_seed(0)
config = CLIPTextConfig.from_pretrained(MODEL / "text_encoder")
model = CLIPTextModel.from_pretrained(MODEL / "text_encoder", torch_dtype=torch.float32)
state = model.state_dict()
# Transformers 5 leaves `text_model.` out of the names.
name = next(name for name in state if name.endswith("embeddings.position_embedding.weight"))
state[name] = torch.randn(POSITIONS, config.hidden_size) * 0.5
config.max_position_embeddings = POSITIONS
longer = CLIPTextModel(config).eval()
longer.load_state_dict({name: x for name, x in state.items() if not name.endswith("position_ids")}, strict=False)
tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer", model_max_length=POSITIONS)
ids = tokenizer(TEXT, padding="max_length", truncation=True, return_tensors="pt").input_ids
length = int((ids[0] == ids[0, -1]).nonzero()[0])
assert 77 < length < POSITIONS - 1, f"a text of {length} tokens shows nothing"
with torch.no_grad():
    out = longer(ids)
save_file({"position_embedding": state[name], "hidden": out.last_hidden_state[0].contiguous(), "pooled": out.pooler_output[0].contiguous()},
          HERE / "long_positions.safetensors")
(HERE / "long_positions.txt").write_text(TEXT)
