"""Which pictures are the worst and the best, by hand; what is drawn of them, and what cannot be."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from typer.testing import CliRunner

from rio_bench import cli
from rio_bench.datasets.lvis import Split
from rio_bench.detection import drawing, visualize
from rio_bench.detection.compact import read_detections
from rio_bench.detection.detections import DetectionsWriter
from rio_bench.detection.ground_truth import read_ground_truth
from rio_bench.detection.ranking import PictureScore, Ranking, match, rank_pictures
from rio_bench.detection.visualize import Choice
from rio_bench.errors import UserError
from rio_bench.records import RunFolder, StoredRun

HEIGHT, WIDTH = 40, 120
GREY = 128
NAMES = {1: "rare_one", 2: "common_one", 3: "frequent_one"}


def square(x: int) -> dict[str, Any]:
    """A mask of 20 x 20 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[10:30, x : x + 20] = 1
    rle = mask_utils.encode(mask)
    return {"bbox": [x, 10, 20, 20], "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}}


def found(picture: int, category: int, x: int, score: float) -> dict[str, Any]:
    return {"image_id": picture, "category_id": category, "score": score} | square(x)


def data_set(folder: Path, objects: dict[int, list[tuple[int, int]]], **fields: Any) -> Split:
    """Grey pictures with objects (category, x); `fields` are those of every image."""
    content = {
        "categories": [{"id": number, "name": name, "frequency": name[0]} for number, name in NAMES.items()],
        "images": [
            {"id": n, "height": HEIGHT, "width": WIDTH, "file_name": f"{n}.png"}
            | {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []}
            | fields
            for n in objects
        ],
        "annotations": [
            {"id": 100 * n + i, "image_id": n, "category_id": category, "area": 400} | square(x)
            for n, entries in objects.items()
            for i, (category, x) in enumerate(entries)
        ],
    }
    (folder / "val.json").write_text(json.dumps(content))
    for n in objects:
        Image.new("RGB", (WIDTH, HEIGHT), (GREY, GREY, GREY)).save(folder / f"{n}.png")
    return Split(folder / "val.json", folder)


def write(folder: Path, detections: list[dict]) -> Path:
    with DetectionsWriter(folder / "detections.json") as writer:
        writer.write(detections)
    return folder / "detections.json"


def rank(split: Split, detections: Path, categories: tuple[int, ...] = (0, 1, 2)) -> Ranking:
    truth = read_ground_truth(split.annotations)
    return rank_pictures(truth, read_detections(detections, truth), categories)


# --------------------------------------------------------------------------------------------------------- the ranking


def test_ranking_by_hand(tmp_path: Path) -> None:
    split = data_set(tmp_path, {1: [(1, 0), (1, 60)], 2: [(1, 0)], 3: [], 4: []})
    detections = [
        found(1, 1, 0, 0.9),  # right
        found(1, 1, 1, 0.8),  # a second one of the same object: false
        found(2, 1, 2, 0.7),  # right: IoU 18 / 22
        found(3, 1, 0, 0.6),  # false
        found(1, 2, 60, 0.5),  # false: of another category
        found(2, 1, 60, 0.4),
    ]
    # F1 of the first n, 3 objects: 2/4, 2/5, 4/6, 4/7, 4/8 ...: the first three are best
    ranking = rank(split, write(tmp_path, detections))
    assert (ranking.threshold, ranking.f1) == (0.7, pytest.approx(4 / 6))
    assert ranking.pictures == [PictureScore(0, 1, 1, 1), PictureScore(1, 1, 0, 0)]
    assert [score.f1 for score in ranking.pictures] == [0.5, 1]
    # of the common category nothing is right: as many detections count as there are objects
    assert rank(data_set(tmp_path, {1: [(2, 0)], 3: []}), tmp_path / "detections.json", (1,)) == Ranking(
        0.5, 0.0, [PictureScore(0, 0, 1, 1)]
    )


def test_the_detection_with_the_highest_score_meets_an_object_first(tmp_path: Path) -> None:
    split = data_set(tmp_path, {1: [(1, 0)]})
    ranking = rank(split, write(tmp_path, [found(1, 1, 0, 0.4), found(1, 1, 1, 0.9)]))
    assert (ranking.threshold, ranking.pictures) == (0.9, [PictureScore(0, 1, 0, 0)])


def test_equal_scores_count_all_or_none(tmp_path: Path) -> None:
    split = data_set(tmp_path, {1: [(1, 0)]})
    detections = [found(1, 1, 0, 0.5), *(found(1, 1, 60, 0.5) for _ in range(3))]
    ranking = rank(split, write(tmp_path, detections))
    assert (ranking.f1, ranking.pictures) == (pytest.approx(2 / 5), [PictureScore(0, 1, 0, 3)])


@pytest.mark.parametrize(
    ("fields", "false"),
    [
        ({"neg_category_ids": [1, 2]}, 1),
        ({"neg_category_ids": []}, 0),  # nobody looked for category 2
        ({"neg_category_ids": [1, 2], "not_exhaustive_category_ids": [2]}, 0),
    ],
)
def test_what_the_annotations_do_not_tell_is_not_false(tmp_path: Path, fields: dict, false: int) -> None:
    split = data_set(tmp_path, {1: [(1, 0)]}, **fields)
    detections = write(tmp_path, [found(1, 2, 60, 0.9), found(1, 1, 0, 0.8)])
    assert rank(split, detections).pictures == [PictureScore(0, 1, 0, false)]


def test_boxes_are_compared_where_there_are_no_masks(tmp_path: Path) -> None:
    split = data_set(tmp_path, {1: [(1, 0)], 2: [(1, 0)]})
    detections = [found(1, 1, 3, 0.9), found(2, 1, 60, 0.8)]
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in detections]
    assert rank(split, write(tmp_path, boxes)).pictures == [PictureScore(0, 1, 0, 0), PictureScore(1, 0, 1, 0)]


