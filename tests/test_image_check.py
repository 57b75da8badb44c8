"""The check of images during ingest, against what Pillow makes and reads."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from mllm_selector import _internal

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")


def encoded(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A picture of any size in a few bytes, as decompression bombs begin."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def check(images: dict[str, bytes | None], folder: Path, **options: object) -> dict[str, str]:
    """Ingest a sample for each image and return the reasons of those set aside; None writes no file."""
    root = folder / "images"
    root.mkdir(exist_ok=True)
    good = {f"good-{number}.png": encoded("PNG") for number in range(len(images) + 1)}
    records = []
    for name, content in (good | images).items():
        if content is not None:
            (root / name).write_bytes(content)
        turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}]
        records.append({"id": name, "image": name, "conversations": turns})
    source, rejected = folder / "pool.json", folder / "rejected.jsonl"
    source.write_text(json.dumps(records))
    _internal.ingest(
        [(source, None)], "llava-json", folder / "pool.arrow", rejected, images=root, threads=1, **options
    )
    lines = [json.loads(line) for line in rejected.open()]
    assert all(line["id"] in line["detail"] or "\n" in line["id"] for line in lines)
    return {line["id"]: line["reason"] for line in lines}


VARIANTS = [
    *[(kind, {}) for kind in KINDS],
    ("JPEG", {"progressive": True}),
    ("JPEG", {"mode": "L"}),
    ("JPEG", {"mode": "CMYK"}),
    ("JPEG", {"exif": b"Exif\0\0" + bytes(60_000), "comment": b"\xff\xd9" * 30}),
    ("JPEG", {"icc_profile": bytes(200_000)}),
    *[("PNG", {"mode": mode}) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")],
    ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]}),
    ("WEBP", {"mode": "RGBA", "exif": b"Exif\0\0" + bytes(100)}),
    *[("BMP", {"mode": mode}) for mode in ("1", "L", "P", "RGBA")],
    *[("TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")],
    ("TIFF", {"big_tiff": True}),
    ("TIFF", {"mode": "1", "compression": "group4"}),
    ("TIFF", {"mode": "I;16"}),
]


@pytest.mark.parametrize("how", ["header", "decode"])
def test_what_pillow_writes_passes(how, tmp_path):
    images = {}
    for number, (kind, options) in enumerate(VARIANTS):
        mode = options.get("mode", "RGB")
        rest = {name: value for name, value in options.items() if name != "mode"}
        # The frames of an animation have one size.
        for size in ((40, 30), (1, 1), (301, 7))[: 1 if "save_all" in options else 3]:
            images[f"{number}-{size[0]}.{kind}"] = encoded(kind, size, mode, **rest)
    assert check(images, tmp_path, check_images=how) == {}


@pytest.mark.parametrize("number", range(len(VARIANTS)))
def test_cut_off_images_are_found(number, tmp_path):
    kind, options = VARIANTS[number]
    mode = options.get("mode", "RGB")
    rest = {name: value for name, value in options.items() if name != "mode"}
    whole = encoded(kind, (40, 30), mode, **rest)
    # A BMP is known by its first 18 bytes, the others by fewer.
    lengths = {max(18, int(len(whole) * share)) for share in (0.05, 0.2, 0.5, 0.8, 0.95)} | {len(whole) - 5}
    images = {f"{length}.jpg": whole[:length] for length in lengths}
    reasons = check(images, tmp_path)
    for name, content in images.items():
        if reasons.get(name) == "image-cut-off":
            continue
        # What passes must be readable as far as a model needs it.
        assert name not in reasons, reasons[name]
        with Image.open(io.BytesIO(content)) as picture:
            picture.convert("RGB")


def test_each_fault_has_its_reason(tmp_path):
    root = tmp_path / "images"
    (root / "folder.png").mkdir(parents=True)
    os.mkfifo(root / "fifo.png")
    (root / "link-to-fifo.png").symlink_to("fifo.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "secret.png").symlink_to("/etc/hostname")
    images = {
        "empty.png": b"",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "text.png": b"x",
        "drawing.svg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        "avif.png": b"\0\0\0 ftypavif" + bytes(100),
        "flat.png": png_header(0, 5),
        "huge.png": png_header(100_000, 100_000),
        "line\nbreak.png": b"",
        "good-as-jpeg.png": encoded("JPEG"),
        "folder.png": None,
        "fifo.png": None,
        "link-to-fifo.png": None,
        "device.png": None,
        "secret.png": None,
        "missing.png": None,
        "../outside.png": None,
    }
    expected = {
        "empty.png": "image-empty",
        "page.jpg": "image-unknown",
        "text.png": "image-unknown",
        "drawing.svg": "image-unknown",
        "avif.png": "image-unknown",
        "flat.png": "image-damaged",
        "huge.png": "image-too-large",
        "line\nbreak.png": "image-empty",
        "folder.png": "image-missing",
        "fifo.png": "image-missing",
        "link-to-fifo.png": "image-missing",
        "device.png": "image-outside",
        "secret.png": "image-outside",
        "missing.png": "image-missing",
        "../outside.png": "image-outside",
    }
    assert check(images, tmp_path) == expected
    found = check(images, tmp_path, check_images="none")
    assert found == {
        name: reason for name, reason in expected.items() if reason in ("image-missing", "image-outside")
    }


def test_bombs_of_every_kind_are_too_large(tmp_path):
    jpeg = bytearray(encoded("JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    gif = bytearray(encoded("GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    second_size = bytearray(encoded("GIF"))
    at = second_size.index(b",\0\0\0\0", 13)
    second_size[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    webp = bytearray(encoded("WEBP", mode="RGBA", exif=b"Exif\0\0" + bytes(100)))
    webp[24:30] = b"\xff\xff\0\xff\xff\0"
    bmp = bytearray(encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 1 << 16, -(1 << 16))
    tiff = bytearray(encoded("TIFF"))
    for tag in (256, 257):
        entry = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[entry + 8 : entry + 12] = struct.pack("<I", 1 << 17)
    images = {
        "1.jpg": bytes(jpeg),
        "2.gif": bytes(gif),
        "3.gif": bytes(second_size),
        "4.webp": bytes(webp),
        "5.bmp": bytes(bmp),
        "6.tiff": bytes(tiff),
        "7.png": png_header(2**31 - 1, 2**31 - 1),
    }
    for how in ("header", "decode"):
        assert check(images, tmp_path, check_images=how) == dict.fromkeys(images, "image-too-large")


def test_the_pixel_limit_is_an_option(tmp_path):
    images = {"a.png": encoded("PNG", (50, 40)), "b.png": encoded("PNG", (50, 41))}
    assert check(images, tmp_path, max_image_pixels=2000) == {"b.png": "image-too-large"}


def test_decoding_finds_damage_inside(tmp_path):
    content = bytearray(encoded("PNG", (90, 80)))
    content[200:400] = bytes(200)
    with pytest.raises((OSError, SyntaxError, UnidentifiedImageError)):
        Image.open(io.BytesIO(content)).convert("RGB")
    assert check({"a.png": bytes(content)}, tmp_path) == {}
    assert check({"a.png": bytes(content)}, tmp_path, check_images="decode") == {"a.png": "image-damaged"}
