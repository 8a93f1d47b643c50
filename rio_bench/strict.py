"""Strict models for what users write, and their errors in a user's words."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rio_bench.errors import did_you_mean
from rio_bench.yaml_source import Location


def located(location: Location, message: str) -> ValidationError:
    """A validation error at a place below the validator that raises it."""
    problem = PydanticCustomError("located", "{message}", {"message": message})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=problem, loc=location, input=None)])


def refuse_unknown_keys(data: Mapping[str, Any], known: Iterable[str], of: str = "") -> None:
    for key in data:
        if key not in known:
            raise located((key,), f"unknown key{of}{did_you_mean(str(key), known) or ' (it has no hyperparameters)'}")


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _suggest_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse_unknown_keys(data, [field.alias or name for name, field in cls.model_fields.items()])
        return data


def explain(details: ErrorDetails) -> str:
    """A pydantic error in the words of an experiment file: what was expected, what was there."""
    kind, message = details["type"], details["msg"]
    if kind == "missing":
        return "is required"
    if kind in ("value_error", "located"):
        return message.removeprefix("Value error, ")
    if kind == "too_short":
        return "expected at least one value, got an empty list"
    expected = message.replace("Input should be", "expected").replace("a valid dictionary", "a mapping")
    expected = re.sub(r" or instance of \w+", "", expected)
    suggestion = ""
    if kind == "literal_error" and isinstance(details["input"], str):
        choices = details["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        near = did_you_mean(details["input"], choices)
        suggestion = near if "did you mean" in near else ""
    return f"{expected}, got {reprlib.repr(details['input'])}{suggestion}"
