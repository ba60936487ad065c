"""Options of a chat endpoint: its address and its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from actors.chat.apis import APIS, ApiName
from policies.checks import check_at_least


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """Address and limits of an endpoint.

    Raises:
        ValueError: an option is invalid.
    """

    url: str
    """Up to and including the version: `http://127.0.0.1:8000/v1`."""
    model: str
    api: ApiName = "openai"
    """The protocol that the endpoint speaks."""
    api_key_env: str = ""
    """Environment variable with the key; empty for no key. The key itself is never an option, so that it is never logged."""
    max_concurrency: int = 8
    """Concurrent requests."""
    requests_per_minute: float | None = None
    """Requests started, evenly spaced, including retries; None for no limit."""
    timeout_s: float = 120.0
    """Of one attempt, from the request to the last byte of its answer."""
    max_attempts: int = 8
    first_backoff_s: float = 1.0
    """Longest wait before the second attempt; doubles with every further attempt, up to a minute."""
    max_retry_after_s: float = 300.0
    """Longest `Retry-After` to wait for."""
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    max_usd: float | None = None
    """Spending cap, including `spent_usd`; None for none."""
    spent_usd: float = 0.0
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request; None removes a field, as in `{"seed": None, "top_p": 0.9}`."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the endpoint's URL is {_bare(self.url)!r}; expected one such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(f"the endpoint's URL {_bare(self.url)!r} contains a user or a query; pass the key in an environment variable")
        if self.api not in APIS:
            raise ValueError(f"the endpoint's api is {self.api!r}; expected one of {', '.join(APIS)}")
        if not self.model:
            raise ValueError("the endpoint's model has no name; give the one that the endpoint serves")
        for name, minimum in (
            ("max_concurrency", 1), ("max_attempts", 1), ("first_backoff_s", 0.001), ("timeout_s", 0.001), ("max_retry_after_s", 0.0),
            ("usd_per_million_input", 0.0), ("usd_per_million_output", 0.0), ("spent_usd", 0.0),
        ):  # fmt: skip
            check_at_least(name, getattr(self, name), minimum)
        if self.requests_per_minute is not None:
            check_at_least("requests_per_minute", self.requests_per_minute, 0.001)
        if self.max_usd is not None:
            check_at_least("max_usd", self.max_usd, 0.0)
            if not self.usd_per_million_input and not self.usd_per_million_output:
                raise ValueError("max_usd caps nothing without prices; give usd_per_million_input and usd_per_million_output")

    @property
    def request_url(self) -> str:
        base, path = self.url.rstrip("/"), APIS[self.api].path
        return base if base.endswith(path) else base + path

    def usd(self, num_input_tokens: int, num_output_tokens: int) -> float:
        return (num_input_tokens * self.usd_per_million_input + num_output_tokens * self.usd_per_million_output) / 1e6


def _bare(url: str) -> str:
    """A URL for an error message, without parts that may be secret."""
    return re.sub(r"//[^/@]*@", "//", url).partition("?")[0]
