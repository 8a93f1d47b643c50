from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rio_bench.strategy import Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from rio_bench.datasets.frequency import Frequency


class ImageOnly(Strategy):
    """Repeat factor sampling (RFS): images with rare categories are shown more often (Gupta et al., LVIS, 2019)."""

    repeat_threshold: float = Field(
        0.001,
        gt=0,
        le=1,
        description="t: categories in a smaller share of the training images are repeated [share of images, 0..1] "
        "(LVIS: 0.001)",
    )

    def image_repeat_factors(self, frequency: Frequency) -> Tensor:
        return repeat_factors(frequency, self.repeat_threshold, exponent=0.5)


def repeat_factors(frequency: Frequency, threshold: float, exponent: float) -> Tensor:
    """The largest r(c) of an image's categories, r(c) = max(1, (threshold / f(c)) ** exponent): float32 [num_images].

    f(c) is the share of the images that hold category c; an image without objects keeps factor 1. RFS (Gupta et al.,
    LVIS, 2019) has the exponent 0.5.
    """
    import torch

    # A category without images is in no pair: its entry is never read, and must only not divide by zero.
    image_count = frequency.image_count.clamp(min=1).double()
    category_factor = (threshold * frequency.num_images / image_count).pow(exponent).float()
    # The ones take part in the maximum: no factor is below 1.
    factors = torch.ones(frequency.num_images)
    return factors.scatter_reduce(0, frequency.pair_image, category_factor[frequency.pair_category], reduce="amax")
