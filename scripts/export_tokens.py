#!/usr/bin/env python3
"""Writes what transformers' tokenizers make of some texts, for `tests/tokenizer.rs`.

    scripts/with-libtorch --reference python scripts/export_tokens.py fixtures/tiny fixtures/tokens.json
"""

import json
import sys

from transformers import CLIPTokenizer, T5Tokenizer

TEXTS = [
    "",
    " ",
    "a red circle on a blue background",
    "an orange triangle on a yellow background",
    "A RED Circle, on a Blue background!",
    "  two  spaces\tand a tab\nand a line  ",
    "it's 42 o'clock; they're here",
    "naïve café Ünïcödé ß Œuvre",
    "ｆｕｌｌ－ｗｉｄｔｈ ①② ﬁne ½",
    "日本語のテキスト 中文 한국어",
    "emoji 🙂👩‍👩‍👧 and e\u0301 combining",
    "<|endoftext|> inside </s> and <pad> marks",
    "zero\u200bwidth \u00a0 no-break \ufeff bom",
    "hyphen-ated under_score slash/slash a.b.c (x) [y] {z} #tag @at $5 50%",
    "x" * 300,
    "a red circle " * 60,
]
LENGTHS = {"clip": [77, 16], "t5": [256, 512, 16]}


def main() -> None:
    model, out = sys.argv[1:3]
    tokenizers = {
        "clip": CLIPTokenizer.from_pretrained(f"{model}/tokenizer"),
        "t5": T5Tokenizer.from_pretrained(f"{model}/tokenizer_2"),
    }
    cases = []
    for name, tokenizer in tokenizers.items():
        for length in LENGTHS[name]:
            for text in TEXTS:
                ids = tokenizer(text, truncation=True, max_length=length, padding="max_length").input_ids
                cases.append({"tokenizer": name, "length": length, "text": text, "ids": ids})
    with open(out, "w") as file:
        json.dump(cases, file, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
