"""A YAML file as plain data, and where each of its values stands, so that an error can name file, line and key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rio_bench.errors import UserError, did_you_mean

Location = tuple[str | int, ...]


class YamlSource:
    """The mapping in a YAML 1.2 file with overrides from the command line laid over it: ``data``, of plain types."""

    def __init__(self, path: Path, overrides: Sequence[str] = (), root_keys: Sequence[str] = ()) -> None:
        """An override is KEY=VALUE, the value in YAML; a key that begins with no root key is one of ``run``."""
        self.path = path
        self.overridden: dict[Location, str] = {}
        self.tree = self._read()
        self.data = self._plain(self.tree, ())
        for override in overrides:
            self._apply(override, root_keys)

    def where(self, location: Location) -> str:
        """``FILE:LINE`` of the value, or of the nearest enclosing one in the file; ``--set ...`` of an override."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.overridden:
                return f"--set {_shown(self.overridden[location[:length]])}"
        node, line = self.tree, 0
        for key in location:
            if not isinstance(node, CommentedMap | CommentedSeq) or key not in (node.lc.data or ()):
                break
            line = node.lc.data[key][0]
            node = node[key]
        return f"{self.path}:{line + 1}"

    def error(self, location: Location, message: str) -> UserError:
        key = f"{dotted(location)}: " if location else ""
        return UserError(f"{self.where(location)}: {key}{message}")

    def _read(self) -> CommentedMap:
        try:
            tree = _parse(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            near = did_you_mean(self.path.name, [file.name for file in self.path.parent.glob("*.yaml")])
            raise UserError(f"{self.path}: no such file{near}") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: expected UTF-8 text, byte {error.start} is none") from error
        except MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UserError(f"{self.path}{line}: {_problem(error)}") from error
        except YAMLError as error:
            raise UserError(f"{self.path}: {_problem(error)}") from error
        if not isinstance(tree, CommentedMap):
            raise UserError(f"{self.path}:1: expected a mapping (key: value), got {_describe(tree)}")
        return tree

    def _plain(self, node: Any, location: Location) -> Any:
        """The tree without ruamel's types."""
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise self.error(location, f"expected texts as keys, got {key!r}")
            return {str(key): self._plain(value, (*location, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [self._plain(value, (*location, index)) for index, value in enumerate(node)]
        if node is None or isinstance(node, bool):
            return node
        for plain_type in (int, float, str):
            if isinstance(node, plain_type):
                return plain_type(node)
        raise self.error(location, "expected a number, a text, true, false, a list or a mapping")

    def _apply(self, override: str, root_keys: Sequence[str]) -> None:
        key, equals, text = override.partition("=")
        first, *rest = key.strip().split(".", 1)
        if not equals or not first:
            raise UserError(f"--set {_shown(override)}: expected KEY=VALUE, as in iterations=20 or grid.seed=[0,1]")
        try:
            value = _parse(text)
        except YAMLError as error:
            raise UserError(f"--set {_shown(override)}: {_problem(error)}") from error
        if first not in root_keys:
            first, rest = "run", [key.strip()]
        # Keys within a section keep their dots: `strategy.samples_per_class` is a key of `run` as it is of `grid`.
        location = (first, *rest)
        self.overridden[location] = override
        section = self.data
        if rest:
            section = self.data[first] if self.data.get(first) is not None else self.data.setdefault(first, {})
            if not isinstance(section, dict):
                raise self.error((first,), f"expected a mapping, got {_describe(section)}")
        section[location[-1]] = self._plain(value, location)


def dotted(location: Location) -> str:
    """``grid.strategy[3].name``"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _parse(text: str) -> Any:
    try:
        return YAML(typ="rt").load(text)
    except RecursionError:
        raise YAMLError("nested too deeply") from None


def _shown(override: str) -> str:
    """Without the password of a URL."""
    override = re.sub(r"(://[^/:@\s]*):[^@\s]*@", r"\1:***@", override)
    return re.sub(r"(password=)[^&\s]*", r"\1***", override)


def _problem(error: YAMLError) -> str:
    if isinstance(error, DuplicateKeyError):
        return f"{error.problem.split(' with value')[0].removeprefix('found ')}: give it once"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"not valid YAML: {' '.join(problem.split())}"


def _describe(value: object) -> str:
    return "nothing" if value is None else "a list" if isinstance(value, list) else repr(value)
