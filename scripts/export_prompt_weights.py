#!/usr/bin/env python3
"""Writes which tokens with which weights ComfyUI makes of some prompts, for `tests/numerics/tokenizer.rs`.

    scripts/with-libtorch --reference python scripts/export_prompt_weights.py COMFYUI fixtures/tiny fixtures/prompt_weights.json

COMFYUI is a checkout of ComfyUI; the table was written with commit a125cd84b054. Of ComfyUI only `comfy/sd1_clip.py` is run,
with the tokenizers of the small model. A prompt in which no group has a number is text to the letter in this project: its
tokens are those of transformers' tokenizers. A group has a number where one follows its last colon, also in `(:1.3)`, whose
number ComfyUI does not take for a weight.
"""

import builtins
import importlib.util
import json
import logging
import pathlib
import sys
import tempfile
import types

from transformers import CLIPTokenizer, T5TokenizerFast

PROMPTS = [
    # Groups without a number, which make no weights by themselves.
    "a red circle",
    "a (red) circle",
    "((red)) circle",
    "a photo (35 mm), 12:30",
    "(a:b) (c:)",
    r"a \(red:1.3\) circle",
    "(a:1.3",
    "a) (red:1.3)",
    "(a (b:1.3) c",
    "(red:1,3) circle",
    "(red:0x2) circle",
    "(red:1__0) circle",
    "(red:1 2) circle",
    "(red:½) circle",
    "(:) circle",
    # Numbers.
    "a (red:1.3) circle",
    "a (red:1.30) circle",
    "a (red:1) circle",
    "a (red:0) circle",
    "a (red:-1) circle",
    "a (red:1.) circle",
    "a (red:.5) circle",
    "a (red:1e1) circle",
    "a (red: 1.2 ) circle",
    "a (red:+1.2) circle",
    "a (red:nan) circle",
    "a (red:inf) circle",
    "a (red:-Infinity) circle",
    "a (red:1_000) circle",
    "a (red:٢.٥) circle",
    "a (red:１２) circle",
    "a (red:\u00a01.2\u2003) circle",
    "a (red:1e400) circle",
    "on a blue background (aspect ratio 16:9)",
    # Groups within groups and beside each other.
    "((red)) circle on (blue:1.0)",
    "(red:1.21) circle on (blue:1.0)",
    "(a (red:2) circle:0.3)",
    "(((red:1.2))) circle",
    "((red):1.2) circle",
    "((red:1.2):0.5) circle",
    "(red:1.2) circle, (blue) background",
    "foo ((((red (circle:666) on:100)))) blue",
    "foo ((((red (circle:666) on):100))) blue",
    "(a:b:1.2) circle",
    "(red, circle:1.4), blue,(background:0.9)",
    "()(red:1.2)",
    "( ) (red:1.2) (  )",
    "(:1.2) (red:1.1)",
    "(:1.2) red circle",
    "(:1.2:1.1) red circle",
    "(red:1.2)(circle:1.2)",
    "(red:1.2)",
    "circle (red:1.2)",
    "(red:1.2) circle",
    # Words that groups cut.
    "red(circle:1.4) on blue",
    "red (circle:1.4) on blue",
    "(re:1.1)d (circ:1.2)le",
    "bl(ue back:1.3)ground",
    "a red  (  circle  :1.2)  on",
    "a red\n(circle:1.2)\non blue",
    "a red\t(circle:1.2)\r\non\u00a0blue\x85background",
    # Escapes, and parentheses that do not match.
    r"(red \(circle\):1.2) on blue",
    r"\((red:1.2)\)",
    r"(red\:1.2) circle",
    r"red\circle (blue:1.2) \\ \n",
    r"(red\\:1.2) \\(circle) \\\(on\\\)",
    "(red:1.2) (circle",
    "(red:1.2) circle) on (blue:1.3) background",
    "(red:1.2)) circle ((on)) blue",
    "((red:1.2) circle",
    "((red:1.2)",
    "(((red:1.2) (circle)",
    ")(red:1.2)(",
    ") (red:1.2) ((circle:1.3)",
    # Words with a meaning elsewhere.
    "a red circle BREAK (on a blue background:1.2)",
    "[red] {circle} <lora:x:0.8> (blue:1.2) [a|b] red:1.2",
    "a red circle, embedding:dust, on (blue:1.2)",
    "(embedding:dust:1.2) a red circle",
    "a red circle\nembedding:dust on (blue:1.2)",
    "noembedding:dust (blue:1.2)",
    "</s> <pad> (red </s>:1.2) <|endoftext|> circle",
    # Other scripts.
    "ein (großes:1.2) Ünïcödé Œuvre",
    "emoji (🙂👩‍👩‍👧:1.3) circle",
    "日本語(テキスト:1.2)中文",
    "（red:1.2） (circle:1.1)",
    "zero\u200bwidth (red:1.2)\ufeff",
    # What does not fit: CLIP reads 77 tokens at once.
    "a red circle on a blue background " * 15 + "(red circle:1.2)",
    "(a red circle on a blue background:1.3), " * 12,
    "(a red circle:1.3) " * 30,
    "red " * 70 + "(circle on blue:1.2) (white:0.8)",
    "red " * 70 + "(a circle on a blue background, a cross:1.2) (white:0.8)",
    "red " * 75 + "(circle:1.2)",
    "(red:1.2) " + "red " * 74 + "(circle:1.2)",
    "red " * 300 + "(circle:1.2)",
]


