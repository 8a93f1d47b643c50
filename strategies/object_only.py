from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rio_bench.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rio_bench.datasets.frequency import Frequency


class ObjectOnly(Strategy):
    """Object-centric sampling: features of past rare objects replayed from a bank (Chang et al., RIO, ICML 2021)."""

    samples_per_class: int = Field(
        20, ge=1, description="replays of each bank category seen in a batch, as far as its bank goes [RoIs] (RIO: 20)"
    )
    bank_capacity: int = Field(60, ge=1, description="RoIs that the bank holds of each category [RoIs] (RIO: 60)")
    bank_max_images: int = Field(
        30, ge=1, description="categories in at most so many training images have a bank [images] (RIO: 30)"
    )
    sampling: Literal["newest", "random"] = Field(
        "newest", description="the entries replayed: the most recent, or random ones without replacement (RIO: newest)"
    )
    storage: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="number format of the stored features (RIO: float32)"
    )
    bank: Literal["local", "shared"] = Field(
        "local", description="a bank a process, or one content on all processes (RIO: local)"
    )
    max_pushes_per_object: int | None = Field(
        None, ge=1, description="RoIs of one object stored in one step; none: all of them [RoIs] (RIO: none)"
    )

    def object_resampler(self, frequency: Frequency, feature_dim: int) -> nn.Module | None:
        """None where no category is rare enough for a bank."""
        from rio_bench.bank import ObjectReplay

        bank_categories = (frequency.image_count > 0) & (frequency.image_count <= self.bank_max_images)
        if not bank_categories.any():
            return None
        return ObjectReplay(
            bank_categories,
            feature_dim,
            counts=self.replay_counts(frequency.image_count, bank_categories),
            capacity=self.bank_capacity,
            sampling=self.sampling,
            storage=self.storage,
            shared=self.bank == "shared",
            max_pushes_per_object=self.max_pushes_per_object,
        )

    def replay_counts(self, image_count: Tensor, bank_categories: Tensor) -> int | Callable[[Tensor], Tensor]:
        """Replays of each category present: a number for all, or labels int64 [N] -> int64 [R], a count a bank row.

        Row r of the bank is the r-th True of ``bank_categories``, bool [num_classes].
        """
        return self.samples_per_class
