"""Text models that commands ask, from their options: at an endpoint, or in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from actors.chat.endpoint_options import EndpointOptions
from loop.errors import UserError, one_line

if TYPE_CHECKING:
    from policies.chat import ChatModel


def endpoint_options(url: str, model: str, extra_body: str, **limits: Any) -> EndpointOptions:
    """The options of an endpoint; `extra_body` is the text of a JSON object. Raises `UserError`."""
    try:
        extra = json.loads(extra_body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--extra-body is not JSON: {one_line(error)}") from error
    if not isinstance(extra, dict):
        raise UserError(f'--extra-body is {extra_body[:80]!r}; expected an object such as {{"top_p": 0.9}}')
    try:
        return EndpointOptions(url, model, extra_body=extra, **limits)
    except ValueError as error:
        raise UserError(one_line(error)) from error


def chat_model(url: str | None, name: str | None, path: str | None, path_option: str, limits: dict[str, Any]) -> tuple[ChatModel, str]:
    """The text model to ask, and its name.

    Raises:
        UserError: none or two are given, or it cannot be used.
    """
    if (url is None) == (path is None) or (url is None) != (name is None):
        raise UserError(f"one text model is expected: --endpoint URL with --model NAME, or {path_option} PATH")
    try:
        if url is not None and name is not None:
            from actors.chat.endpoint import Endpoint

            return Endpoint(endpoint_options(url, name, **limits)), name
        from actors.chat.local import LocalChat

        return LocalChat(str(path)), str(path)
    except ValueError as error:
        raise UserError(one_line(error)) from error
