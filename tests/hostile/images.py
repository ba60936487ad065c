"""A folder of images as somebody who wishes no good might fill it."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (40, 30)


def noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def chunk(kind: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if checksum is None else checksum)


def png(width: int, height: int, *middle: bytes, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """A PNG of raw chunks: what its header says need not be true."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(middle) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def true_png(*middle: bytes) -> bytes:
    """A PNG that holds its pixels, with further chunks before them."""
    return png(4, 4, *middle, data=(b"\0" + bytes(12)) * 4)


def with_exif(*, orientation: int = 1, raw: bytes | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(noise(), "JPEG", exif=exif.tobytes() if raw is None else raw)


def claimed(data: bytes, marker: bytes, offset: int, width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    at = data.index(marker) + offset
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp_of(width: int, height: int) -> bytes:
    """A WebP whose extended header claims a size and that holds nothing."""
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_bomb() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 30_000_000, zip=True)
    return info


JPEG, PNG, WEBP = saved(noise(), "JPEG"), saved(noise(), "PNG"), saved(noise(), "WEBP", lossless=True)
_ZEROS = zlib.compress(bytes(200_000_000), 9)


def whole() -> Iterator[tuple[str, bytes]]:
    """Files that are odd, as names and bytes."""
    for width, height in ((1, 1), (1, 2), (2, 1), (3, 3), (1, 100), (100, 1), (9, 900)):
        for kind in ("PNG", "JPEG", "WEBP"):
            if kind != "WEBP" or max(width, height) <= 16_383:
                yield f"size-{width}x{height}.{kind.lower()}", saved(noise((width, height)), kind)
    for width, height in ((1, 20_000), (20_000, 1), (7, 3000), (2, 202), (16_000, 3)):
        yield f"thin-{width}x{height}.png", saved(noise((width, height)), "PNG")
    for width, height in ((0, 5), (5, 0), (0, 0), (1 << 31, 1), (60_000, 60_000), (12_000, 12_000), (7_100, 7_100), (1, 50_000_001)):
        yield f"claims-{width}x{height}.png", png(width, height)
    for width, height in ((65_500, 65_500), (0, 9), (9, 0), (65_535, 1)):
        yield f"claims-{width}x{height}.jpg", claimed(JPEG, b"\xff\xc0", 5, width, height)
    for width, height in ((16_384, 16_384), (1 << 24, 1 << 24), (1, 1)):
        yield f"claims-{width}x{height}.webp", webp_of(width, height)
    yield "bomb-pixels.png", png(7_000, 7_000, color=0, data=bytes(7_001 * 7_000))
    yield "bomb-beyond.png", png(4, 4, data=bytes(100_000_000))
    yield "bomb-text.png", saved(noise(), "PNG", pnginfo=text_bomb())
    yield "bomb-ztxt.png", true_png(chunk(b"zTXt", b"key\0\0" + _ZEROS))
    yield "bomb-itxt.png", true_png(chunk(b"iTXt", b"key\0\1\0\0\0" + _ZEROS))
    yield "bomb-iccp.png", true_png(chunk(b"iCCP", b"name\0\0" + _ZEROS))
    yield "many-texts.png", true_png(*[chunk(b"tEXt", b"k%d\0v" % index) for index in range(50_000)])
    yield "bad-checksum.png", true_png(chunk(b"tEXt", b"a\0b", checksum=1))
    yield "no-idat.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
    yield "two-headers.png", true_png(chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)))
    yield "no-palette.png", png(4, 4, color=3, data=bytes(20))
    yield "bad-filter.png", png(4, 4, data=(b"\x09" + bytes(12)) * 4)
    yield "chunk-too-long.png", true_png()[:33] + struct.pack(">I", 0xFFFFFFFF) + b"tEXt" + true_png()[33:]
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"mode-{mode.replace(';', '-')}.png", saved(Image.new(mode, SIZE), "PNG")
    yield "mode-cmyk.jpg", saved(Image.new("CMYK", SIZE, (10, 200, 30, 4)), "JPEG")
    yield "mode-l.jpg", saved(Image.new("L", SIZE), "JPEG")
    yield "palette-clear.png", saved(noise().quantize(8), "PNG", transparency=0)
    yield "palette-alphas.png", saved(noise().quantize(8), "PNG", transparency=bytes(range(0, 240, 30)))
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"animated.{kind.lower()}.png", saved(noise(), kind, save_all=True, append_images=[Image.new("RGB", SIZE)] * 3)
    for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "PDF", "EPS", "TGA", "PCX", "JPEG2000", "DIB", "SGI", "IM", "MSP", "XBM"):
        image = noise((32, 32)).convert("1") if kind in ("MSP", "XBM") else noise((32, 32))
        yield f"really-{kind.lower()}.jpg", saved(image, kind)
    for orientation in (0, 2, 3, 4, 5, 6, 7, 8, 9, 65_535):
        yield f"turned-{orientation}.jpg", with_exif(orientation=orientation)
    for number, raw in enumerate((
        b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*" + b"\xff" * 64, b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\xff" + bytes(4000),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0\x08\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abcd\x08\0\0\0", b"nonsense",
    )):  # fmt: skip
        yield f"exif-{number}.jpg", with_exif(raw=raw)
    yield "svg.jpg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield "svg-outside.png", b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
    yield "eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n"
    yield "html.jpg", b"<html><script>alert(1)</script></html>"
    yield "pdf.jpg", b"%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch>>>>endobj\n"
    yield "pickle.jpg", pickle.dumps({"a": 1})
    yield "text.jpg", b"hello"
    yield "empty.jpg", b""
    yield "zeros.png", bytes(100_000)
    yield "only-magic.jpg", b"\xff\xd8\xff"
    yield "zip.jpg", _zip()
    yield "jpeg-and-zip.jpg", JPEG + _zip()
    yield "png-and-html.png", PNG + b"<script>alert(1)</script>"


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../x", bytes(1_000_000))
    return sink.getvalue()


