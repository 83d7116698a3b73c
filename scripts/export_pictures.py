#!/usr/bin/env python3
"""Writes fixtures/pictures/decoded.safetensors: small picture files, and what Pillow reads of them.

For each file `NAME` there are its bytes and, as `NAME.rgb`, its pixels, set upright by `ImageOps.exif_transpose` and put on
white. JPEGs of other samplings than Pillow writes are OpenCV's.
"""

import argparse
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file

RANDOM = np.random.default_rng(16)
WIDTH, HEIGHT = 13, 9


def noise(height, width, *channels):
    return RANDOM.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def saved(picture, format, **options):
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, format, **options)
    return file.getvalue()


def read(file):
    """As it is to be seen."""
    picture = Image.open(io.BytesIO(file))
    try:
        picture = ImageOps.exif_transpose(picture)
    except SyntaxError:
        pass  # EXIF without its header, of which Pillow says that it is none.
    if picture.mode in ("P", "LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255,) * 4), picture)
    return np.array(picture.convert("RGB"))


def jpegs():
    """Of every width up to 17, in every sampling: where chroma has few samples, libjpeg repeats it."""
    factors = {"440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440, "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411}
    for width in range(1, 18):
        for i, sampling in enumerate(["444", "422", "420", "440", "411", "grey"]):
            height, progressive = (width * 7 + i * 5) % 19 + 1, (width + i) % 2 == 1
            name = f"jpeg/{sampling}-{width}x{height}{'-progressive' if progressive else ''}"
            if sampling in factors:
                flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factors[sampling], cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
                yield name, cv2.imencode(".jpg", noise(height, width, 3), [cv2.IMWRITE_JPEG_QUALITY, 80, *flags])[1].tobytes()
            else:
                options = {} if sampling == "grey" else {"subsampling": ":".join(sampling)}
                picture = noise(height, width) if sampling == "grey" else noise(height, width, 3)
                yield name, saved(picture, "JPEG", quality=80, progressive=progressive, **options)
    for options in ({"restart_marker_blocks": 1}, {"restart_marker_rows": 1, "progressive": True}, {"optimize": True}):
        yield f"jpeg/{'-'.join(options)}", saved(noise(29, 37, 3), "JPEG", **options)
    cmyk = saved(Image.fromarray(noise(HEIGHT, WIDTH, 4), "CMYK"), "JPEG", quality=95)
    adobe = cmyk.index(b"Adobe")
    yield "jpeg/cmyk", cmyk
    yield "jpeg/ycck", cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :]
    yield "jpeg/cmyk-of-nobody", cmyk[: adobe - 4] + cmyk[adobe + 12 :]
    plain = saved(noise(HEIGHT, WIDTH, 3), "JPEG", subsampling=0)
    for transform in range(2):
        segment = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
        yield f"jpeg/adobe-transform-{transform}", plain[:2] + segment + plain[20:]
    yield "jpeg/keep-rgb", saved(noise(HEIGHT, WIDTH, 3), "JPEG", keep_rgb=True)


