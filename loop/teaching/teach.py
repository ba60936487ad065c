"""Teacher data: conversations, descriptions and reasoning about images, written by a teacher that reads them as captions and boxes, as in
LLaVA, or sees them, as in ShareGPT4V. The result is seed data for a loop.

    annotations or images ─► a task per image and type ─► teacher ─► read, check ─► journal ─► data.json, rejected.jsonl, summary.json

Finished tasks are in the journal and never asked again; running the same command again continues after any end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from actors.chat.endpoint import Endpoint, EndpointError, SpendingCapError
from actors.chat.endpoint_options import EndpointOptions
from actors.chat.teacher import ChatTeacher, Teacher
from actors.images import BadImageError
from loop.errors import TeachingStoppedError, UserError, WriteError, one_line, printable
from loop.monitors.progress import RunProgress
from loop.sources.annotations import read_annotations
from loop.sources.folder import ImageFolder, checked_folder
from loop.sources.shapes.source import ShapesImages
from loop.sources.worlds.build import build_world, names_world, parse_world
from loop.sources.worlds.kinds import DETAIL_QUESTIONS as WORLD_DETAIL_QUESTIONS
from loop.sources.worlds.source import WorldImages
from loop.sources.worlds.teaching import ExactTeacher, text_view
from loop.store.files import write_json
from loop.teaching.journal import DATA, SUMMARY, TeachingJournal
from loop.teaching.sight import Sight
from policies.checks import did_you_mean
from policies.generation.instructions import QuestionType
from policies.teaching.examples import DETAIL_QUESTIONS
from policies.teaching.output import read_reply
from policies.teaching.prompts import TeachingTask, TextView, prompts_digest, teaching_task

EXACT = "exact"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TeachOptions:
    """What to teach, by whom, and where to write it. Give either `world` or annotations, and either `teacher` or `endpoint`."""

    out: Path
    types: tuple[QuestionType, ...] = tuple(QuestionType)
    seed: int = 0
    captions: Path | None = None
    instances: Path | None = None
    images: Path | None = None
    """Folder of the annotated images; images missing from it are set aside. Without annotations, of the images that the teacher sees."""
    sees_images: bool = False
    """Whether the teacher, which is at an endpoint, is shown the images in place of a text about them."""
    image_side: int = 1024
    """Longest side of an image that the teacher sees, in pixels; 1024 is about what hosted models look at."""
    image_quality: int = 90
    """Of the JPEG that the teacher sees."""
    num_images: int | None = None
    """Number of annotated images or of images of the folder, drawn by `seed`; None for all."""
    world: WorldImages[Any] | None = None
    """Images of an embedded world."""
    write_images: bool = False
    """Write the images of `world` to `out`/images."""
    teacher: str = ""
    """`exact`, or the folder or Hugging Face id of a text model."""
    endpoint: EndpointOptions | None = None
    max_tokens: int = 1024
    temperature: float = 0.7
    batch_size: int = 8
    """Concurrent tasks of a local teacher."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Images as text, or, with a `sight`, as they are."""

    digest: str
    views: Sequence[TextView] | WorldImages[Any]
    detail_questions: tuple[str, ...]
    images_set_aside: Counter[str] = field(default_factory=Counter)
    objects_set_aside: Counter[str] = field(default_factory=Counter)
    sight: Sight | None = None

    def image_ids(self) -> list[str]:
        return self.views.image_ids() if isinstance(self.views, WorldImages) else [view.image_id for view in self.views]

    def __iter__(self) -> Iterator[TextView]:
        views = self.views
        return (text_view(views, one) for one in views.image_ids()) if isinstance(views, WorldImages) else iter(views)


