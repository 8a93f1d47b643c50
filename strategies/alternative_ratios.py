from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import pydantic
from pydantic import Field
from rio_strategies.image_only import repeat_factors
from rio_strategies.rio import RIO

if TYPE_CHECKING:
    from torch import Tensor

    from rio_bench.datasets.frequency import Frequency

# Which of the numbers a way to count replays reads.
REPLAY_SETTINGS = {
    "fixed": {"samples_per_class"},
    "ratio": {"replays_per_roi"},
    "rarity": {"samples_per_class", "rarity_exponent"},
}


class AlternativeRatios(RIO):
    """RIO with the balance of its two levels as numbers: how strongly images are repeated, how many RoIs replayed."""

    repeat_exponent: float = Field(
        0.5,
        ge=0,
        le=2,
        description="r(c) = max(1, (t / f(c)) ** exponent) [no unit]: 0.5 is RFS, 1 is RFS without the square root, "
        "0 repeats nothing (LVIS: 0.5)",
    )
    replays: Literal["fixed", "ratio", "rarity"] = Field(
        "fixed",
        description="replays of a category in the batch: samples_per_class (fixed); replays_per_roi x its RoIs there "
        "(ratio); or samples_per_class x (bank_max_images / its training images) ** rarity_exponent (RIO: fixed)",
    )
    replays_per_roi: float = Field(
        1.0, gt=0, description="with replays: ratio, replays for each RoI of the category in the batch [RoIs per RoI]"
    )
    rarity_exponent: float = Field(
        0.5, ge=0, le=2, description="with replays: rarity, how fast replays grow with rarity [no unit]; 0 is fixed"
    )

    @pydantic.model_validator(mode="after")
    def _refuse_ignored_numbers(self) -> AlternativeRatios:
        every = set().union(*REPLAY_SETTINGS.values())
        for field in sorted((every - REPLAY_SETTINGS[self.replays]) & self.model_fields_set):
            raise ValueError(f"'{field}' has no effect with replays: {self.replays}; leave it out")
        return self

    def image_repeat_factors(self, frequency: Frequency) -> Tensor:
        return repeat_factors(frequency, self.repeat_threshold, self.repeat_exponent)

    def replay_counts(self, image_count: Tensor, bank_categories: Tensor) -> int | Callable[[Tensor], Tensor]:
        """See the field ``replays``; the bank gives at most what it holds."""
        from rio_strategies import replay_counts

        if self.replays == "ratio":
            return replay_counts.Ratio(bank_categories, self.replays_per_roi)
        if self.replays == "rarity":
            rarity = self.bank_max_images / image_count[bank_categories].double()
            return replay_counts.Constant((self.samples_per_class * rarity**self.rarity_exponent).round().long())
        return self.samples_per_class
