"""Base class of config sections, and how a policy is written in a config."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


POLICY_NAME = r"^([^:]+|[A-Za-z_][\w.]*:\w+)$"
"""A registered name, or `module:Name`."""


class Policy(Section):
    """A policy by its name, with its options."""

    policy: str = Field(pattern=POLICY_NAME, description="registered name, or a class of your own as module:Name")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the policy")


def listed(value: Any) -> Any:
    """A single name as a list of one."""
    return [value] if isinstance(value, str) else value


def unfolded(value: Any) -> Any:
    """`name` and `{name: {option: value}}` are both a policy: as `{policy: name, options: {option: value}}`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return {"policy": value}
    if not isinstance(value, dict | Policy):
        raise ValueError("a policy is expected, as NAME or {NAME: {OPTION: VALUE}}")
    if isinstance(value, dict) and "policy" not in value:
        if len(value) != 1:
            raise ValueError(f"one policy is expected, as NAME or {{NAME: {{OPTION: VALUE}}}}, but the keys are {list(value)}")
        (name, options), *_ = value.items()
        return {"policy": name, "options": {} if options is None else options}
    return value


PolicySpec = Annotated[Policy, BeforeValidator(unfolded)]