def tiff(big, kind, orientation):
    """EXIF with one entry."""
    order = ">" if big else "<"
    value = struct.pack(order + {3: "Hxx", 4: "I", 9: "i"}[kind], orientation)
    return (b"MM\0*" if big else b"II*\0") + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + b"\0\0\0\0"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def riff(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_with(webp, *chunks):
    flags = sum({b"EXIF": 8, b"XMP ": 4}[name] for name, _ in chunks)
    size = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    contents = b"WEBP" + riff(b"VP8X", struct.pack("<I", flags) + size) + webp[12:] + b"".join(riff(*each) for each in chunks)
    return riff(b"RIFF", contents)


def raw_profile(exif):
    """EXIF in a text, as ImageMagick writes it."""
    digits = (b"Exif\0\0" + exif).hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return "\n".join(["", "exif", f"{len(digits) // 2:8}", *lines, ""]).encode()


def oriented():
    picture = noise(HEIGHT, WIDTH, 3)
    jpeg, png = saved(picture, "JPEG", quality=95, subsampling=0), saved(picture, "PNG")
    webp = saved(picture, "WEBP", lossless=True)
    raw = b"Raw profile type exif\0"

    def segment(data):
        return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]

    def png_with(*data, late=False):
        place = png.index(b"IEND") - 4 if late else 33
        return png[:place] + chunk(*data) + png[place:]

    def places(name, exif):
        yield f"exif/jpeg-{name}", segment(b"Exif\0\0" + exif)
        yield f"exif/png-{name}", png_with(b"eXIf", exif)
        yield f"exif/webp-{name}", webp_with(webp, (b"EXIF", exif))

    for orientation in range(10):
        yield from places(f"{orientation}", tiff(False, 3, orientation))
    for kind, name in {3: "short", 4: "long", 9: "signed-long"}.items():
        for big in (False, True):
            yield from places(f"{name}-{'big' if big else 'little'}", tiff(big, kind, 6))
    exif = tiff(True, 3, 6)
    for cut in (3, 9, 13, 21):
        yield from places(f"cut-to-{cut}", exif[:cut])
    yield "exif/webp-named", webp_with(webp, (b"EXIF", b"Exif\0\0" + exif))
    yield "exif/jpeg-split", segment(b"Exif\0\0" + exif[:15])[:2] + b"".join(
        b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in (exif[:15], exif[15:])
    ) + jpeg[2:]
    yield "exif/png-late", png_with(b"eXIf", exif, late=True)
    yield "exif/png-text", png_with(b"tEXt", raw + raw_profile(exif))
    yield "exif/png-compressed-text", png_with(b"zTXt", raw + b"\0" + zlib.compress(raw_profile(exif)))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    yield "exif/jpeg-xmp", segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    yield "exif/png-xmp", png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    yield "exif/webp-xmp", webp_with(webp, (b"XMP ", xmp))


def adam7(pixels, colour):
    """A PNG of eight bits in seven passes."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row.tobytes() for x, y, across, down in passes for row in pixels[y::down, x::across]]
    data = zlib.compress(b"".join(b"\0" + row for row in rows if row))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, colour, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def colours():
    rgb, alpha = noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH)
    alpha[:2], alpha[2:4] = 0, 255
    rgba, grey, clear = np.dstack([rgb, alpha]), rgb[..., 0], np.dstack([rgb, np.zeros_like(alpha)])
    yield "png/rgb", saved(rgb, "PNG")
    yield "png/rgba", saved(rgba, "PNG")
    yield "png/clear", saved(clear, "PNG")
    yield "png/grey", saved(grey, "PNG")
    yield "png/grey-alpha", saved(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG")
    yield "png/rgb-key", saved(rgb, "PNG", transparency=tuple(int(value) for value in rgb[2, 3]))
    yield "png/grey-key", saved(grey, "PNG", transparency=int(grey[0, 0]))
    yield "png/one-bit", saved(Image.fromarray(grey).convert("1"), "PNG")
    for count in (2, 4, 16, 200):
        palette = Image.fromarray(rgb).quantize(count)
        yield f"png/palette-{count}", saved(palette, "PNG")
        yield f"png/palette-{count}-alpha", saved(palette, "PNG", transparency=bytes([0, 128, 255][: min(count, 3)]))
    yield "png/interlaced", adam7(rgb, 2)
    yield "png/interlaced-alpha", adam7(rgba, 6)
    yield "png/gamma", saved(rgb, "PNG")[:33] + chunk(b"gAMA", struct.pack(">I", 100000)) + saved(rgb, "PNG")[33:]
    yield "png/16-bit", cv2.imencode(".png", RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16))[1].tobytes()
    frames = [Image.fromarray(255 - rgb), Image.fromarray(rgb)]
    yield "png/animated", saved(rgb, "PNG", save_all=True, append_images=frames)
    yield "png/animated-beside", saved(rgb, "PNG", save_all=True, append_images=frames, default_image=True)
    for name, pixels in {"opaque": rgb, "alpha": rgba, "clear": clear}.items():
        yield f"webp/lossless-{name}", saved(pixels, "WEBP", lossless=True, exact=True)
        yield f"webp/lossy-{name}", saved(pixels, "WEBP", quality=80, exact=True)
    yield "webp/animated", saved(rgb, "WEBP", save_all=True, append_images=frames, lossless=True)
    yield "webp/animated-alpha", saved(rgba, "WEBP", save_all=True, append_images=frames, lossless=True, exact=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent.parent / "fixtures/pictures/decoded.safetensors")
    tensors = {}
    for name, file in [*jpegs(), *oriented(), *colours()]:
        tensors[name] = np.frombuffer(file, dtype=np.uint8)
        tensors[f"{name}.rgb"] = np.ascontiguousarray(read(file))
    save_file(tensors, parser.parse_args().out)


if __name__ == "__main__":
    main()
