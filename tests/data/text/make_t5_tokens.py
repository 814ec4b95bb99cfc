#!/usr/bin/env python3
"""Writes t5_tokens.json: texts and the tokens that transformers' T5TokenizerFast makes of them, the end included, from the vocabulary that
is compiled into the program (src/text/t5_tokenizer.json.gz: T5's public tokenizer.json, Apache-2.0, without its white space).

    pip install "transformers<5"
    python make_t5_tokens.py
"""
import gzip, json, pathlib, random, tempfile
from transformers import T5TokenizerFast

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = ["", " ", "a red apple", "a photo of an astronaut riding a horse on mars", "Ünïcode café, 3 cats & a dog!! (sitting)", "  UPPER   case\tand\nlines  ",
         "don't you're we'll I'm they'd it's", "4k, 8k, 1920x1080, f/1.8", "“curly” ‘quotes’ — dashes … dots", "ﬁne ﬂour ＦＵＬＬ　width", "cats &amp; dogs &lt;3",
         "東京の夜景 ネオン", "Москва зимой", "مرحبا بالعالم", "한국의 가을", "🍎 an apple emoji 👩‍👩‍👧", "e\u0301 combining acute", "zero\u200bwidth", "a_b-c+d=e", "!!!",
         "</s> inside", "<pad>x<unk>", "<extra_id_7> left", "(masterpiece:1.2), [bad], {x}", "naïve coöperation Straße ǅ",
         "supercalifragilisticexpialidocious antidisestablishmentarianism", "x" * 60, "ΑΣ ΟΔΥΣΣΕΥΣ", "İstanbul", "½ ² ① Ⅷ ™ ℃", "\u00a0no-break\u3000ideographic", "▁ already",
         "ﷺ ﬃ ĳ ŉ", "\ufeffmark", "a very long prompt, " * 30, "line\r\nbreak", "\u0000nul\u0007bell", "ｶﾀｶﾅ ｶﾞ", "ไทย ภาษา", "हिन्दी में"]
WORDS = ["cat", "dog", "Haus", "été", "naïve", "città", "mañana", "œuvre", "Ærø", "São", "žluťoučký", "Łódź", "δέλτα", "река", "雨", "ねこ", "봄", "🙂", "½", "№5", "ﬀ", "１２３", "…", "—", "\u200d", "_", "(", ")", "10%", "R2-D2"]


def main():
    draw = random.Random(5)
    texts = TEXTS + [draw.choice(["", " "]).join(draw.choice(WORDS) + draw.choice([" ", "", ", ", "\t"]) for _ in range(draw.randint(2, 9))) for _ in range(200 - len(TEXTS))]
    with tempfile.TemporaryDirectory() as tmp:
        file = pathlib.Path(tmp) / "tokenizer.json"
        file.write_bytes(gzip.open(HERE.parents[2] / "src/text/t5_tokenizer.json.gz").read())
        tokenizer = T5TokenizerFast(tokenizer_file=str(file))
        rows = [[text, tokenizer(text, add_special_tokens=True).input_ids] for text in texts]
    (HERE / "t5_tokens.json").write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows) + "\n]\n")


if __name__ == "__main__": main()
