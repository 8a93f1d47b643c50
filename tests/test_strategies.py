"""The contract of a strategy, over every registered one, and what the shipped ones compute."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rio_bench.config import RunConfig, canonical, load_experiment
from rio_bench.datasets.frequency import Frequency
from rio_bench.errors import UserError
from rio_bench.plan import make_plan
from rio_bench.strategy import RoIBatch, Strategy, load, name_of, registered

FEATURE_DIM = 8
WITH_BANK = {"object_only", "rio", "alternative_ratios"}
SHIPPED = {"none", "image_only", *WITH_BANK}


def frequency_of(pairs: list[tuple[int, int]], num_images: int, image_count: list[int]) -> Frequency:
    """A data set given by its (image, category) pairs; image_count is stated apart, so that tests can set it."""
    image, category = zip(*sorted(pairs), strict=True) if pairs else ((), ())
    return Frequency(
        image_count=torch.tensor(image_count),
        instance_count=torch.tensor(image_count),
        bucket=tuple("r" if count <= 10 else "c" if count <= 100 else "f" for count in image_count),
        num_images=num_images,
        pair_image=torch.tensor(image, dtype=torch.int64),
        pair_category=torch.tensor(category, dtype=torch.int64),
        pair_instances=torch.ones(len(pairs), dtype=torch.int64),
    )


def long_tailed() -> Frequency:
    """200 images, the last of them empty; the categories are in 199, 40, 30, 4, 1 and 0 images."""
    image_count = [199, 40, 30, 4, 1, 0]
    pairs = [(image, category) for category, count in enumerate(image_count) for image in range(count)]
    return frequency_of(pairs, 200, image_count)


def batch_of(labels: list[int], seed: int) -> RoIBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = len(labels)
    return RoIBatch(
        features=torch.randn(rows, FEATURE_DIM, generator=generator),
        labels=torch.tensor(labels, dtype=torch.int64),
        proposal_boxes=torch.rand(rows, 4, generator=generator),
        gt_boxes=torch.rand(rows, 4, generator=generator),
        gt_index=torch.tensor([-1 if label == 6 else row for row, label in enumerate(labels)], dtype=torch.int64),
    )


# Labels of some training steps: 6 is background, 2, 3 and 4 are rare enough for RIO's bank.
STEPS = [[0, 4, 6, 3, 3], [4, 2, 6, 6], [], [3, 4, 4, 1], [6, 6], [2, 3, 4, 0]]


def resampler_of(strategy: Strategy) -> torch.nn.Module | None:
    return strategy.object_resampler(long_tailed(), FEATURE_DIM)


def run_steps(module: torch.nn.Module, steps: list[list[int]], seed: int = 0) -> list[RoIBatch]:
    torch.manual_seed(seed)
    return [module(batch_of(labels, seed=index)) for index, labels in enumerate(steps)]


def assert_same(one: RoIBatch, other: RoIBatch) -> None:
    for field in ("features", "labels", "proposal_boxes", "gt_boxes", "gt_index"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in sorted(registered())] + [
    ("image_only", {"repeat_threshold": 0.5}),
    ("object_only", {"sampling": "random", "samples_per_class": 1}),
    ("object_only", {"storage": "float16", "bank_capacity": 2, "max_pushes_per_object": 1}),
    ("rio", {"repeat_threshold": 1.0, "bank_max_images": 4, "samples_per_class": 2}),
    ("alternative_ratios", {"repeat_threshold": 0.5, "repeat_exponent": 1.0}),
    ("alternative_ratios", {"repeat_threshold": 0.5, "repeat_exponent": 0.0}),
    ("alternative_ratios", {"replays": "ratio", "replays_per_roi": 0.5}),
    ("alternative_ratios", {"replays": "ratio", "replays_per_roi": 1000.0, "bank_capacity": 3}),
    ("alternative_ratios", {"replays": "rarity", "samples_per_class": 1, "sampling": "random"}),
]


def variant_id(variant: tuple[str, dict[str, Any]]) -> str:
    return "-".join([variant[0], *map(str, variant[1].values())])


@pytest.fixture(params=VARIANTS, ids=variant_id)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    name, hyperparameters = request.param
    return load(name)(**hyperparameters)


@pytest.fixture(params=[variant for variant in VARIANTS if variant[0] in WITH_BANK], ids=variant_id)
def bank_resampler(request: pytest.FixtureRequest) -> torch.nn.Module:
    name, hyperparameters = request.param
    module = resampler_of(load(name)(**hyperparameters))
    assert module is not None
    return module


def test_the_shipped_strategies_are_registered() -> None:
    assert set(registered()) >= SHIPPED


def test_contract_names_and_descriptions(strategy: Strategy) -> None:
    name = name_of(strategy)
    assert load(name) is type(strategy)
    assert type(strategy).__doc__, "list strategies shows the first line"
    assert all(field.description for field in type(strategy).model_fields.values())
    assert type(strategy).model_validate(strategy.model_dump(exclude_defaults=True)) == strategy
    with pytest.raises(pydantic.ValidationError):
        load(name)(no_such_hyperparameter=1)


def test_contract_image_level(strategy: Strategy) -> None:
    factors = strategy.image_repeat_factors(long_tailed())
    if factors is not None:
        assert factors.dtype == torch.float32
        assert factors.shape == (200,)
        assert torch.isfinite(factors).all()
        assert (factors >= 1).all()


def test_contract_object_level_appends_rows_of_the_same_kind(strategy: Strategy) -> None:
    module = resampler_of(strategy)
    if module is None:
        return
    for index, output in enumerate(run_steps(module, STEPS)):
        given_rows = batch_of(STEPS[index], seed=index)
        rows = len(STEPS[index])
        for field in ("features", "labels", "proposal_boxes", "gt_boxes", "gt_index"):
            before, after = getattr(given_rows, field), getattr(output, field)
            assert torch.equal(after[:rows], before), field
            assert (after.dtype, after.shape[1:]) == (before.dtype, before.shape[1:])
            assert len(after) == len(output.labels)
        assert ((output.labels >= 0) & (output.labels <= 6)).all()


def test_contract_object_level_state_is_its_buffers(strategy: Strategy) -> None:
    module = resampler_of(strategy)
    if module is None:
        return
    assert not list(module.parameters())
    run_steps(module, STEPS[:3])
    restored = resampler_of(strategy)
    assert restored is not None
    restored.load_state_dict(module.state_dict())
    for one, other in zip(run_steps(module, STEPS), run_steps(restored, STEPS), strict=True):
        assert_same(one, other)


def test_contract_object_level_depends_on_torchs_seed_alone(strategy: Strategy) -> None:
    first, second = resampler_of(strategy), resampler_of(strategy)
    if first is None or second is None:
        return
    for one, other in zip(run_steps(first, STEPS, seed=7), run_steps(second, STEPS, seed=7), strict=True):
        assert_same(one, other)


# Which of the two levels a strategy has is the ablation.


@pytest.mark.parametrize(
    ("name", "image_level", "object_level"),
    [
        ("none", False, False),
        ("image_only", True, False),
        ("object_only", False, True),
        ("rio", True, True),
        ("alternative_ratios", True, True),
    ],
)
def test_levels(name: str, image_level: bool, object_level: bool) -> None:
    strategy = load(name)()
    assert (strategy.image_repeat_factors(long_tailed()) is not None) == image_level
    assert (strategy.object_resampler(long_tailed(), FEATURE_DIM) is not None) == object_level


def test_rio_is_both_single_levels() -> None:
    shared: dict[str, Any] = {"samples_per_class": 2, "sampling": "random"}
    rio = load("rio")(repeat_threshold=0.5, **shared)
    factors = load("image_only")(repeat_threshold=0.5).image_repeat_factors(long_tailed())
    assert torch.equal(rio.image_repeat_factors(long_tailed()), factors)
    modules = resampler_of(rio), resampler_of(load("object_only")(**shared))
    for one, other in zip(run_steps(modules[0], STEPS), run_steps(modules[1], STEPS), strict=True):
        assert_same(one, other)


# The image level


def test_repeat_factors_of_three_images_by_hand() -> None:
    # Category 0 is in all three images (f = 1), 1 in two (f = 2/3), 2 in the first alone (f = 1/3), 3 in none.
    # t = 0.75: r(0) = max(1, sqrt(0.75)) = 1; r(1) = sqrt(0.75 * 3/2) = sqrt(1.125); r(2) = sqrt(0.75 * 3) = 1.5.
    frequency = frequency_of([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2)], 3, [3, 2, 1, 0])
    factors = load("image_only")(repeat_threshold=0.75).image_repeat_factors(frequency)
    assert factors.tolist() == pytest.approx([1.5, 1.125**0.5, 1.0])
    # Without the square root: r(2) = 2.25, r(1) = 1.125.
    alternative = load("alternative_ratios")(repeat_threshold=0.75, repeat_exponent=1.0)
    assert alternative.image_repeat_factors(frequency).tolist() == pytest.approx([2.25, 1.125, 1.0])
    off = load("alternative_ratios")(repeat_threshold=0.75, repeat_exponent=0.0)
    assert off.image_repeat_factors(frequency).tolist() == [1.0, 1.0, 1.0]


def test_images_without_objects_count_and_are_not_repeated() -> None:
    # 1 of 4 images holds the category: f = 1/4, r = sqrt(1 / (1/4)) = 2. The empty ones keep factor 1.
    frequency = frequency_of([(2, 0)], 4, [1])
    factors = load("image_only")(repeat_threshold=1.0).image_repeat_factors(frequency)
    assert factors.tolist() == [1.0, 1.0, 2.0, 1.0]
    assert load("image_only")().image_repeat_factors(frequency_of([], 2, [0])).tolist() == [1.0, 1.0]


@given(
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=30),
    st.floats(0.001, 1.0),
    st.sampled_from([0.5, 1.0, 1.7]),
)
def test_repeat_factors_against_the_rule_image_by_image(
    pairs: set[tuple[int, int]], threshold: float, exponent: float
) -> None:
    images_of = [{image for image, category in pairs if category == wanted} for wanted in range(6)]
    frequency = frequency_of(list(pairs), 10, [len(images) for images in images_of])
    expected = [
        max([1.0, *((threshold / (len(images) / 10)) ** exponent for images in images_of if image in images)])
        for image in range(10)
    ]
    strategy = load("alternative_ratios")(repeat_threshold=threshold, repeat_exponent=exponent)
    assert strategy.image_repeat_factors(frequency).tolist() == pytest.approx(expected, rel=1e-5)


# The object level


def test_replays_are_of_the_bank_categories_present(bank_resampler: torch.nn.Module) -> None:
    replayed = 0
    for labels, output in zip(STEPS, run_steps(bank_resampler, STEPS), strict=True):
        new_labels = output.labels[len(labels) :].tolist()
        assert set(new_labels) <= {2, 3, 4} & set(labels)
        assert (output.gt_index[len(labels) :] == -1).all()
        replayed += len(new_labels)
    assert replayed > 0


def test_replays_send_no_gradient_to_the_features_given(bank_resampler: torch.nn.Module) -> None:
    run_steps(bank_resampler, STEPS[:2])
    plain = batch_of(STEPS[3], seed=3)
    for _ in range(2):  # the second time, features of the first may be replayed
        features = torch.randn(4, FEATURE_DIM, requires_grad=True)
        given_rows = RoIBatch(features, plain.labels, plain.proposal_boxes, plain.gt_boxes, plain.gt_index)
        output = bank_resampler(given_rows)
        assert len(output.labels) > len(plain.labels)
        output.features.sum().backward()
        assert torch.equal(features.grad, torch.ones_like(features))


def replayed_counts(strategy: Strategy, labels: list[int]) -> dict[int, int]:
    """Replays of each category in a step with these labels, with 50 RoIs of each category pushed before."""
    module = resampler_of(strategy)
    assert module is not None
    module(batch_of([0, 1, 2, 3, 4] * 50, seed=1))
    new = module(batch_of(labels, seed=2)).labels[len(labels) :].tolist()
    return {label: new.count(label) for label in sorted(set(new))}


def test_bank_categories_are_those_in_1_to_bank_max_images() -> None:
    every = [0, 1, 2, 3, 4, 6]  # in 199, 40, 30, 4 and 1 images; 6 is background
    assert replayed_counts(load("object_only")(), every) == {2: 20, 3: 20, 4: 20}
    assert replayed_counts(load("object_only")(bank_max_images=29), every) == {3: 20, 4: 20}
    assert replayed_counts(load("object_only")(bank_max_images=40), every) == {1: 20, 2: 20, 3: 20, 4: 20}
    common = frequency_of([(0, 0), (1, 0), (2, 0)], 3, [3, 0])
    assert load("object_only")(bank_max_images=2).object_resampler(common, FEATURE_DIM) is None


def test_every_setting_of_the_bank_reaches_it() -> None:
    settings = {"bank_capacity": 7, "sampling": "random", "storage": "float16", "bank": "shared"}
    module: Any = resampler_of(load("object_only")(max_pushes_per_object=2, **settings))
    assert module.bank.capacity == 7
    assert module.bank.features.dtype == torch.float16
    assert (module.sampling, module.shared, module.max_pushes_per_object) == ("random", True, 2)
    default: Any = resampler_of(load("object_only")())
    assert (default.sampling, default.shared, default.max_pushes_per_object) == ("newest", False, None)


def test_fixed_replays_depend_on_the_category_being_there_alone() -> None:
    assert replayed_counts(load("rio")(samples_per_class=7), [3, 3, 3, 4, 0]) == {3: 7, 4: 7}
    assert replayed_counts(load("rio")(samples_per_class=7, bank_capacity=5), [3]) == {3: 5}


def test_replays_as_a_ratio_of_the_rois_present() -> None:
    def counts(ratio: float, labels: list[int], **more: Any) -> dict[int, int]:
        return replayed_counts(load("alternative_ratios")(replays="ratio", replays_per_roi=ratio, **more), labels)

    assert counts(1.0, [3, 3, 3, 4, 0, 6]) == {3: 3, 4: 1}
    assert counts(2.0, [3, 3, 3, 4]) == {3: 6, 4: 2}
    assert counts(0.5, [3, 3, 3, 4]) == {3: 2, 4: 1}  # rounded up
    assert counts(0.07, [3] * 100 + [2] * 101) == {2: 8, 3: 7}  # 0.07 x 100 is 7.000000000000001 in floating point
    assert counts(10.0, [3, 3, 3, 4], bank_capacity=12) == {3: 12, 4: 10}


def test_replays_that_grow_with_rarity() -> None:
    def counts(**more: Any) -> dict[int, int]:
        return replayed_counts(load("alternative_ratios")(replays="rarity", **more), [2, 3, 4, 4, 0])

    # In 30, 4 and 1 images, of 30: rarity 1, 7.5 and 30.
    assert counts(samples_per_class=4) == {2: 4, 3: 11, 4: 22}  # 4 x sqrt(7.5) = 10.95, 4 x sqrt(30) = 21.9
    assert counts(samples_per_class=1, rarity_exponent=1.0) == {2: 1, 3: 8, 4: 30}  # 7.5 to the even 8
    assert counts(samples_per_class=4, bank_capacity=12) == {2: 4, 3: 11, 4: 12}
    assert counts(samples_per_class=3, rarity_exponent=0.0) == {2: 3, 3: 3, 4: 3}


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"replays_per_roi": 1.0},
        {"replays": "ratio", "samples_per_class": 3},
        {"replays": "ratio", "rarity_exponent": 1.0},
    ],
    ids=str,
)
def test_a_number_without_effect_is_refused(hyperparameters: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match="has no effect"):
        load("alternative_ratios")(**hyperparameters)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("image_only", {"repeat_threshold": 0.0}),
        ("image_only", {"repeat_threshold": float("nan")}),
        ("image_only", {"repeat_threshold": "0.1"}),
        ("object_only", {"samples_per_class": 0}),
        ("object_only", {"bank_capacity": 1.0}),
        ("object_only", {"sampling": "oldest"}),
        ("object_only", {"max_pushes_per_object": 0}),
        ("alternative_ratios", {"repeat_exponent": -0.5}),
        ("alternative_ratios", {"replays": "ratio", "replays_per_roi": 0.0}),
    ],
    ids=str,
)
def test_hyperparameters_have_bounds_and_types(name: str, hyperparameters: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        load(name)(**hyperparameters)


# The registry


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put packages with entry points on sys.path, as pip would lay them down."""

    def install_package(package: str, source: str, entry_points: dict[str, str]) -> Path:
        (tmp_path / f"{package}.py").write_text(source)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[rio_bench.strategies]", *lines]) + "\n")
        importlib.invalidate_caches()
        registered.cache_clear()
        return tmp_path

    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    yield install_package
    for module in set(sys.modules) - modules:
        if module.startswith("out_of_tree"):
            del sys.modules[module]
    registered.cache_clear()


