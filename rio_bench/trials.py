"""A search as the scheduler sees it: asked for runs when slots are free, told how they ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from rio_bench.errors import UserError
from rio_bench.plan import PlannedRun
from rio_bench.records import Record

if TYPE_CHECKING:
    from rio_bench.search import Search

T = TypeVar("T")


class Trials:
    """Hands calls on to a search. Once one of them fails (a full disk, a database that is gone), the search is over:
    runs that go on may end, and `failure` tells why there are no more."""

    def __init__(self, search: Search | None) -> None:
        self._search = search
        self.failure = ""
        self._planned: list[PlannedRun] = []

    def ask(self) -> PlannedRun | None:
        """The next run to do; None: none now."""
        return self._answer(lambda search: search.ask(), None)

    def planned(self) -> list[PlannedRun]:
        """The runs of all trials so far, as far as is known."""
        self._planned = self._answer(lambda search: search.planned(), self._planned)
        return self._planned

    def is_over(self) -> bool:
        """Whether no run will come any more."""
        return self._answer(lambda search: search.is_exhausted(), True)

    def is_to_be_pruned(self, run: PlannedRun, iteration: int, values: dict[str, float | None]) -> bool:
        """Hand on an intermediate evaluation; whether the run is to end."""
        return self._answer(lambda search: search.report(run.name, iteration, values), False)

    def tell(self, run: PlannedRun, how: Literal["finished", "failed", "pruned"], record: Record | None = None) -> str:
        """Hand on how a run ended; a line worth telling, or nothing."""
        line = self._answer(lambda search: search.tell(run.name, how, record), None)
        self.write()
        return line or ""

    def write(self) -> None:
        """Let the result folder show what was found so far."""
        self._answer(lambda search: search.write(), None)

    def _answer(self, call: Callable[[Search], T], otherwise: T) -> T:
        """What the search answers; `otherwise` where there is none, or it has failed or fails now."""
        if self._search is None or self.failure:
            return otherwise
        try:
            return call(self._search)
        except (UserError, OSError) as error:
            self.give_up(error)
            return otherwise

    def give_up(self, error: Exception) -> None:
        """Ask no more."""
        self.failure = f"search: {error}"
