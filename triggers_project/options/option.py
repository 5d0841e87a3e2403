"""What the declaration of a setting consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from triggers_project.options.kinds import Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Option(Generic[T]):
    """One setting.

    default: as it would be written in the environment, or, with `derive`, a description of it.
    meaning: what it does, in Markdown.
    derive: returns the default's text from the values of the options above.
    name: its environment variable; known once all options are collected.
    """

    section: str
    kind: Kind[T]
    default: str
    meaning: str
    derive: Callable[[Mapping[str, Any]], str] | None = None
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Section:
    """A part of the list of settings, with its own table in the documentation."""

    title: str

    def option(
        self, kind: Kind[T], default: str, meaning: str, derive: Callable[[Mapping[str, Any]], str] | None = None
    ) -> T:
        """Declare a setting.

        To a type checker, what is returned is the setting's value, as with `dataclasses.field`.  So mypy knows the type
        of `settings.NAME` from the declaration alone.
        """
        return cast(T, Option(self.title, kind, default, meaning, derive))
