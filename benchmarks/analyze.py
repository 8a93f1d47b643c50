"""How long `rio_bench analyze` takes on a data set of LVIS v1's size, four strategies, one thread.

    python benchmarks/analyze.py [--folder /tmp]

Makes lvis_v1_train.json (1.1 GB, deleted afterwards): 100,170 images, LVIS v1's 1,203 categories with its own image
counts, each in random images, 1.27 million objects with polygons; and runs the command on it in a process of its own,
with batches of 16 as the publication. Prints its seconds, wall and CPU, and its peak memory; beside it, what reading
the file takes as a training does. Then the command's own output.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rio_bench.datasets.inspection import bucket
from rio_bench.provenance import device_name

IMAGES = 100_170
OBJECTS = 1_270_141
POLYGONS = 2_000  # different ones; they take turns
POINTS = 48  # of a polygon: with them an object takes 870 bytes, as in LVIS v1
EXPERIMENT = """\
run: {dataset: lvis_v1, backbone: R50-FPN, iterations: 180000, batch_size: 16}
grid: {strategy: [none, image_only, object_only, rio]}
"""
READ = """\
import sys
from pathlib import Path
from rio_bench.datasets.lvis import Split, read_split
read_split(Split(Path(sys.argv[1]), Path(".")), skip_empty=True)
"""


def lvis_image_counts() -> list[int]:
    import rio_bench.datasets.glyphs as glyphs

    table = Path(glyphs.__file__).with_name("glyphs_lvis.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in table if not line.startswith("#"))
    return [int(row["lvis_image_count"]) for row in rows]


def make_data_set(root: Path) -> None:
    """Where Detectron2 expects LVIS; the validation file has no images, and the pictures are not there."""
    for folder in ("lvis", "coco/train2017", "coco/val2017"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    counts = lvis_image_counts()
    image = np.concatenate([random.choice(IMAGES, count, replace=False) for count in counts])
    category = np.repeat(np.arange(len(counts)), counts)
    instances = random.geometric(len(image) / OBJECTS, len(image))
    categories = json.dumps(
        [{"id": n + 1, "name": f"category {n}", "frequency": bucket(count)} for n, count in enumerate(counts)]
    )
    images = ", ".join(
        json.dumps({"id": n + 1, "height": 480, "width": 640, "coco_url": f"http://images/train2017/{n + 1:012}.jpg"})
        for n in range(IMAGES)
    )
    polygons = [json.dumps([row.tolist()]) for row in random.uniform(0, 640, (POLYGONS, 2 * POINTS)).round(2)]
    number = 0
    with (root / "lvis/lvis_v1_train.json").open("w") as file:
        file.write(f'{{"categories": {categories}, "images": [{images}], "annotations": [')
        for image_index, category_index in zip(
            np.repeat(image, instances).tolist(), np.repeat(category, instances).tolist(), strict=True
        ):
            number += 1
            file.write(
                f'{", " if number > 1 else ""}{{"id": {number}, "image_id": {image_index + 1}, '
                f'"category_id": {category_index + 1}, "bbox": [101.25, 82.5, 33.75, 41.0], "area": 1383.75, '
                f'"segmentation": {polygons[number % POLYGONS]}}}'
            )
        file.write("]}")
    (root / "lvis/lvis_v1_val.json").write_text(f'{{"categories": {categories}, "images": [], "annotations": []}}')


def measure(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds of wall time and of CPU time, and standard output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder)}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="with 1.2 GB of room")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        folder = Path(name)
        make_data_set(folder)
        file = folder / "lvis/lvis_v1_train.json"
        (folder / "four.yaml").write_text(EXPERIMENT)
        print(f"{file.stat().st_size / 1e9:.2f} GB; {device_name('cpu')}, of which 1 is used")
        wall, cpu, told = measure([sys.executable, "-m", "rio_bench", "analyze", "four.yaml"], folder)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"rio_bench analyze: {wall:.1f} s, CPU {cpu:.1f} s, at most {peak:.1f} GiB")
        read_wall, read_cpu, _ = measure([sys.executable, "-c", READ, str(file)], folder)
        print(
            f"reading the file as a training does: {read_wall:.1f} s, CPU {read_cpu:.1f} s; ratio {cpu / read_cpu:.1f}"
        )
        print(f"\n{told}")


if __name__ == "__main__":
    main()
