"""Registries: resolve the names in a config to policies.

A name is either registered (`agreement`) or names a user-defined class as `module:Name`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from policies.checks import did_you_mean
from policies.errors import policy_error

T = TypeVar("T")
_Factory = TypeVar("_Factory", bound=Callable[..., Any])


class UnknownPolicyError(ValueError):
    """A config names a policy that does not exist, does not take the given options, or is not a policy of its kind."""


def missing_members(policy: object, protocol: type) -> list[str]:
    """The public attributes and methods of `protocol` that `policy` lacks, one text each."""
    faults = []
    for name in [*inspect.get_annotations(protocol), *vars(protocol)]:
        if name.startswith("_"):
            continue
        wanted = vars(protocol).get(name)
        if not hasattr(policy, name):
            faults.append(f"it has no {name}")
        elif inspect.isfunction(wanted) and not _takes(getattr(policy, name), wanted):
            faults.append(f"its {name} does not take ({', '.join(_parameters(wanted))})")
    return faults


def _parameters(method: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


def _takes(method: object, wanted: Callable[..., Any]) -> bool:
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*_parameters(wanted))
    except TypeError:
        return False
    return True


class Registry(Generic[T]):
    """Policies of one kind by name."""

    def __init__(self, kind: str, contract: type | Callable[[object], list[str]] | None = None) -> None:
        """`contract` is the protocol of the policies, or a function that lists an object's faults; without it any object is accepted."""
        self.kind = kind
        self._faults = partial(missing_members, protocol=contract) if isinstance(contract, type) else contract
        self._entries: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[_Factory], _Factory]:
        """Decorator: register a class under `name`."""

        def enter(factory: _Factory) -> _Factory:
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
            PolicyError: the module raises an error.
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
        except Exception as error:
            raise policy_error(f"{self.kind} {name!r}", error) from error

    def build(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """An instance of the policy `name` with `options` as keyword arguments.

        Raises:
            UnknownPolicyError: unknown name, options that the policy does not take or refuses, or a class that is not such a policy.
            PolicyError: the class raises another error.
        """
        factory = self.find(name)
        try:
            policy = factory(**(options or {}))
        except (TypeError, ValueError) as error:
            raise UnknownPolicyError(f"{self.kind} {name!r} cannot be built from {dict(options or {})}: {error}") from error
        except Exception as error:
            raise policy_error(f"{self.kind} {name!r}", error) from error
        if self._faults is not None and (faults := self._faults(policy)):
            raise UnknownPolicyError(f"{name!r} is not a valid {self.kind}: {'; '.join(faults)}; docs/policies.md says what one needs")
        return policy