def teach(options: TeachOptions, console: Console) -> dict[str, Any]:
    """Have a teacher work until all tasks are finished or the spending cap is reached.

    Returns:
        The content of `summary.json`. `stopped` is empty unless the cap ended the work.

    Raises:
        UserError: the options cannot work.
        TeachingStoppedError: the endpoint stopped answering, the disk is full, or Ctrl-C. Finished tasks are kept and published.
    """
    started_s = time.monotonic()
    _check(options)
    source = _source(options)
    commit_every_s = 1.0 if options.teacher == EXACT else 0.0  # its texts are free to write again
    with TeachingJournal(options.out, _about(options, source), commit_every_s) as journal, RunProgress(console) as progress:
        teacher = _teacher(options, journal.counts().usage.usd)
        stopped = ""
        try:
            if options.write_images and options.world is not None:
                _write_images(options.world, options.out / "images", progress)
            _write(teacher, source, options, journal, progress)
        except SpendingCapError as error:
            stopped = str(error)
        except EndpointError as error:
            raise TeachingStoppedError(str(options.out), f"{type(error).__name__}: {error}") from error
        except WriteError as error:
            raise TeachingStoppedError(str(options.out), f"cannot write {error.path}: {error.reason}") from error
        except KeyboardInterrupt as error:
            raise TeachingStoppedError(str(options.out), "interrupted", exit_code=130) from error
        finally:
            summary = _summary(options, source, journal, time.monotonic() - started_s, stopped)
            try:
                journal.publish()
                write_json(options.out / SUMMARY, summary)
            except (OSError, WriteError) as error:
                raise TeachingStoppedError(str(options.out), f"cannot write the output: {one_line(error)}") from error
    return summary