def truncated(num: int) -> Iterator[tuple[str, bytes]]:
    """Three whole files cut at `num` places each."""
    for name, data in (("jpg", JPEG), ("png", PNG), ("webp", WEBP)):
        for place in np.unique(np.linspace(0, len(data) - 1, num).astype(int)).tolist():
            yield f"cut-{place}.{name}", data[:place]


NAMES = (
    "new\nline.jpg", "tab\t.jpg", "\x1b[31mred.jpg", "\x07bell.jpg", "\u202egpj.live.jpg", "quote'\".jpg",
    "[red]markup[link=x].jpg", "=1+1.jpg",
    "<script>.jpg", "{{x}}.jpg", "%s.jpg", "$(id).jpg", "-rf.jpg", " .jpg", "a|b.jpg", "#.jpg", "a..jpg", "\\.jpg", "<image>.jpg",
    "x" * 251 + ".jpg", "~.jpg", "e\u0301.jpg", "\u00e9.jpg", "\U0001f600.jpg", "con.jpg", "a:b.jpg", "*.jpg",
)  # fmt: skip


def fill(folder: Path, num_cuts: int) -> None:
    """The whole corpus in `folder`, and `good.png` beside it."""
    folder.mkdir()
    (folder / "good.png").write_bytes(PNG)
    for name, data in (*whole(), *truncated(num_cuts)):
        (folder / name).write_bytes(data)
    for name in NAMES:
        (folder / name).write_bytes(JPEG)
    (folder.parent / "secret.png").write_bytes(PNG)
    for name, target in (
        ("link-out.jpg", "../secret.png"), ("link-passwd.jpg", "/etc/passwd"),
        ("link-device.jpg", "/dev/zero"), ("link-circle.jpg", "link-circle.jpg"),
        ("link-gone.jpg", "gone.jpg"), ("link-folder.jpg", "."), ("link-inside.jpg", "good.png"), ("link-proc.jpg", "/proc/self/mem"),
    ):  # fmt: skip
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(PNG)
    if os.geteuid() == 0:
        os.mknod(folder / "device.jpg", 0o600 | 0o020000, os.makedev(1, 5))


OUTSIDE = (
    "../secret.png", "sub/../../secret.png", "/etc/passwd", "/dev/zero", "/proc/self/environ", "..", ".", "/", "", "\0",
    "good.png\0.jpg", "a" * 5000,
    "good.png/x", "http://127.0.0.1/x.png", "file:///etc/passwd", "https://127.0.0.1/x.jpg", "\udcff.jpg", "\ud800", "~/x.jpg",
    "a/" * 3000, "data:image/png;base64,AAAA", "folder.jpg", "pipe.jpg", "link-out.jpg",
)  # fmt: skip
"""Image ids that name nothing in the folder, as a data file may hold them."""
