"""The `vigc` command that has a teacher write seed data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from loop.chat_models import endpoint_options
from loop.errors import UserError
from loop.scoring.commands import Api, AsJson

commands = typer.Typer()


@commands.command()
def teach(
    out: Annotated[Path, typer.Option(help="output folder; the same command continues what is there")],
    captions: Annotated[Path | None, typer.Option(help="COCO captions, or JSON Lines with captions and boxes")] = None,
    instances: Annotated[Path | None, typer.Option(help="COCO or Objects365 instances")] = None,
    images: Annotated[Path | None, typer.Option(help="folder of the images; annotated ones that it lacks are set aside")] = None,
    teacher_sees: Annotated[
        Literal["text", "images"], typer.Option(help="captions and boxes, or the images of --images, --shapes or --world themselves")
    ] = "text",
    image_side: Annotated[int | None, typer.Option(help="longest side in pixels of images that the teacher sees; default 1024")] = None,
    image_quality: Annotated[int | None, typer.Option(help="JPEG quality of images that the teacher sees; default 90")] = None,
    num_images: Annotated[int | None, typer.Option(help="number of images, drawn by the seed; default all")] = None,
    shapes: Annotated[int | None, typer.Option(metavar="NUM_IMAGES", help="images of the world `shapes` instead")] = None,
    world: Annotated[
        str | None, typer.Option(help="images of an embedded world instead, such as drawings:styles=noto,num_images=2000")
    ] = None,
    min_shift: Annotated[float, typer.Option(help="of --shapes, 0..1")] = 0.0,
    max_shift: Annotated[float, typer.Option(help="of --shapes, 0..1")] = 0.15,
    write_images: Annotated[bool, typer.Option("--write-images", help="draw the images of --shapes or --world into OUT/images")] = False,
    types: Annotated[str, typer.Option(help="question types, with commas")] = "conversation,detail,complex",
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
    teacher: Annotated[str, typer.Option(help="exact (for --shapes and --world), or a text model's folder or Hugging Face id")] = "",
    endpoint: Annotated[str, typer.Option(help="URL of a server, up to and with its version: http://127.0.0.1:8000/v1")] = "",
    model: Annotated[str, typer.Option(help="the model's name at the endpoint")] = "",
    api: Api = "openai",
    api_key_env: Annotated[str, typer.Option(help="environment variable that holds the endpoint's key")] = "",
    concurrency: Annotated[int, typer.Option(help="concurrent requests")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="most requests started in a minute; default no limit")] = None,
    timeout_s: Annotated[float, typer.Option(help="time limit for one request")] = 120.0,
    max_attempts: Annotated[int, typer.Option(help="attempts for one text before it is given up")] = 8,
    usd_per_million_input: Annotated[float, typer.Option(help="price of a million tokens read")] = 0.0,
    usd_per_million_output: Annotated[float, typer.Option(help="price of a million tokens written")] = 0.0,
    max_usd: Annotated[float | None, typer.Option(help="spending cap for OUT, over all commands that wrote into it")] = None,
    extra_body: Annotated[str, typer.Option(metavar="JSON", help="more fields for every request; null removes one")] = "{}",
    max_tokens: Annotated[int, typer.Option(help="largest number of tokens in one text")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.7,
    batch_size: Annotated[int, typer.Option(help="texts per batch of a model that runs here")] = 8,
    as_json: AsJson = False,
) -> None:
    """Have a teacher write seed data about images, from their captions and boxes or from the images themselves."""
    from loop.teaching.teach import TeachOptions, print_summary, question_types, world_images
    from loop.teaching.teach import teach as write

    if model and not endpoint:
        raise UserError("--model requires --endpoint; for a local model use --teacher MODEL")
    if teacher_sees == "text" and (image_side is not None or image_quality is not None):
        raise UserError("--image-side and --image-quality are for --teacher-sees images; leave them out")
    server = endpoint_options(
        endpoint, model, extra_body, api=api, api_key_env=api_key_env, max_concurrency=concurrency, requests_per_minute=requests_per_minute,
        timeout_s=timeout_s, max_attempts=max_attempts, usd_per_million_input=usd_per_million_input,
        usd_per_million_output=usd_per_million_output, max_usd=max_usd,
    ) if endpoint else None  # fmt: skip
    options = TeachOptions(
        out=out, types=question_types(types), seed=seed, captions=captions, instances=instances, images=images, num_images=num_images,
        world=world_images(world, shapes, seed, min_shift, max_shift), write_images=write_images, teacher=teacher, endpoint=server,
        max_tokens=max_tokens, temperature=temperature, batch_size=batch_size, sees_images=teacher_sees == "images",
        image_side=1024 if image_side is None else image_side, image_quality=90 if image_quality is None else image_quality,
    )  # fmt: skip
    console = Console(stderr=as_json)
    summary = write(options, console)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(console, summary, out)