def test_match() -> None:
    objects = [[0, 0, 10, 10], [4, 0, 10, 10]]
    assert match([[1, 0, 10, 10], [1, 0, 10, 10], [1, 0, 10, 10]], objects) == [0, 1, None]
    assert match([[20, 0, 10, 10]], objects) == [None]
    assert match([[0, 0, 10, 5]], objects) == [0]  # an IoU of 0.5 is enough
    assert match([[1, 0, 10, 10]], []) == [None]
    assert match([], objects) == []


def test_the_worst_and_the_best_first() -> None:
    scores = [
        PictureScore(0, found=1, missed=1, false=1),
        PictureScore(1, found=0, missed=1, false=0),
        PictureScore(2, found=0, missed=1, false=4),
        PictureScore(3, found=1, missed=0, false=0),
        PictureScore(4, found=3, missed=0, false=0),
    ]
    assert [score.picture for score in sorted(scores, key=lambda score: score.is_worse)][:3] == [2, 1, 0]
    assert [score.picture for score in sorted(scores, key=lambda score: score.is_better)][:3] == [4, 3, 0]


# ------------------------------------------------------------------------------------------------------- the pictures


OBJECTS = {1: [(1, 0), (3, 60)], 2: [(1, 0)], 3: [(2, 40)], 4: [(3, 0)]}
DETECTIONS = [found(1, 1, 0, 0.9), found(2, 1, 60, 0.8), found(3, 2, 41, 0.7), found(4, 3, 0, 0.6)]


def test_files_and_what_is_told(tmp_path: Path) -> None:
    split, detections = data_set(tmp_path, OBJECTS), write(tmp_path, DETECTIONS)
    told = visualize.visualize(split, detections, tmp_path / "out", Choice(), 2)
    assert told == (
        f"{tmp_path / 'out'}: 4 of 4 pictures and contact_sheet.png, by all categories; detections with a score from"
        " 0.600 count, which gives the highest F1 (0.67)"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "best_01_image_3_f1_1.00.png",
        "best_02_image_4_f1_1.00.png",
        "contact_sheet.png",
        "worst_01_image_2_f1_0.00.png",
        "worst_02_image_1_f1_0.67.png",
    ]
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as image:
            assert image.width > 2 * drawing.PANEL or path.name == "contact_sheet.png"


def test_few_pictures_are_drawn_once(tmp_path: Path) -> None:
    split, detections = data_set(tmp_path, OBJECTS), write(tmp_path, DETECTIONS)
    visualize.visualize(split, detections, tmp_path / "out", Choice(), 3)
    names = sorted(path.name for path in (tmp_path / "out").glob("*image*"))
    assert [name[:5] for name in names] == ["best_", "worst", "worst", "worst"]


def test_chosen_categories(tmp_path: Path) -> None:
    split, detections = data_set(tmp_path, OBJECTS), write(tmp_path, DETECTIONS)
    told = visualize.visualize(split, detections, tmp_path / "rare", Choice(["r"]), 5)
    assert "2 of 2 pictures and contact_sheet.png, by rare categories;" in told
    told = visualize.visualize(split, detections, tmp_path / "both", Choice(["r"], ["common_one"]), 5)
    assert "3 of 3 pictures and contact_sheet.png, by rare categories and common_one;" in told


def drawn(split: Split, detections: Path, picture: int, choice: Choice) -> drawing.Drawn:
    truth = read_ground_truth(split.annotations)
    pictures = visualize.Pictures(truth, split, choice.positions(truth))
    pictures.read_detections(detections, [picture], 0.5)
    return pictures.drawn(PictureScore(picture, 1, 1, 0), "worst: ")