DOUBLE = """
from pydantic import Field
from rio_bench.strategy import Strategy

class Double(Strategy):
    '''Every image so many times.'''
    times: float = Field(2.0, ge=1, description="factor of every image")

    def image_repeat_factors(self, frequency):
        import torch
        return torch.full((frequency.num_images,), self.times)
"""


def test_a_strategy_from_outside_is_found_and_used(install: Any) -> None:
    folder = install("out_of_tree", DOUBLE, {"double": "out_of_tree:Double"})
    assert set(registered()) >= {"double", *SHIPPED}
    strategy = load("double")(times=3)
    assert name_of(strategy) == "double"
    assert strategy.image_repeat_factors(long_tailed()).tolist() == [3.0] * 200

    (folder / "outside.yaml").write_text(
        "run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 1}\n"
        "grid:\n  strategy: [none, {name: double, times: 4}]\n"
    )
    script = (
        "import sys; sys.path.insert(0, '.'); from rio_bench.cli import main; "
        "sys.argv = ['rio_bench', 'run', 'outside.yaml', '--dry-run']; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "double-R18-FPN-seed0-" in done.stdout


RATIOS = """
from pydantic import Field
from rio_bench.strategy import Strategy

class Ratios(Strategy):
    '''Hyperparameters of several values.'''
    ratios: list[float] = Field([1.0], description="a list")
    bounds: tuple[float, ...] = Field((0.5,), description="a tuple")
"""


def test_hyperparameters_may_be_lists_and_tuples(install: Any) -> None:
    folder = install("out_of_tree_ratios", RATIOS, {"ratios": "out_of_tree_ratios:Ratios"})
    (folder / "ratios.yaml").write_text(
        "run: {dataset: glyphs-mini, backbone: R18-FPN, iterations: 1}\n"
        "warm_start: {strategy: {name: ratios, ratios: [1, 2]}}\n"
        "grid:\n"
        "  strategy:\n"
        "    - {name: ratios, ratios: [1, 2]}\n"
        "    - {name: ratios, ratios: [1.0, 2.0]}\n"
        "    - {name: ratios, bounds: [0.25, 1]}\n"
    )
    plan = make_plan(load_experiment(folder / "ratios.yaml"))
    assert [(run.method, run.is_base) for run in plan.runs] == [
        ("ratios (ratios=[1.0, 2.0]), base run", True),
        ("ratios (ratios=[1.0, 2.0])", False),
        ("ratios (bounds=(0.25, 1.0))", False),
    ]
    for run in plan.runs:
        assert RunConfig.model_validate(json.loads(json.dumps(canonical(run.config)))) == run.config

    (folder / "wrong.yaml").write_text((folder / "ratios.yaml").read_text().replace("[0.25, 1]", "[0.25, '1']"))
    with pytest.raises(
        UserError, match=r"wrong.yaml:7: grid.strategy\[2\].bounds\[1\]: expected a valid number, got '1'"
    ):
        load_experiment(folder / "wrong.yaml")


def test_a_broken_plug_in_harms_only_those_who_name_it(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install(
        "out_of_tree_broken",
        "import a_module_that_is_nowhere\n",
        {"broken": "out_of_tree_broken:Broken", "also_broken": "out_of_tree_nowhere:Broken"},
    )
    assert name_of(load("rio")()) == "rio"
    with pytest.raises(UserError) as error:
        load("broken")
    for part in ("'broken'", "out_of_tree_broken:Broken", "ModuleNotFoundError", "a_module_that_is_nowhere"):
        assert part in str(error.value)
    from rio_bench import listing

    listing.print_strategies()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("broken: broken: ") and "a_module_that_is_nowhere" in line for line in lines)
    assert any(line.startswith("also_broken: broken: ") for line in lines)
    assert any(line.startswith("rio: ") for line in lines)


def test_the_name_of_a_strategy_imports_no_other_plug_in(install: Any) -> None:
    entry_points = {"a_missing_one": "rio_strategies.rio:Missing", "another": "out_of_tree_idle:Double"}
    install("out_of_tree_idle", DOUBLE, entry_points)
    assert name_of(load("rio")()) == "rio"
    assert "out_of_tree_idle" not in sys.modules


def test_two_strategies_of_one_name_are_both_named(install: Any) -> None:
    install("out_of_tree_rio", DOUBLE, {"rio": "out_of_tree_rio:Double"})
    with pytest.raises(UserError) as error:
        registered()
    for part in ("'rio'", "out_of_tree_rio:Double of out_of_tree_rio", "rio_strategies.rio:RIO of rio_bench"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("Double = 3\n", "is not a subclass of rio_bench.strategy.Strategy"),
        ("class Double: pass\n", "is not a subclass of rio_bench.strategy.Strategy"),
        ("", "AttributeError"),
        (DOUBLE + "    name: str = Field('x', description='x')\n", "hyperparameter 'name'"),
    ],
    ids=["no class", "another class", "no such attribute", "hyperparameter name"],
)
def test_an_entry_point_that_is_no_strategy(install: Any, source: str, says: str) -> None:
    install("out_of_tree_wrong", source, {"wrong": "out_of_tree_wrong:Double"})
    with pytest.raises(UserError, match=says):
        load("wrong")


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"unknown strategy 'imageonly' \(did you mean 'image_only'\?\)"):
        load("imageonly")


def test_a_class_without_an_entry_point_has_no_name() -> None:
    class Mine(Strategy):
        pass

    with pytest.raises(UserError, match="Mine has no entry point"):
        name_of(Mine())
