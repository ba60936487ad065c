"""What fingerprints of images find and what they confuse: copies of photos, and pairs of different pictures.

    python -m benchmarks.quality.decontamination [--data FOLDER]

Copies are of every photo of `DATA/photos`, and of small scenes of `shapes`. Different pictures are those photos, tiles cut out of them,
scenes, the drawings of `DATA/drawings`, and pages of text and bar charts that look alike, as in document and chart benchmarks.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from benchmarks.common import argument_parser, write_results
from loop.sources.folder import ImageFolder
from loop.sources.shapes.source import ShapesImages
from policies.decontamination.fingerprints import MAX_DIFFERENCE, MAX_HASH_DISTANCE, Fingerprint, Fingerprints, differences, fingerprint

DATA = Path(__file__).parents[3] / "shared" / "data"
NUM_TESTED, NUM_UNLABELLED = 5000, 1_700_000
_MEASURED = 20
"""One in so many unlabelled images is compared when the speed is measured."""
_NUM_SCENES, _NUM_PAGES = 3000, 400
_TILE = 48
"""Side of a drawing, pixels."""


def resized(image: Image.Image, factor: float, how: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), how)


def encoded(image: Image.Image, format: str, **options: Any) -> Image.Image:
    """An image after it was written to a file and read again."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """An image without this share of each side."""
    left, top = round(share * image.width), round(share * image.height)
    return image.crop((left, top, image.width - left, image.height - top))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "PNG": lambda image: encoded(image, "PNG"),
    "JPEG, quality 60": lambda image: encoded(image, "JPEG", quality=60),
    "JPEG, quality 30": lambda image: encoded(image, "JPEG", quality=30),
    "WebP, quality 50": lambda image: encoded(image, "WEBP", quality=50),
    "JPEG, quality 90": lambda image: encoded(image, "JPEG", quality=90),
    "200 %": lambda image: resized(image, 2),
    "50 %": lambda image: resized(image, 0.5),
    "50 %, nearest pixel": lambda image: resized(image, 0.5, Image.Resampling.NEAREST),
    "50 %, JPEG 30": lambda image: encoded(resized(image, 0.5), "JPEG", quality=30),
    "336 x 336, JPEG 75": lambda image: encoded(image.resize((336, 336)), "JPEG", quality=75),
    "25 %, JPEG 30": lambda image: encoded(resized(image, 0.25), "JPEG", quality=30),
    "96 pixels, JPEG 75": lambda image: encoded(resized(image, 96 / max(image.size)), "JPEG", quality=75),
    "cropped by 0.5 % a side": lambda image: cropped(image, 0.005),
    "cropped by 1 % a side": lambda image: cropped(image, 0.01),
    "cropped by 3 % a side": lambda image: cropped(image, 0.03),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}

SMALL_COPIES = ("PNG", "200 %", "50 %", "JPEG, quality 90")
"""What is tried on images of 48 pixels."""


def different(photos: Sequence[Image.Image], drawings: Path) -> Iterator[tuple[str, list[Image.Image]]]:
    """Sets of pictures of which no two are the same, by name."""
    yield "photos", list(photos)
    yield "tiles of photos", [tile for photo in photos for tile in _tiles(photo) if np.ptp(np.asarray(tile)) > 0]
    for low, high in ((0.0, 0.15), (0.3, 0.8)):
        scenes = ShapesImages(1, low, high, _NUM_SCENES)
        yield f"shapes, shift {low:g} to {high:g}", [scenes.open(image_id) for image_id in scenes.image_ids()]
    yield "drawings", [drawing for path in sorted(drawings.glob("*.png")) for drawing in _drawings(path)]
    rng = np.random.default_rng(0)
    yield "pages of text", [_page(rng) for _ in range(_NUM_PAGES)]
    yield "bar charts", [_chart(rng) for _ in range(_NUM_PAGES)]


def _tiles(photo: Image.Image, num: int = 4) -> Iterator[Image.Image]:
    width, height = photo.width // num, photo.height // num
    return (photo.crop((x * width, y * height, (x + 1) * width, (y + 1) * height)) for x in range(num) for y in range(num))


def _drawings(path: Path) -> Iterator[Image.Image]:
    """The tiles of an atlas, on white."""
    with Image.open(path) as file:
        atlas = Image.new("RGBA", file.size, "white")
        atlas.alpha_composite(file.convert("RGBA"))
    for top in range(0, atlas.height, _TILE):
        for left in range(0, atlas.width, _TILE):
            yield atlas.crop((left, top, left + _TILE, top + _TILE)).convert("RGB")


_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "total", "value", "year", "income", "figure", "results", "method")


def _page(rng: np.random.Generator) -> Image.Image:
    page = Image.new("RGB", (600, 800), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    for line in range(35):
        draw.text((50, 50 + 20 * line), " ".join(rng.choice(_WORDS, 9)), fill="black", font=font)
    return page


def _chart(rng: np.random.Generator) -> Image.Image:
    chart = Image.new("RGB", (600, 400), "white")
    draw = ImageDraw.Draw(chart)
    draw.line((50, 50, 50, 350, 550, 350), fill="black")
    for bar, height in enumerate(rng.integers(20, 290, 6).tolist()):
        draw.rectangle((70 + 80 * bar, 350 - height, 120 + 80 * bar, 350), fill=(60, 90, 200))
    return chart


@dataclass(frozen=True)
class Recall:
    """How many copies of one kind are found."""

    copy: str
    num: int
    num_found: int
    largest_distance: int
    largest_difference: float


@dataclass(frozen=True)
class Confusion:
    """How many pairs of different pictures count as the same."""

    pictures: str
    num_pairs: int
    num_candidates: int
    num_wrong: int
    smallest_difference: float | None
    """Of candidates; None without any."""


def recall(name: str, images: Sequence[Image.Image], originals: Sequence[Fingerprint], of: str = "") -> Recall:
    copies = [fingerprint(COPIES[name](image)) for image in images]
    pairs = list(zip(originals, copies, strict=True))
    found = [Fingerprints.of([one]).same_as(other) for one, other in pairs]
    distances = [int(np.bitwise_count(one.phash ^ other.phash)) for one, other in pairs]
    apart = [float(differences(one.thumbnail[None], other.thumbnail)[0]) for one, other in pairs]
    return Recall(f"{of}{name}", len(images), sum(map(bool, found)), max(distances), round(max(apart), 3))


def confusion(name: str, pictures: Sequence[Image.Image]) -> Confusion:
    prints = [fingerprint(picture) for picture in pictures]
    stacked, num = Fingerprints.of(prints), len(prints)
    apart: list[float] = []
    for index, one in enumerate(prints):
        near = index + 1 + np.flatnonzero(np.bitwise_count(stacked.hashes[index + 1 :] ^ one.phash) <= MAX_HASH_DISTANCE)
        apart += differences(stacked.thumbnails[near], one.thumbnail).tolist()
    wrong = sum(one <= MAX_DIFFERENCE for one in apart)
    return Confusion(name, num * (num - 1) // 2, len(apart), wrong, round(min(apart), 3) if apart else None)


def speed(folder: Path) -> dict[str, float]:
    """Milliseconds to read a photo and to fingerprint it, and seconds to compare all unlabelled images with all tested ones."""
    source = ImageFolder(folder)
    fingerprint(source.open(source.image_ids()[0]))  # imports what it needs
    started = time.perf_counter()
    photos = [source.open(image_id) for image_id in source.image_ids()]
    read = time.perf_counter()
    prints = [fingerprint(photo) for photo in photos]
    done = time.perf_counter()
    hashes = np.random.default_rng(0).integers(0, 2**64, NUM_TESTED, np.uint64)
    tested = Fingerprints(hashes, np.zeros((NUM_TESTED, *prints[0].thumbnail.shape), np.uint8))
    others = np.random.default_rng(1).integers(0, 2**64, NUM_UNLABELLED // _MEASURED, np.uint64)
    begun = time.perf_counter()
    for phash in others:
        tested.same_as(Fingerprint(phash, prints[0].thumbnail))
    compared_s = (time.perf_counter() - begun) * _MEASURED
    in_ms = 1000 / len(photos)
    return {
        "read_ms": round((read - started) * in_ms, 2),
        "fingerprint_ms": round((done - read) * in_ms, 2),
        "compare_all_s": round(compared_s, 1),
    }


def main() -> None:
    parser = argument_parser(__doc__, "decontamination.json")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with photos/ and drawings/")
    args = parser.parse_args()
    seconds = speed(args.data / "photos")
    source = ImageFolder(args.data / "photos")
    photos = [source.open(image_id) for image_id in source.image_ids()]
    originals = [fingerprint(photo) for photo in photos]
    recalls = [recall(name, photos, originals) for name in COPIES]
    scenes = ShapesImages(1, 0.0, 0.8, len(photos))
    small = [scenes.open(image_id) for image_id in scenes.image_ids()]
    recalls += [recall(name, small, list(map(fingerprint, small)), "scenes of 48 pixels, ") for name in SMALL_COPIES]
    confusions = [confusion(name, pictures) for name, pictures in different(photos, args.data / "drawings")]
    for title, rows in (("Copies", recalls), ("Different pictures", confusions)):
        table = Table(*vars(rows[0]), title=title, box=None)
        for row in rows:
            table.add_row(*map(str, vars(row).values()))
        Console().print(table)
    Console().print(seconds)
    thresholds = {"max_hash_distance": MAX_HASH_DISTANCE, "max_difference": MAX_DIFFERENCE}
    write_results(args.out, {"thresholds": thresholds, "copies": recalls, "different": confusions, "speed": seconds})


if __name__ == "__main__":
    main()
