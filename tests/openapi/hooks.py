"""What Schemathesis sends, made cheap to draw, and consistent where the document cannot say how fields go together."""

import struct
import zlib

import schemathesis

# In place of a file: values that the generator makes are compared and printed, and files would not bear it.
PICTURE = "a picture"
# A step more, or a picture more, is no other way through the server.
MOST = {"n": 2, "num_inference_steps": 2}


def png(side, pixel):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(pixel) * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Transparent, so that as a mask it chooses everything.
FILE = png(64, [200, 30, 30, 0])


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@schemathesis.hook
def before_load_schema(context, schema):
    """Pictures become a word, and what several fields must have together is seen to below: the generator knows no such
    rules beside files."""
    edit = schema["components"]["schemas"]["Edit"]
    edit.pop("allOf", None)
    content = schema["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]
    content.pop("encoding")

    def replace(value):
        if isinstance(value, dict):
            if value.get("format") == "binary":
                value.clear()
                value.update({"type": "string", "enum": [PICTURE]})
            for part in value.values():
                replace(part)
        elif isinstance(value, list):
            for part in value:
                replace(part)

    replace(edit)


def consistent(body):
    """The same, in few steps, and without contradictions between fields that are right in themselves."""
    body = dict(body)
    for name, most in MOST.items():
        if is_number(body.get(name)) and most < body[name] <= 10 * most:
            body[name] = most
    if is_number(body.get("num_inference_steps")) and 2 < body["num_inference_steps"] <= 100:
        body["num_inference_steps"] = 2
    if isinstance(body.get("size"), str) and body["size"].isascii() and "x" in body["size"]:
        width, _, height = body["size"].partition("x")
        sides = [int(side) for side in (width, height) if side.isdigit() and len(side) <= 4]
        if len(sides) == 2 and all(64 <= side <= 2048 and side % 16 == 0 for side in sides):
            body["size"] = "64x80"
    if body.get("stream") is True and body.get("response_format") == "url":
        body["response_format"] = "b64_json"
    if is_number(body.get("true_cfg_scale")) and body["true_cfg_scale"] > 1 and body.get("negative_prompt") is None:
        body["negative_prompt"] = ""
    if is_number(body.get("variation_seed")) and body.get("variation_strength") is None:
        body["variation_strength"] = 0.5
    sigmas = body.get("sigmas")
    sigmas = sigmas if isinstance(sigmas, list) else [sigmas]
    if all(is_number(sigma) and 0 <= sigma <= 1 for sigma in sigmas) and len(sigmas) <= 101:
        body["sigmas"] = [1, 0.5]
        for name in ("schedule", "shift", "num_inference_steps"):
            body.pop(name, None)
    if body.get("schedule") == "linear" and isinstance(body.get("shift"), list):
        body["schedule"] = "shifted"
    if body.get("keep_size") is True or (isinstance(body.get("image"), list) and len(body["image"]) > 1):
        if body.get("as") in (None, "start"):
            body["as"] = "reference"
    if body.get("as") == "reference":
        if body.get("mask") == PICTURE:
            del body["mask"]
        # A reference is made as large as Kontext wants it, and without a size the picture as large.
        if body.get("keep_size") in (None, False):
            body["keep_size"] = True
        if body.get("size") in (None, "auto"):
            body["size"] = "64x80"
    return body


def with_files(value):
    if isinstance(value, list):
        return [with_files(part) for part in value]
    return FILE if value == PICTURE else value


@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, dict):
        body = consistent(case.body)
        is_form = case.path.endswith("/edits")
        case.body = {name: with_files(value) for name, value in body.items()} if is_form else body
