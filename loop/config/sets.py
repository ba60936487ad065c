"""The kinds of image sets and of labelled sets that a config can name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from loop.config.sections import Section
from policies.checks import did_you_mean
from policies.generation.instructions import ALL_TYPES, AnyType, QuestionType

MAX_IMAGES = 100_000_000


def _location(text: str) -> str:
    """An address that does not depend on the folder a run is resumed from: URIs stay as they are, paths become absolute."""
    if "://" in text:
        return text
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:  # ~USER of an unknown user
        raise ValueError(f"{error}; give the whole path") from error


Location = Annotated[str, AfterValidator(_location)]
"""A path, or a URI that pyarrow.fs or fsspec knows."""


def _question_type(value: Any) -> Any:
    """Report a wrong name once; the union of the two enums would report it twice."""
    if value not in ALL_TYPES:
        *most, last = map(repr, map(str, ALL_TYPES))
        raise ValueError(f"Input should be {', '.join(most)} or {last}{did_you_mean(str(value), map(str, ALL_TYPES))}")
    return value


TypeName = Annotated[AnyType, BeforeValidator(_question_type)]

_NumImages = Annotated[int | None, Field(ge=1, le=MAX_IMAGES)]
_ADDRESS = "a path, or a URI such as s3://bucket/x"
_PATTERN_MARKS = "*?{["


_HABIT = "how often what usually goes together in the world does in this set, 0..1 (things, places and colors; 0: no more than by chance)"


class ShapesSet(Section):
    """Images of the embedded world `shapes`."""

    kind: Literal["shapes"] = Field("shapes", description="images of the embedded world of colored shapes")
    seed: int = Field(ge=0, description="seed of the world; sets with different seeds share no image")
    min_shift: float = Field(ge=0, le=1, description="least shift of an image")
    max_shift: float = Field(ge=0, le=1, description="largest shift of an image")
    num_images: int = Field(ge=1, le=MAX_IMAGES, description="images in the set")
    habit: float = Field(0.0, ge=0, le=1, description=_HABIT)

    @model_validator(mode="after")
    def _ordered(self) -> ShapesSet:
        if self.min_shift > self.max_shift:
            raise ValueError(f"min_shift {self.min_shift} is above max_shift {self.max_shift}; swap them")
        return self


class DrawingsSet(Section):
    """Images of the embedded world `drawings`."""

    kind: Literal["drawings"] = Field(description="images of the embedded world of things as different houses draw them")
    path: Location | None = Field(
        None, description=f"folder of atlases NAME.png with their things.json; null: the shipped ones ({_ADDRESS})"
    )
    styles: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)], ...] = Field(
        min_length=1, description="houses whose drawings are used, each the NAME of an atlas; shipped: noto, twemoji, fluent, openmoji"
    )
    seed: int = Field(ge=0, description="seed of the scenes; sets with different seeds share none")
    num_images: int = Field(ge=1, le=MAX_IMAGES, description="images in the set")
    habit: float = Field(0.0, ge=0, le=1, description=_HABIT)

    @model_validator(mode="after")
    def _different_styles(self) -> DrawingsSet:
        if twice := sorted({style for style in self.styles if self.styles.count(style) > 1}):
            raise ValueError(f"styles names {', '.join(twice)} more than once; name each house once")
        return self


class FolderSet(Section):
    """A folder of JPEG, PNG and WebP photos, without labels."""

    kind: Literal["folder"] = Field(description="photos of a folder; an image's id is its path in it")
    path: Location = Field(description=f"the folder, searched with its subfolders: {_ADDRESS}")
    num_images: _NumImages = Field(None, description="number of images to take, in the order of their names; null takes all")


class CocoSet(Section):
    """The images that a COCO or Objects365 file lists."""

    kind: Literal["coco"] = Field(description="photos that a JSON file in COCO's layout lists (COCO, Objects365); an id is a file name")
    path: Location = Field(description=f"the JSON file (instances, captions or image information): {_ADDRESS}")
    images: Location = Field(description=f"folder that file names are relative to: {_ADDRESS}")
    num_name_parts: int | None = Field(
        None,
        ge=1,
        description="number of last parts of a file name to use; 2 for Objects365, where images/v1/patch8/X.jpg is at patch8/X.jpg",
    )
    num_images: _NumImages = Field(None, description="number of images to take, in the order of the file; null takes all")


class ParquetSet(Section):
    """Images in a column of Parquet files."""

    kind: Literal["parquet"] = Field(description="encoded images in a column of Parquet files; an id is FILE/ROW")
    path: Location = Field(description=f"one file, or a folder searched for *.parquet: {_ADDRESS}")
    column: str = Field("image", description="binary, or a struct with `bytes` as datasets stores images")
    num_images: _NumImages = Field(None, description="number of rows to take; null takes all")


class WebDatasetSet(Section):
    """Images in the tars of WebDataset."""

    kind: Literal["webdataset"] = Field(description="jpg, png and webp members of tars; an id is SHARD/MEMBER")
    path: Location = Field(description=f"a tar, a folder of tars, or a pattern such as train-{{0000..0099}}.tar or *.tar: {_ADDRESS}")
    members: str | None = Field(
        None, description="pattern such as *.left.jpg: take only members whose name, without folders, fits it; null takes all images"
    )
    num_images: _NumImages = Field(None, description="number of images to take; null takes all")


class HfDatasetSet(Section):
    """Images of a dataset that `datasets` has saved to disk."""

    kind: Literal["hf_dataset"] = Field(description="a dataset that save_to_disk of the library datasets has written; an id is FILE/ROW")
    path: Location = Field(description="the folder it was saved to, on a filesystem of this machine")
    split: str | None = Field(None, description="split, where a DatasetDict was saved")
    column: str = Field("image", description="column of images")
    num_images: _NumImages = Field(None, description="number of rows to take; null takes all")


class _FileOfRecords(Section):
    on_bad_record: Literal["refuse", "leave_out"] = Field(
        "refuse", description="records that cannot be used: refuse the set and list them by reason, or leave_out and count them"
    )


class _ConversationsSet(_FileOfRecords):
    turns: Literal["pairs", "conversation"] = Field(
        "pairs",
        description="what a VIC sample is: one question with its answer, as VIGC trains, or the whole conversation, as LLaVA trains",
    )


class LlavaJsonSet(_ConversationsSet):
    """Labelled data in LLaVA's JSON format."""

    kind: Literal["llava_json"] = Field(
        description="conversations about photos in LLaVA's format, JSON or JSON Lines; `messages` with `images` is read too"
    )
    path: Location = Field(description=f"the JSON file: {_ADDRESS}")
    images: Location = Field(description=f"folder that its `image` fields are relative to: {_ADDRESS}")


