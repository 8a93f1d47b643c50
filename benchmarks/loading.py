"""Reading an annotation file of LVIS v1 train's size: rio_bench.datasets.lvis.read_split beside Detectron2's loader.

    python benchmarks/loading.py [--images 100170] [--objects 1270141] [--repeats 1] [--folder /tmp]

Makes the file (1.2 GB; deleted afterwards) and reads it with each loader in a process of its own. Prints seconds of CPU
time, peak memory above what the process held before it began to read, and whether the same records came out; then the
seconds of a first look at the file when runs are planned, and of every later one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import marshal
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CATEGORIES = 1203
POOL = 20_000  # different polygons, which take turns
MEAN_POINTS = 48  # of a polygon: makes 920 bytes an object, LVIS v1 has 870
PICTURES = "/coco/"


def make_file(path: Path, images: int, objects: int) -> None:
    """A file in the LVIS v1 format. Polygons have 3 points or more; one object in twenty has two."""
    random = np.random.default_rng(0)
    polygons = [
        "[" + ", ".join(f"{value:.2f}" for value in random.uniform(0, 640, 2 * points)) + "]"
        for points in 3 + random.exponential(MEAN_POINTS - 3, POOL).astype(int)
    ]
    of_image = np.sort(random.integers(1, images + 1, objects)).tolist()
    of_category = (1 + CATEGORIES * random.random(objects) ** 3).astype(int).tolist()
    boxes = random.uniform(1, 320, (objects, 4)).round(2).tolist()
    chosen = random.integers(0, POOL, (objects, 2)).tolist()
    has_two = (random.random(objects) < 0.05).tolist()
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "categories": ')
        json.dump([{"id": n, "name": f"c{n}", "frequency": "rcf"[n % 3]} for n in range(1, CATEGORIES + 1)], file)
        file.write(', "images": [')
        for number in range(1, images + 1):
            image = {
                "id": number,
                "height": 480,
                "width": 640,
                "license": 1,
                "flickr_url": f"http://farm1.staticflickr.com/{number}.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
                "date_captured": "2013-11-17 05:57:24",
                "neg_category_ids": [number % CATEGORIES + 1, 7],
                "not_exhaustive_category_ids": [number % 5 + 1],
            }
            file.write((", " if number > 1 else "") + json.dumps(image))
        file.write('], "annotations": [')
        for index in range(objects):
            first, second = chosen[index]
            x, y, w, h = boxes[index]
            segmentation = polygons[first] + (", " + polygons[second] if has_two[index] else "")
            file.write(
                f'{", " if index else ""}{{"id": {index + 1}, "area": {w * h:.2f}, "segmentation": [{segmentation}], '
                f'"image_id": {of_image[index]}, "bbox": [{x}, {y}, {w}, {h}], "category_id": {of_category[index]}}}'
            )
        file.write("]}")


def read_as_detectron2(path: Path) -> list[dict[str, Any]]:
    """Detectron2's loader reads through the `lvis` package, which imports cv2 and wants an older numpy."""
    from detectron2.data.datasets.lvis import load_lvis_json

    return load_lvis_json(str(path), PICTURES)


def read_as_rio_bench(path: Path) -> list[dict[str, Any]]:
    from rio_bench.datasets.lvis import Split, read_split

    return read_split(Split(path, Path(PICTURES)), skip_empty=False).records


def look(path: Path) -> None:
    from rio_bench.datasets.inspection import inspect
    from rio_bench.datasets.lvis import Split

    inspect(Split(path, Path(PICTURES)))


def import_what_reads(loader: str) -> None:
    """Before the clock starts."""
    if loader == "detectron2":
        np.float = float  # type: ignore[attr-defined]
        import detectron2  # noqa: F401

        sys.modules["cv2"] = types.ModuleType("cv2")
        import detectron2.data.datasets.lvis  # noqa: F401
        import lvis  # noqa: F401
    else:
        import rio_bench.datasets.inspection  # noqa: F401


LOADERS: dict[str, Callable[[Path], Any]] = {
    "detectron2": read_as_detectron2,
    "rio_bench": read_as_rio_bench,
    "look": look,
}


def read_in_this_process(loader: str, path: Path) -> None:
    """Print as JSON: seconds of CPU time, bytes of peak memory above those at the start, a hash of the records."""
    import_what_reads(loader)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    records = LOADERS[loader](path)
    seconds = time.process_time() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": seconds, "memory": memory, "hash": hash_of(records or [])}), flush=True)
    os._exit(0)  # giving back millions of objects takes seconds


def hash_of(records: list[dict[str, Any]]) -> str:
    """Of all values of all records, in their order, whatever the order of the keys."""
    digest = hashlib.sha256()
    for record in records:
        annotations = [
            (a["bbox"], int(a["bbox_mode"]), a["category_id"], a["segmentation"]) for a in record["annotations"]
        ]
        rest = sorted((key, value) for key, value in record.items() if key != "annotations")
        digest.update(marshal.dumps((rest, annotations), 2))  # version 2: by value, whoever else holds it
    return digest.hexdigest()


def measure(loader: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--read", loader, str(path)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_170)
    parser.add_argument("--objects", type=int, default=1_270_141)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--read", nargs=2, metavar=("LOADER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_in_this_process(options.read[0], Path(options.read[1]))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "lvis_v1_train.json")
        make_file(path, options.images, options.objects)
        print(f"{options.images:,} pictures, {options.objects:,} objects, {path.stat().st_size / 1e9:.2f} GB\n")
        print("| loader | CPU seconds | peak memory, GiB | seconds, Detectron2's / it | the same records |")
        print("|---|---|---|---|---|")
        for _ in range(options.repeats):
            found = {loader: measure(loader, path) for loader in ("detectron2", "rio_bench")}
            theirs = found["detectron2"]
            for loader, own in found.items():
                same = "yes" if own["hash"] == theirs["hash"] else "NO"
                ratio = theirs["seconds"] / own["seconds"]
                print(f"| {loader} | {own['seconds']:.1f} | {own['memory'] / 2**30:.2f} | {ratio:.1f} | {same} |")
        os.environ["RIO_BENCH_CACHE"] = folder
        time.sleep(3)  # the hash of a file that has just been written is not kept
        looks = [measure("look", path) for _ in range(2)]
        print(f"\nlooked at: first {looks[0]['seconds']:.1f} s, {looks[0]['memory'] / 2**30:.2f} GiB; "
              f"again {looks[1]['seconds']:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