def test_what_is_drawn(tmp_path: Path) -> None:
    split = data_set(tmp_path, {7: [(1, 0), (1, 60), (3, 90)]}, neg_category_ids=[2])
    detections = [
        found(7, 1, 1, 0.9),
        found(7, 1, 0, 0.8),
        found(7, 2, 60, 0.7),
        found(7, 1, 60, 0.4),  # below the score from which on detections count
        found(7, 3, 90, 0.6),
    ]
    result = drawn(split, write(tmp_path, detections), 0, Choice(names=["rare_one", "common_one"]))
    assert result.title == "worst: image 7, F1 0.67: 1 found, 1 missed, 0 false"
    assert [(shape.name, shape.verdict) for shape in result.objects] == [("rare_one", "found"), ("rare_one", "missed")]
    assert [(shape.name, shape.bucket) for shape in result.others] == [("frequent_one", "f")]
    assert [(shape.name, shape.score, shape.verdict) for shape in result.detections] == [
        ("rare_one", 0.9, "right"),
        ("rare_one", 0.8, "false"),
        ("common_one", 0.7, "false"),
    ]
    assert result.objects[1].mask[10:30, 60:80].all() and result.objects[1].mask.sum() == 400


def test_of_an_empty_mask_the_box_is_drawn(tmp_path: Path) -> None:
    split = data_set(tmp_path, {7: [(1, 0)]})
    mask = mask_utils.encode(np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F"))["counts"].decode()
    detections = [found(7, 1, 60, 0.9) | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": mask}}]
    (result,) = drawn(split, write(tmp_path, detections), 0, Choice()).detections
    assert (result.name, result.verdict) == ("rare_one (empty mask)", "false")
    assert result.mask[10:30, 60:80].all() and result.mask.sum() == 400


def test_detections_that_the_annotations_do_not_judge(tmp_path: Path) -> None:
    split = data_set(tmp_path, {7: [(1, 0)]}, neg_category_ids=[2], not_exhaustive_category_ids=[1])
    detections = [found(7, 1, 60, 0.9), found(7, 2, 60, 0.9), found(7, 3, 60, 0.9)]
    result = drawn(split, write(tmp_path, detections), 0, Choice())
    verdicts = {shape.name: shape.verdict for shape in result.detections}
    assert verdicts == {"rare_one": "not judged", "common_one": "false", "frequent_one": "not judged"}


def shape(verdict: drawing.Verdict, bucket: str = "r", x: int = 50) -> drawing.Shape:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[10:30, x : x + 20] = 1
    return drawing.Shape("a_name", bucket, mask, verdict, 0.5)


@pytest.mark.parametrize("bucket", ["r", "c", "f"])
@pytest.mark.parametrize("verdict", ["found", "missed", "right", "false", "not judged"])
def test_a_shape_is_outlined_in_its_buckets_colour_and_nothing_of_it_hidden(
    bucket: str, verdict: drawing.Verdict
) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), (GREY, GREY, GREY))
    panel = np.asarray(drawing.draw_panel(image, [shape(verdict, bucket)], [], drawing.PANEL, tags=True))
    scale = drawing.PANEL / WIDTH
    top, left = drawing.MARGIN + round(10 * scale), drawing.MARGIN + round(50 * scale)
    inside = panel[top + 2 : top + 90, left + 2 : left + 90].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1  # neither a line nor a tag on it
    is_filled = inside[0].tolist() != [GREY] * 3
    assert is_filled == (verdict in ("found", "right"))
    around = panel[top - 6 : top + 3, left : left + 20].reshape(-1, 3).tolist()
    assert list(drawing.COLOURS[bucket]) in around and [0, 0, 0] in around
    assert ([255] * 3 in around) == (verdict in ("missed", "false"))


def test_tags_hide_neither_objects_nor_each_other() -> None:
    masks = [shape("found", x=x).mask.astype(bool) for x in (0, 20, 50, 52, 100)]
    masks = [drawing._enlarged(mask.astype(np.uint8), 560, 187) for mask in masks]
    panel = Image.new("RGB", (560 + 52, 187 + 52), "white")
    placed: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_draw_tag", lambda draw, place, number, shape: placed.append(place))
        drawing._tag(panel, [shape("found") for _ in masks], masks, (26, 26))
    covered = np.zeros((panel.height, panel.width), dtype=int)
    for mask in masks:
        covered[26 : 26 + 187, 26 : 26 + 560] |= mask
    for number, (x, y) in enumerate(placed, start=1):
        width, height = drawing._tag_size(number)
        assert 0 <= x <= panel.width - width and 0 <= y <= panel.height - height
        assert not covered[y : y + height, x : x + width].any()
        covered[y : y + height, x : x + width] = 1
    assert len(placed) == 5


