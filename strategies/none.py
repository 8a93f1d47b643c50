from __future__ import annotations

from rio_bench.strategy import Strategy


class NoResampling(Strategy):
    """No resampling: every image once an epoch, no replays. The baseline."""