def load_sd1_clip(comfyui: pathlib.Path) -> types.ModuleType:
    """ComfyUI's module, without the others that it imports: they need packages of their own, and no tokenizer needs them."""
    for name in ["comfy", "comfy.ops", "comfy.model_management", "comfy.clip_model"]:
        sys.modules[name] = types.ModuleType(name)
    for name in ["ops", "model_management", "clip_model"]:
        setattr(sys.modules["comfy"], name, sys.modules[f"comfy.{name}"])
    sys.modules["comfy.clip_model"].CLIPTextModel = None
    spec = importlib.util.spec_from_file_location("comfy.sd1_clip", comfyui / "comfy/sd1_clip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    comfyui, model, out = map(pathlib.Path, sys.argv[1:4])
    sd1_clip = load_sd1_clip(comfyui)
    numbers = []

    def noted_float(text: str) -> float:
        numbers.append(builtins.float(text))
        return numbers[-1]

    def noted_groups(text: str) -> list[str]:
        groups = parse_parentheses(text)
        for group in groups:
            if group.startswith("(:") and group.endswith(")") and ":" not in group[2:]:
                try:
                    noted_float(group[2:-1])
                except ValueError:
                    pass
        return groups

    parse_parentheses = sd1_clip.parse_parentheses
    sd1_clip.float, sd1_clip.parse_parentheses = noted_float, noted_groups
    logging.disable()
    with tempfile.TemporaryDirectory() as no_embeddings:
        # As `FluxTokenizer` has them.
        clip = sd1_clip.SDTokenizer(model / "tokenizer", embedding_directory=no_embeddings)
        t5 = sd1_clip.SDTokenizer(
            model / "tokenizer_2", embedding_directory=no_embeddings, pad_with_end=False, embedding_size=4096,
            embedding_key="t5xxl", tokenizer_class=T5TokenizerFast, has_start_token=False, pad_to_max_length=False,
            max_length=99999999, min_length=256,
        )
        plain = {
            "clip": CLIPTokenizer.from_pretrained(model / "tokenizer"),
            "t5": T5TokenizerFast.from_pretrained(model / "tokenizer_2"),
        }
        cases = []
        for prompt in PROMPTS:
            numbers.clear()
            sections = {"clip": clip.tokenize_with_weights(prompt), "t5": t5.tokenize_with_weights(prompt)}
            case = {"prompt": prompt, "weighted": bool(numbers)}
            for name in sections:
                if numbers:
                    tokens = [token for token, _ in sections[name][0]]
                    # As text: JSON has neither NaN nor infinity.
                    weights = [repr(builtins.float(weight)) for _, weight in sections[name][0]]
                    length = max(len(tokens), 512) if name == "t5" else len(tokens)
                    pads = length - len(tokens)
                    case[name] = {"ids": tokens + pads * [0], "weights": weights + pads * ["1.0"]}
                else:
                    length = 512 if name == "t5" else 77
                    ids = plain[name](prompt, truncation=True, max_length=length, padding="max_length").input_ids
                    case[name] = {"ids": ids, "weights": length * ["1.0"]}
                # The padding at the end, and the weights of 1 with it, are left out.
                used = length
                while used > 1 and case[name]["ids"][used - 1] == case[name]["ids"][-1] == case[name]["ids"][used - 2]:
                    used -= 1
                case[name] = {"length": length, "ids": case[name]["ids"][:used], "weights": case[name]["weights"][:used]}
            cases.append(case)
    with open(out, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")
    print(f"{len(cases)} prompts, {sum(case['weighted'] for case in cases)} of them with weights")


if __name__ == "__main__":
    main()