def question_types(text: str) -> tuple[QuestionType, ...]:
    """Parse a comma-separated list of types."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    known = [str(kind) for kind in QuestionType]
    if not names or any(name not in known for name in names):
        meant = "".join(did_you_mean(name, known) for name in names if name not in known)
        raise UserError(f"--types is {text!r}; expected some of {','.join(known)}{meant}")
    return tuple(map(QuestionType, names))


def world_images(world: str | None, num_images: int | None, seed: int, min_shift: float, max_shift: float) -> WorldImages[Any] | None:
    """The images of the text `world`, or `num_images` images of `shapes`; None if both are None."""
    if world is not None and num_images is not None:
        raise UserError("--shapes and --world both name images; leave one of them out")
    if world is not None and not names_world(world):
        raise UserError(f"--world is {world!r}; expected, for example, drawings:styles=noto,num_images=2000")
    if world is not None:
        return build_world(parse_world(world, "--world", seed=seed))
    if num_images is None:
        return None
    if num_images < 1 or not 0.0 <= min_shift <= max_shift <= 1.0 or seed < 0:
        raise UserError("expected --shapes of 1 or more, a --seed of 0 or more, and 0 <= --min-shift <= --max-shift <= 1")
    return ShapesImages(seed, min_shift, max_shift, num_images)


def print_summary(console: Console, summary: dict[str, Any], out: Path) -> None:
    """Print the summary, one line per fact."""
    for line in _lines(summary, out):
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def _lines(summary: dict[str, Any], out: Path) -> Iterator[str]:
    usage = summary["usage"]
    yield f"{summary['num_records']} records with {summary['num_pairs']} questions about {summary['num_images']} images in {out / DATA}"
    for name in ("rejected", "images_set_aside", "objects_set_aside"):
        if summary[name]:
            yield f"{name.replace('_', ' ')}: {', '.join(f'{reason} {count}' for reason, count in summary[name].items())}"
    if summary["num_unanswered"]:
        yield f"unanswered: {summary['num_unanswered']}; the same command asks again"
    if usage["num_input_tokens"]:
        cost = f", {usage['usd']:.4f} USD" if usage["usd"] else ""
        yield f"{usage['num_requests']} requests, {usage['num_input_tokens']} tokens read, {usage['num_output_tokens']} written{cost}"
    if summary["stopped"]:
        yield f"stopped: {summary['stopped']}"


def _check(options: TeachOptions) -> None:
    if not options.types:
        raise UserError(f"no question types are given; expected some of {[str(kind) for kind in QuestionType]}")
    if bool(options.teacher) == (options.endpoint is not None):
        raise UserError("expected one teacher: `--teacher exact`, `--teacher MODEL`, or `--endpoint URL --model NAME`")
    if options.world is not None and (options.captions or options.instances or options.images):
        raise UserError("--shapes and --world generate their own images; leave out --captions, --instances and --images")
    if options.world is None and options.teacher == EXACT:
        raise UserError("the exact teacher knows the embedded worlds only; give --shapes NUM_IMAGES or --world, or another teacher")
    if options.world is None and options.write_images:
        raise UserError("--write-images works only with --shapes and --world; annotated images already exist")
    if options.max_tokens < 1 or options.batch_size < 1 or not 0.0 <= options.temperature <= 2.0:
        raise UserError("expected --max-tokens and --batch-size of 1 or more, and a --temperature from 0 to 2")
    if options.num_images is not None and options.num_images < 1:
        raise UserError(f"--num-images is {options.num_images}; expected 1 or more")
    if options.endpoint is not None and options.endpoint.api == "anthropic" and options.temperature > 1.0:
        raise UserError(f"--temperature is {options.temperature:g}; an endpoint with --api anthropic takes 0 to 1")
    if options.sees_images:
        _check_sight(options)


def _check_sight(options: TeachOptions) -> None:
    if options.endpoint is None:
        raise UserError(
            f"--teacher {options.teacher} reads text only; a teacher that sees images is at an endpoint: --endpoint URL --model NAME"
        )
    if options.captions or options.instances:
        raise UserError("--captions and --instances are for a teacher that reads text; leave them out with --teacher-sees images")
    if options.world is None and options.images is None:
        raise UserError("--teacher-sees images needs images: give --images FOLDER or --shapes NUM_IMAGES, or --world")
    if not 32 <= options.image_side <= 2048 or not 1 <= options.image_quality <= 95:
        raise UserError("expected an --image-side from 32 to 2048 and an --image-quality from 1 to 95")


def _source(options: TeachOptions) -> _Source:
    if options.world is not None:
        sight = Sight(options.world, options.image_side, options.image_quality) if options.sees_images else None
        return _Source(options.world.origin, options.world, WORLD_DETAIL_QUESTIONS, sight=sight)
    if options.sees_images and options.images is not None:
        folder = ImageFolder(options.images)
        views = _drawn([TextView(image_id, image_id) for image_id in folder.image_ids()], options)
        return _Source("images", views, DETAIL_QUESTIONS, sight=Sight(folder, options.image_side, options.image_quality))
    found = read_annotations(options.captions, options.instances)
    views, images_set_aside = list(found.views), Counter[str](found.images_set_aside)
    if options.images is not None:
        folder = checked_folder(options.images).path
        views = [view for view in views if os.path.isfile(os.path.join(folder, view.image))]
        if not views:
            raise UserError(f"none of the annotated images is in {folder}, such as {found.views[0].image!r:.80}; check --images")
        images_set_aside["missing_file"] += len(found.views) - len(views)
    views = _drawn(views, options)
    digest = " ".join(_digest(path) for path in (options.captions, options.instances) if path is not None)
    return _Source(digest, views, DETAIL_QUESTIONS, +images_set_aside, Counter[str](found.objects_set_aside))


def _drawn(views: list[TextView], options: TeachOptions) -> list[TextView]:
    """The chosen number of views, in their order."""
    if options.num_images is None:
        return views
    drawn = np.random.default_rng(options.seed).permutation(len(views))[: options.num_images]
    return [views[index] for index in sorted(drawn.tolist())]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _about(options: TeachOptions, source: _Source) -> dict[str, Any]:
    """Facts that must be equal for texts to share a journal. More images or types may be added later."""
    header: dict[str, Any] = {"source": source.digest, "seed": options.seed}
    if options.teacher == EXACT:
        return {"teacher": EXACT, **header}
    name = options.teacher if options.endpoint is None else options.endpoint.model
    extra = {} if options.endpoint is None else options.endpoint.extra_body
    sampling = {"max_tokens": options.max_tokens, "temperature": options.temperature, "extra_body": json.dumps(extra, sort_keys=True)}
    seen = {"image_side": options.image_side, "image_quality": options.image_quality} if options.sees_images else {}
    return {"teacher": name, **header, **sampling, **seen, "prompts": prompts_digest(sees_images=options.sees_images)}


def _teacher(options: TeachOptions, spent_usd: float) -> Teacher:
    if options.teacher == EXACT:
        assert options.world is not None  # checked
        return ExactTeacher(options.world)
    if options.endpoint is not None:
        try:
            endpoint = Endpoint(replace(options.endpoint, spent_usd=spent_usd))
        except ValueError as error:
            raise UserError(str(error)) from error
        name = f"{endpoint.options.model} at {endpoint.options.url}"
        return ChatTeacher(name, endpoint, options.max_tokens, options.temperature)
    from actors.chat.local import LocalChat  # slow to import
    from loop.models.checks import check_text_model

    check_text_model(options.teacher)
    try:
        model = LocalChat(options.teacher, options.batch_size)
    except ValueError as error:
        raise UserError(f"model {options.teacher!r} cannot be loaded: {one_line(error)}") from error
    return ChatTeacher(options.teacher, model, options.max_tokens, options.temperature)


def _write(teacher: Teacher, source: _Source, options: TeachOptions, journal: TeachingJournal, progress: RunProgress) -> None:
    """Have the teacher write all unfinished tasks."""
    num_left = sum(not journal.is_finished(f"{image_id}/{kind}") for image_id in source.image_ids() for kind in options.types)
    asked: dict[str, TeachingTask] = {}
    with progress.stage("teach", num_left, "tasks") as stage:
        for reply in teacher.write(_tasks(source, options, journal, asked)):
            task = asked.pop(reply.key)
            if reply.failure:
                journal.charge(task.key, reply)
                stage.advance(unanswered=1)
                continue
            found = read_reply(task.question_type, reply, task.question)
            journal.add(task, reply, found)
            stage.advance(records=bool(found.pairs), rejected=len(found.rejected))


def _tasks(source: _Source, options: TeachOptions, journal: TeachingJournal, asked: dict[str, TeachingTask]) -> Iterator[TeachingTask]:
    for view in source:
        try:
            tasks = _tasks_about(view, source, options, journal)
        except BadImageError as error:
            log.warning("%s; set aside", error)
            source.images_set_aside["unreadable"] += 1
            continue
        for task in tasks:
            asked[task.key] = task
            yield task


def _tasks_about(view: TextView, source: _Source, options: TeachOptions, journal: TeachingJournal) -> list[TeachingTask]:
    """The unfinished tasks of an image. Raises `BadImageError` if the teacher is to see it and cannot."""
    sight = source.sight
    view = view if sight is None else replace(view, digest=sight.digest(view.image_id))
    tasks = [teaching_task(view, kind, options.seed, source.detail_questions) for kind in options.types]
    left = [task for task in tasks if not journal.is_finished(task.key, view.digest)]
    if sight is None or not left:
        return left
    image = sight.look(view.image_id)
    return [replace(task, image=image) for task in left]


def _write_images(world: WorldImages[Any], folder: Path, progress: RunProgress) -> None:
    ids = world.image_ids()
    try:
        folder.mkdir(exist_ok=True)
        with progress.stage("draw", len(ids), "images") as stage:
            for image_id in ids:
                path, tmp = folder / f"{image_id}.png", folder / f".{image_id}.tmp"
                if not path.exists():
                    world.open(image_id).save(tmp, format="PNG")
                    os.replace(tmp, path)
                stage.advance()
    except OSError as error:
        raise TeachingStoppedError(str(folder.parent), f"cannot write {folder}: {error.strerror or error}") from error


def _summary(options: TeachOptions, source: _Source, journal: TeachingJournal, seconds: float, stopped: str) -> dict[str, Any]:
    counts = journal.counts()
    return {
        "teacher": options.teacher if options.endpoint is None else options.endpoint.model,
        "num_images": len(source.image_ids()) - source.images_set_aside["unreadable"],
        "types": [str(kind) for kind in options.types],
        "num_finished": counts.num_finished,
        "num_unanswered": counts.num_unanswered,
        "num_records": counts.num_records,
        "records_by_type": dict(sorted(counts.records_by_type.items())),
        "num_pairs": counts.num_pairs,
        "rejected": dict(counts.rejected.most_common()),
        "images_set_aside": dict(+source.images_set_aside),
        "objects_set_aside": dict(source.objects_set_aside),
        **({} if source.sight is None else {"num_images_shown": source.sight.num_images, "num_image_bytes": source.sight.num_bytes}),
        "usage": asdict(counts.usage),
        "seconds": round(seconds, 3),
        "stopped": stopped,
    }
