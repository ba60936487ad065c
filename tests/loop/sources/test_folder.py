"""A folder of images that a stranger filled: what is read, how, and what is set aside with which reason."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.images import BadImageError
from loop.errors import UserError
from loop.sources.decoding import decoded
from loop.sources.folder import ImageFolder, open_image
from tests.paths import DATA

PHOTOS = DATA / "photos"
RED, BLUE = (200, 30, 30), (30, 30, 200)


def picture(color: tuple[int, ...] = RED, size: tuple[int, int] = (16, 12), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, color)


def near(image: Image.Image, where: tuple[int, int], color: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.asarray(image)[where[1], where[0]].astype(int) - color).max() <= 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    picture().save(root / "b.jpg")
    picture().save(root / "a.PNG")
    picture().save(root / "sub" / "c.webp", lossless=True)
    return root


def reason(folder: Path, name: str) -> str:
    with pytest.raises(BadImageError) as caught:
        ImageFolder(folder).open(name)
    return str(caught.value)


def test_ids_are_relative_paths_in_a_fixed_order(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").touch()
    (folder / ".cache").mkdir()
    picture().save(folder / ".cache" / "d.png")
    assert ImageFolder(folder).image_ids() == ["a.PNG", "b.jpg", "sub/c.webp"]
    assert ImageFolder(folder, limit=2).image_ids() == ["a.PNG", "b.jpg"]


def test_every_format_comes_out_as_rgb(folder: Path) -> None:
    source = ImageFolder(folder)
    for image_id in source.image_ids():
        image = source.open(image_id)
        assert (image.mode, image.size) == ("RGB", (16, 12))
        assert near(image, (3, 3), RED)


def test_a_pickled_source_is_small_and_opens_the_same(folder: Path) -> None:
    source = ImageFolder(folder, limit=2)
    data = pickle.dumps(source)
    copy = pickle.loads(data)
    assert b"sub/c.webp" not in data
    assert copy.image_ids() == source.image_ids()
    assert copy.open("b.jpg") == source.open("b.jpg")


def test_the_turn_in_exif_is_applied(folder: Path) -> None:
    image = picture(size=(20, 10))
    image.paste(BLUE, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned 90 degrees clockwise
    image.save(folder / "turned.jpg", exif=exif, quality=95, subsampling=0)
    turned = ImageFolder(folder).open("turned.jpg")
    assert turned.size == (10, 20)
    assert near(turned, (5, 2), BLUE)
    assert near(turned, (5, 17), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(folder: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image.convert(mode).save(folder / "clear.png")
    opened = ImageFolder(folder).open("clear.png")
    assert near(opened, (1, 1), (0, 0, 0))
    assert near(opened, (6, 6), (255, 255, 255))


def test_sixteen_bits_are_scaled_not_clipped(folder: Path) -> None:
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(ramp).save(folder / "deep.png")
    opened = np.asarray(ImageFolder(folder).open("deep.png"))
    assert opened[0, :, 0].tolist() == (ramp[0] >> 8).tolist()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK"])
def test_other_colour_modes_become_rgb(folder: Path, mode: str) -> None:
    picture().convert(mode).save(folder / ("x.jpg" if mode == "CMYK" else "x.png"))
    assert ImageFolder(folder).open("x.jpg" if mode == "CMYK" else "x.png").mode == "RGB"


def test_the_photo_of_a_jpeg_with_previews_is_read(folder: Path) -> None:
    picture().save(folder / "phone.jpg", format="MPO", save_all=True, append_images=[picture(BLUE)])
    assert near(ImageFolder(folder).open("phone.jpg"), (3, 3), RED)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_set_aside(folder: Path, suffix: str) -> None:
    picture().save(folder / f"moving.{suffix}", save_all=True, append_images=[picture(BLUE)])
    assert "animated" in reason(folder, f"moving.{suffix}")


@pytest.mark.parametrize("name", ["b.jpg", "a.PNG", "sub/c.webp"])
def test_a_truncated_file_is_set_aside(folder: Path, name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = folder / name
    noise.save(path)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert name in reason(folder, name)


@pytest.mark.parametrize("name", ["b.jpg", "a.PNG", "sub/c.webp"])
def test_damaged_bytes_give_a_picture_or_a_reason_and_nothing_else(folder: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    path = folder / name
    whole = path.read_bytes()
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(data.tobytes())
        with contextlib.suppress(BadImageError):
            assert open_image(folder, name, max_pixels=10_000).mode == "RGB"


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(7_100, 7_100), (12_000, 12_000), (60_000, 60_000), (0, 5), (5, 0)])
@pytest.mark.filterwarnings("error")
def test_a_size_out_of_bounds_is_refused_before_decoding(folder: Path, size: tuple[int, int]) -> None:
    (folder / "bomb.png").write_bytes(bomb(*size))
    assert "bomb.png" in reason(folder, "bomb.png")


def test_the_pixel_limit_is_inclusive(folder: Path) -> None:
    with pytest.raises(BadImageError, match="16 x 12 = 192 pixels; the limit is 191"):
        open_image(folder, "b.jpg", max_pixels=191)
    assert open_image(folder, "b.jpg", max_pixels=192).size == (16, 12)


def test_a_format_that_is_not_asked_for_is_not_decoded(folder: Path) -> None:
    picture().save(folder / "really.png", format="TIFF")
    (folder / "text.jpg").write_text("<svg/>")
    assert "not a readable JPEG/PNG/WEBP image" in reason(folder, "really.png")
    assert "not a readable" in reason(folder, "text.jpg")


def test_nothing_outside_the_folder_is_read(folder: Path) -> None:
    picture().save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "inside.png").symlink_to("a.PNG")
    source = ImageFolder(folder)
    assert "link.png" in source.image_ids()
    for name in ("link.png", "../secret.png", str(folder.parent / "secret.png")):
        assert "outside the image folder" in reason(folder, name)
    assert source.open("inside.png").size == (16, 12)


@pytest.mark.timeout(20)
def test_odd_files_are_set_aside(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "dir.png").mkdir()
    (folder / "circle.png").symlink_to("circle.png")
    assert "not a regular file" in reason(folder, "pipe.png")
    assert "not a regular file" in reason(folder, "dir.png")
    assert "does not exist" in reason(folder, "gone.png")
    assert "circle.png" in reason(folder, "circle.png")
    assert "does not exist" in reason(folder, "a" * 300)
    assert "cannot be looked up" in reason(folder, "nul\0.png")


def test_a_name_that_is_not_utf8_is_left_out_and_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / os.fsdecode(b"\xff.png")).touch()
    assert len(ImageFolder(folder).image_ids()) == 3
    assert "1 files" in caplog.text


def test_wrong_arguments_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"b\.jpg is a file"):
        ImageFolder(folder / "b.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no image; expected files that end in \.jpg"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(UserError, match="limit of images is 0"):
        ImageFolder(folder, limit=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_folder_that_may_not_be_read_is_named(folder: Path) -> None:
    for path in (folder / "sub", folder):
        path.chmod(0)
        with pytest.raises(UserError, match="cannot be read"):
            ImageFolder(folder)
        path.chmod(0o700)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the real photos are not at {PHOTOS}")
def test_real_photos_are_all_read() -> None:
    source = ImageFolder(PHOTOS)
    assert len(source.image_ids()) == 70
    for image_id in source.image_ids()[:20]:
        image = source.open(image_id)
        assert image.mode == "RGB"
        assert np.asarray(image).std() > 5


def test_images_of_other_kinds_hidden_ones_and_linked_folders_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1.avif", "2.HEIC", "3.tiff", "sub/4.jfif", "5.tiff", "notes.txt", "all.zip", "._b.jpg", ".git/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder.parent / "elsewhere").mkdir()
    (folder / "linked").symlink_to(folder.parent / "elsewhere")
    num_images = len(ImageFolder(folder).image_ids())
    (said,) = [record.message for record in caplog.records]
    told = said.partition("not read are ")[2].partition("; read are")[0].split(", ")
    wanted = {".avif 1", ".heic 1", ".tiff 2", ".jfif 1", ".zip 1", "hidden files 1", "hidden folders 1", "folders behind links 1"}
    assert {one for one in told if not one.startswith("hidden")} == {one for one in wanted if not one.startswith("hidden")}
    assert sum(one.startswith("hidden") for one in told) == 2
    ImageFolder(folder)
    assert len(caplog.records) == 1
    assert num_images == len(ImageFolder(folder, limit=99).image_ids())


def test_a_folder_of_other_images_alone_is_refused_with_their_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no image and holds \.heic 1; expected files that end in"):
        ImageFolder(tmp_path)


def png_with(folder: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG of 80 x 60 pixels with chunks before its pixels."""
    sink = io.BytesIO()
    Image.new("RGB", (80, 60), (10, 200, 30)).save(sink, "PNG")
    plain, extra = sink.getvalue(), b""
    for name, data in chunks:
        extra += len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    path = folder / "texts.png"
    path.write_bytes(plain[:33] + extra + plain[33:])
    return path


_HUGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"workflow\0\0" + _HUGE)],
        [(b"iTXt", b"prompt\0\1\0\0\0" + _HUGE)],
        [(b"iCCP", b"profile\0\0" + _HUGE)],
        [(b"tEXt", b"parameters\0" + bytes(66_000_000))] * 2,
        [(b"zTXt", b"odd\0\7" + _HUGE)],
    ],
)
def test_large_texts_and_profiles_are_no_reason_to_set_a_picture_aside(folder: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    image = decoded(png_with(folder, *chunks), "texts.png")
    assert (image.size, image.mode, image.getpixel((5, 5))) == ((80, 60), "RGB", (10, 200, 30))


def test_large_texts_do_not_hide_that_a_picture_is_damaged_or_too_large(folder: Path) -> None:
    path = png_with(folder, (b"zTXt", b"workflow\0\0" + _HUGE))
    with pytest.raises(BadImageError, match="80 x 60 = 4800 pixels; the limit is 4000"):
        decoded(path, "texts.png", max_pixels=4000)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(BadImageError, match="not a readable JPEG/PNG/WEBP image"):
        decoded(path, "texts.png")


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"GIF89a" + bytes(50), "a GIF"), (bytes(4) + b"ftypavif", "an AVIF, HEIC or video file"), (b" <html>", "HTML"), (b"", "empty")],
)
def test_a_file_of_another_format_is_called_what_it_is(folder: Path, data: bytes, kind: str) -> None:
    (folder / "x.jpg").write_bytes(data)
    with pytest.raises(BadImageError, match=rf"x\.jpg: not a readable JPEG/PNG/WEBP image \(it is {kind}"):
        decoded(folder / "x.jpg", "x.jpg")