class LlamaFactorySet(_ConversationsSet):
    """Labelled data as LLaMA-Factory's dataset_info.json describes it."""

    kind: Literal["llama_factory"] = Field(
        description="a dataset of LLaMA-Factory, sharegpt or alpaca, with the columns and tags of its dataset_info.json"
    )
    path: Location = Field(description=f"dataset_info.json, or the folder that holds it: {_ADDRESS}")
    dataset: str | None = Field(None, description="name of the dataset, where several are described")
    images: Location | None = Field(
        None, description="folder that images are relative to (media_dir); null takes that of dataset_info.json"
    )


class VigcJsonSet(_FileOfRecords):
    """Labelled data in VIGC's JSON format: annotations, or what VIGC generated."""

    kind: Literal["vigc_json"] = Field(description="VIGC's annotations {image, question, answer: [...]}, or records it generated")
    path: Location = Field(description=f"the JSON file: {_ADDRESS}")
    images: Location = Field(description=f"folder that its `image` fields are relative to: {_ADDRESS}")
    question_type: TypeName = Field(
        QuestionType.CONVERSATION, description="type of questions whose record has neither `type` nor one of VIGC's instructions"
    )


class MessagesSet(_ConversationsSet):
    """Labelled data in Parquet files of chat messages and images, as `vigc export --format messages` writes them."""

    kind: Literal["messages"] = Field(description="Parquet files with the columns messages and images; an image's id is FILE/ROW")
    path: Location = Field(description=f"one file, or a folder searched for *.parquet: {_ADDRESS}")
    question_type: TypeName = Field(QuestionType.CONVERSATION, description="type of the questions if there is no column `type`")


WorldSet = ShapesSet | DrawingsSet
"""Sets whose images are drawn from their ids, with exact truth."""
ImageSet = Annotated[ShapesSet | DrawingsSet | FolderSet | CocoSet | ParquetSet | WebDatasetSet | HfDatasetSet, Field(discriminator="kind")]
LabelledSet = Annotated[ShapesSet | DrawingsSet | LlavaJsonSet | LlamaFactorySet | VigcJsonSet | MessagesSet, Field(discriminator="kind")]


def kinds_of(union: Any) -> dict[str, type[Section]]:
    """The sets of `ImageSet` or `LabelledSet` by their kind."""
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(union)[0])}


def image_paths(sets: Iterable[Section]) -> list[str]:
    """Local files and folders of images, which actors open. Annotations are only read by the driver; URIs are the same everywhere."""
    found = (getattr(one, "images", None) or getattr(one, "path", None) for one in sets)
    return sorted({_whole(path) for path in found if path and "://" not in path})


def _whole(path: str) -> str:
    """A path, without the parts that are a pattern such as `train-*.tar`."""
    whole = Path(path)
    while any(mark in str(whole) for mark in _PATTERN_MARKS):
        whole = whole.parent
    return str(whole)
