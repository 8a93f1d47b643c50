"""A run's curves, from its metrics file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from rio_bench.records import EVALUATION

MOST_POINTS = 200  # of a curve in a report: more than a screen shows apart


class _Line(msgspec.Struct, gc=False, rename={"ap": f"{EVALUATION}AP.b", "rare_ap": f"{EVALUATION}AP.b.r"}):
    """What is read of a line: the other scalars are not drawn."""

    iteration: int
    total_loss: float | None = None
    bank_fill: float | None = None
    bank_replayed: float | None = None
    ap: float | None = None
    rare_ap: float | None = None


Curve = dict[int, float]  # iteration, counted from 1 -> value, ascending


def read_curves(file: Path) -> dict[str, Curve]:
    """Curves by the fields of a line; those without a point are left out, all of them where there is no file.

    A resumed run repeats iterations: the later line counts, and what was measured after it is dropped, as it belongs to
    the attempt that ended. Torn lines and those of another kind are passed over.
    """
    try:
        content = file.read_bytes()
    except OSError:
        return {}
    decoder = msgspec.json.Decoder(_Line)
    names = [name for name in _Line.__struct_fields__ if name != "iteration"]
    curves: dict[str, Curve] = {name: {} for name in names}
    last = dict.fromkeys(names, 0)
    for text in content.splitlines():
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        done = line.iteration + 1
        for name in names:
            value = getattr(line, name)
            if value is None:
                continue
            if done < last[name]:  # of this curve: Detectron2 may write an evaluation after a later iteration's loss
                curves[name] = {at: kept for at, kept in curves[name].items() if at < done}
            curves[name][done] = value
            last[name] = done
    return {name: curve for name, curve in curves.items() if curve}


def thinned(curve: Mapping[int, float], most: int = MOST_POINTS) -> Curve:
    """At most `most` + 1 points of a curve, evenly spread, the first and the last among them.

    Points are taken as they are: Detectron2 writes losses as medians over 20 iterations.
    """
    points = list(curve.items())
    step = -(-len(points) // most) or 1
    return dict([*points[::step], *points[-1:]])
