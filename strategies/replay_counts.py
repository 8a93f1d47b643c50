"""Rules for the number of replays, as modules: their tables move to the device with the bank, and are no state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """The same counts int64 [R] at every step."""

    counts: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("counts", counts, persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        return self.counts


class Ratio(nn.Module):
    """ceil(ratio x RoIs of the category among the labels): int64 [R]."""

    categories: Tensor

    def __init__(self, bank_categories: Tensor, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("categories", bank_categories.nonzero().squeeze(1), persistent=False)
        self.num_labels = len(bank_categories) + 1  # the last is background

    def forward(self, labels: Tensor) -> Tensor:
        present = torch.zeros(self.num_labels, dtype=torch.int64, device=labels.device)
        present = present.index_add(0, labels, torch.ones_like(labels))[self.categories]
        # In float64, less a hair: 0.07 x 100 is 7.000000000000001, and must not be rounded up to 8.
        return (present.double() * self.ratio - 1e-9).ceil().long()