def test_long_lists_and_names_are_cut(tmp_path: Path) -> None:
    shapes = [shape("found") for _ in range(drawing.MOST_LISTED + 3)]
    few, many = drawing._list(shapes[:3], 600), drawing._list(shapes, 600)
    assert many.width == few.width == 600
    assert many.height == 24 * (drawing.MOST_LISTED // 2 + 1) + 4  # two columns, and a line for the rest
    font = drawing._font(13)
    assert drawing._shortened("a name", font, 500) == "a name"
    cut = drawing._shortened("a very long name " * 9, font, 200)
    assert cut.endswith("…") and 150 < font.getlength(cut) <= 200


# ---------------------------------------------------------------------------------------------------------- the errors


def test_errors(tmp_path: Path) -> None:
    split, detections = data_set(tmp_path, OBJECTS), write(tmp_path, DETECTIONS)
    with pytest.raises(UserError, match=r"val.json: no category is named 'rare_on' \(did you mean 'rare_one'\?\)"):
        visualize.visualize(split, detections, tmp_path / "out", Choice(names=["rare_on"]), 2)
    with pytest.raises(UserError, match="is not an empty folder"):
        visualize.visualize(split, detections, tmp_path, Choice(), 2)
    only_rare = data_set(tmp_path, {1: [(1, 0)]})
    with pytest.raises(UserError, match="has no object of common and frequent categories"):
        visualize.visualize(only_rare, detections, tmp_path / "out", Choice(["f", "c"]), 2)
    assert not (tmp_path / "out").exists()


def test_pictures_that_do_not_fit(tmp_path: Path) -> None:
    split, detections = data_set(tmp_path, {1: [(1, 0)]}), write(tmp_path, DETECTIONS)
    Image.new("RGB", (WIDTH, HEIGHT - 1)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"1.png: is 120 x 39 pixels, its annotation says 120 x 40"):
        visualize.visualize(split, detections, tmp_path / "out", Choice(), 2)
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(UserError, match=r"1.png: the picture cannot be read"):
        visualize.visualize(split, detections, tmp_path / "out2", Choice(), 2)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lvis").mkdir()
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    split = data_set(tmp_path, OBJECTS)
    split.annotations.rename(tmp_path / "lvis" / "lvis_v0.5_val.json")
    for picture in tmp_path.glob("*.png"):  # nothing of training is there
        picture.rename(tmp_path / "coco" / picture.name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    run = RunFolder(tmp_path / "runs" / "none-R18")
    run.create()
    config = {"dataset": "lvis_v0.5", "backbone": "R18-FPN", "strategy": {"name": "elsewhere"}, "iterations": 10}
    run.write_run(
        StoredRun(
            name="none-R18", identity="00", experiment="e", method="none", is_base=False, after=None, config=config
        )
    )
    monkeypatch.setattr(logging.getLogger("rio_bench"), "setLevel", lambda level: None)  # it would last

    def command(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, ["visualize", *map(str, arguments)])

    told = command(run.path, "--output", tmp_path / "out").exception
    assert isinstance(told, UserError) and "missing: the run has not been evaluated" in str(told)
    with DetectionsWriter(run.detections_file) as writer:
        writer.write(DETECTIONS)
    from_run = command(run.path, "--rare", "--output", tmp_path / "out", "--count", 1)
    assert from_run.exit_code == 0 and "2 of 2 pictures" in from_run.output
    options = ("--detections", run.detections_file, "--dataset", "lvis_v0.5", "--category", "rare_one")
    from_file = command(*options, "--output", tmp_path / "out2", "--count", 1)
    assert from_file.exit_code == 0 and "by rare_one" in from_file.output
    for number, stands_for_its_own in enumerate((run.path, "lvis_v0.5/r50_rio")):
        output = tmp_path / f"same{number}"
        same = command(*options[:3], stands_for_its_own, *options[4:], "--output", output, "--count", 1)
        assert same.exit_code == 0 and same.output.partition(":")[2] == from_file.output.partition(":")[2]
    for arguments in ([], [run.path, *options], options[:2], [run.path, *options[2:4]]):
        told = command(*arguments, "--output", tmp_path / "out3").exception
        assert str(told) == "give the folder of a run, or --detections FILE with --dataset NAME"
    told = command(tmp_path, "--output", tmp_path / "out3").exception
    assert isinstance(told, UserError) and "not the folder of a run" in str(told)
    told = command("--detections", "no.json", *options[2:4], "--output", tmp_path / "out3").exception
    assert str(told) == "--detections no.json: No such file or directory"
