#!/usr/bin/env python3
"""Writes what transformers' tokenizers make of some texts, for `tests/numerics/tokenizer.rs`.

    scripts/with-libtorch --reference python scripts/export_tokens.py fixtures/tiny fixtures/tokens.json
"""

import json
import pathlib
import shutil
import sys
import tempfile
import unicodedata

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
    "next\x85line\x85 \x85and \x1f separators\x1c",
    "LATIN Ǆ ΑΣ İSTANBUL ẞ and a\u0315\u0300\u05ae b",
]
MARKS = ["<extra_id_0>", "<extra_id_99>", "<extra_id_100>", "</s>", "<pad>", "<unk>", "<|endoftext|>", "<|startoftext|>"]
MARKS += [mark.upper() for mark in MARKS]
AROUND = ["", " ", "  ", "a", "\n", "\x85", "\u3000", ",", "'s"]
LENGTHS = {"clip": [77, 16], "t5": [256, 512, 16], "t5 from spiece.model": [256, 16]}


def short_texts() -> list[str]:
    """Marks with all sorts of characters around them, and every separator and control character between words."""
    marks = [f"red{around}{mark}{around}circle {mark}" for mark in MARKS for around in AROUND]
    rare = {0x378, 0xE000, 0xFFFE, 0xFFFF, 0xF0000, 0x10FFFF}  # unassigned ones and those for private use
    letters = map(chr, [*range(0xD800), *range(0xE000, 0x110000)])
    kinds = [c for c in letters if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc", "Cf") or ord(c) in rare]
    return marks + [f"a{c}red {c} {c}b" for c in kinds]


def main() -> None:
    model, out = sys.argv[1:3]
    tokenizers = {
        "clip": CLIPTokenizer.from_pretrained(f"{model}/tokenizer"),
        "t5": T5Tokenizer.from_pretrained(f"{model}/tokenizer_2"),
    }
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(pathlib.Path(model) / "tokenizer_2/spiece.model", alone)
        tokenizers["t5 from spiece.model"] = T5Tokenizer.from_pretrained(alone)
    cases = []
    for name, tokenizer in tokenizers.items():
        texts = [(length, text) for length in LENGTHS[name] for text in TEXTS]
        texts = [(length, text, "max_length") for length, text in texts]
        for length, text, padding in texts + [(40, text, "do_not_pad") for text in short_texts()]:
            ids = tokenizer(text, truncation=True, max_length=length, padding=padding).input_ids
            cases.append({"tokenizer": name, "length": length, "text": text, "ids": ids})
    with open(out, "w") as file:
        json.dump(cases, file, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
