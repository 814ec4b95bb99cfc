#!/usr/bin/env python3
"""Writes clip_tokens.json: texts and the tokens that transformers' CLIPTokenizer (with ftfy) makes of them, start and end included:
first with "<|endoftext|>" as the padding token, then with "!" (which makes every "!" in a text a special token).

    pip install "transformers<5" ftfy open-clip-torch
    python make_clip_tokens.py
"""
import gzip, json, os, pathlib, tempfile
import open_clip
from open_clip.tokenizer import bytes_to_unicode
from transformers import CLIPTokenizer

TEXTS = ["", "a red apple", "a photo of an astronaut riding a horse on mars", "Ünïcode café, 3 cats & a dog!! (sitting)", "  UPPER   case\tand\nlines  ",
         "don't you're we'll I'm they'd it's", "4k, 8k, 1920x1080, f/1.8", "“curly” ‘quotes’ — dashes … dots", "ﬁne ﬂour ＦＵＬＬ　width", "cats &amp; dogs &lt;3",
         "東京の夜景 ネオン", "Москва зимой", "مرحبا بالعالم", "한국의 가을", "🍎 an apple emoji 👩‍👩‍👧", "e\u0301 combining acute", "zero\u200bwidth", "a_b-c+d=e", "!!!", "<|endoftext|> inside",
         "(masterpiece:1.2), [bad], {x}", "naïve coöperation Straße ǅ", "supercalifragilisticexpialidocious antidisestablishmentarianism", "x" * 60, "ΑΣ ΟΔΥΣΣΕΥΣ", "İstanbul", "½ ² ① Ⅷ",
         "a very long prompt, " * 30]

merges = gzip.open(os.path.join(os.path.dirname(open_clip.__file__), "bpe_simple_vocab_16e6.txt.gz")).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
letters = list(bytes_to_unicode().values())
vocab = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
with tempfile.TemporaryDirectory() as tmp:
    tmp = pathlib.Path(tmp)
    json.dump({t: i for i, t in enumerate(vocab)}, open(tmp / "vocab.json", "w"), ensure_ascii=False)
    (tmp / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    of = [CLIPTokenizer(tmp / "vocab.json", tmp / "merges.txt", pad_token=pad, model_max_length=77) for pad in ("<|endoftext|>", "!")]
    assert of[0].fix_text is not None, "install ftfy"
    out = [[t, *(tokenizer(t, truncation=True, max_length=77).input_ids for tokenizer in of)] for t in TEXTS]
(pathlib.Path(__file__).parent / "clip_tokens.json").write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in out) + "\n]\n")
