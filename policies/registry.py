"""Registries: the one place where a name in a config becomes a policy.

A name is either registered (`agreement`) or names a class of the user's own as `module:Name`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from policies.checks import did_you_mean

T = TypeVar("T")


class UnknownPolicyError(ValueError):
    """A config names a policy that does not exist or does not take the given options."""


class Registry(Generic[T]):
    """Policies of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator: make a class known under `name`."""

        def enter(factory: Callable[..., T]) -> Callable[..., T]:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name] = factory
            return factory

        return enter

    def names(self) -> list[str]:
        return sorted(self._entries)

    def find(self, name: str) -> Callable[..., T]:
        """The factory behind a registered name or a `module:Name`.

        Raises:
            UnknownPolicyError: there is no such name, module or attribute.
        """
        if ":" not in name:
            if name not in self._entries:
                raise UnknownPolicyError(
                    f"unknown {self.kind} {name!r}; expected one of {self.names()} or your own as module:Name"
                    f"{did_you_mean(name, self.names())}"
                )
            return self._entries[name]
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownPolicyError(f"cannot load {self.kind} {name!r}: {error}; is its module on PYTHONPATH?") from error

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """An instance of the policy `name` with `options` as keyword arguments.

        Raises:
            UnknownPolicyError: unknown name, or options that the policy does not take or refuses.
        """
        factory = self.find(name)
        try:
            return factory(**(options or {}))
        except (TypeError, ValueError) as error:
            raise UnknownPolicyError(f"{self.kind} {name!r} cannot be built from {dict(options or {})}: {error}") from error
