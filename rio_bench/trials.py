"""A search as the scheduler sees it: asked for runs when slots are free, told how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rio_bench.errors import UserError
from rio_bench.plan import PlannedRun
from rio_bench.records import Record

if TYPE_CHECKING:
    from rio_bench.search import Search


class Trials:
    """Hands calls on to a search. Once one of them fails (a full disk, a database that is gone), the search is over:
    runs that go on may end, and `failure` tells why there are no more."""

    def __init__(self, search: Search | None) -> None:
        self._search = search
        self.failure = ""
        self._planned: list[PlannedRun] = []

    def ask(self) -> PlannedRun | None:
        """The next run to do; None: none now."""
        if self._search is None or self.failure:
            return None
        try:
            return self._search.ask()
        except (UserError, OSError) as error:
            self.give_up(error)
            return None

    def planned(self) -> list[PlannedRun]:
        """The runs of all trials so far, as far as is known."""
        if self._search is not None and not self.failure:
            try:
                self._planned = self._search.planned()
            except (UserError, OSError) as error:
                self.give_up(error)
        return self._planned

    def is_over(self) -> bool:
        """Whether no run will come any more."""
        if self._search is None or self.failure:
            return True
        try:
            return self._search.is_exhausted()
        except (UserError, OSError) as error:
            self.give_up(error)
            return True

    def is_to_be_pruned(self, run: PlannedRun, iteration: int, values: dict[str, float | None]) -> bool:
        """Hand on an intermediate evaluation; whether the run is to end."""
        if self._search is None or self.failure:
            return False
        try:
            return self._search.report(run.name, iteration, values)
        except (UserError, OSError) as error:
            self.give_up(error)
            return False

    def tell(self, run: PlannedRun, how: Literal["finished", "failed", "pruned"], record: Record | None = None) -> str:
        """Hand on how a run ended; a line worth telling, or nothing."""
        if self._search is None or self.failure:
            return ""
        try:
            line = self._search.tell(run.name, how, record)
        except (UserError, OSError) as error:
            self.give_up(error)
            return ""
        self.write()
        return line or ""

    def write(self) -> None:
        """Let the result folder show what was found so far."""
        if self._search is None or self.failure:
            return
        try:
            self._search.write()
        except (UserError, OSError) as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Ask no more."""
        self.failure = f"search: {error}"
