"""A plan before the run: what is looked at how often, and what the project will take; and a run beside its plan."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.config import Project
from flows.estimate import BESIDE_STEPS, GROUP, OTHERWISE, WHY, Caching, estimate
from flows.graph import artifacts, steps_of
from flows.plan import Plan, as_json, as_table, planned
from flows.probe import Measured, Pool, hands, measure, together
from flows.prospect import as_json as as_foretold
from flows.prospect import as_text
from flows.steps import make_step
from schemas.artifact import Artifact
from schemas.config import parse
from schemas.storage import Folder
from schemas.tables import IMAGES
from stages.base import Resources
from stages.endurance import Pace, Regime, Storage
from stages.forecast import Prices, Range, compared, read_plan
from stages.probe import Overhead, PicturePace, StagePace
from stages.probe_train import LEARN, LOAD, RECKONED, SAMPLE
from stages.sources.config import CocoSource
from stages.sources.shapes.config import ShapesConfig
from stages.sources.shapes.write import write_shapes
from tests.flows.small import sailyard

MIB = 1 << 20
STUDENT = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 64, "max_side": 64}
STUDENT |= {"mask_dim": 16, "mask_width": 16, "max_length": 512}


def nothing(*_: Any, **__: Any) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def twice(tmp_path: Path) -> Project:
    """Six scenes as one data set; and three of their pictures in another, the first under another name, the second in another
    container, the third turned by its EXIF. One teacher."""
    write_shapes(ShapesConfig(train=5, evaluation=1, size=64), Folder(str(tmp_path / "a")), nothing)
    other = tmp_path / "b"
    other.mkdir()
    first, second, third, *_ = sorted((tmp_path / "a" / "train").iterdir())
    (other / f"of-another-name{first.suffix}").write_bytes(first.read_bytes())
    Image.open(second).save(other / "contained.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(third).save(other / "turned.png", exif=turned)
    source = CocoSource.of_shapes(str(tmp_path / "a")).model_dump(exclude_defaults=True)
    source["images"] = [*source["images"], {"path": str(other), "prefix": "b/"}]
    fields = {
        "name": "twice",
        "workspace": str(tmp_path / "runs"),
        "source": {"kind": "coco", **source},
        "pool": {"shards": 2},
        "teachers": {"sam2": {"kind": "sam2"}},
        "student": STUDENT,
        "loss": {"distillation": {"sam2": {"reads": "patches"}}},
        "train": {"steps": 30, "batch": 4, "micro_batch": 2, "min_gradient_cosine": -1.0},
        "resources": {"executor": "local"},
    }
    return parse(Project, fields, "twice")


@contextmanager
def pictures_seen() -> Iterator[list[int]]:
    """How many pictures each call of a network's first convolution was given."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_pre_hook

    seen: list[int] = []

    def look(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            seen.append(len(args[0]))

    handle = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def make(project: Project, *names: str) -> None:
    steps = steps_of(project)
    found = artifacts(steps, Folder(project.workspace))
    for step in steps:
        if step.name in names:
            make_step(step, found, nothing)


def test_pixels_are_looked_at_once_whatever_they_are_called_and_lie_in(twice: Project):
    make(twice, "images")
    reuse = planned(twice).reuse
    assert reuse is not None and (reuse.names, reuse.pictures, reuse.looks_a_picture) == (9, 7, None)
    make(twice, "passport/sam2")
    with pictures_seen() as golden:
        step = next(step for step in steps_of(twice) if step.name == "features/sam2")
        found = artifacts(steps_of(twice), Folder(twice.workspace))
        step.stage.open(step.resources, step.gates_in(found))
    with pictures_seen() as seen:
        make(twice, "features/sam2")
    assert sum(seen) - sum(golden) == 7  # six scenes, and one of them turned
    aliases = [names for rows in found["images"].iterate(["aliases"]) for names in rows.column("aliases").to_pylist()]
    assert ["b/of-another-name.jpg", "train/000000000001.jpg"] in aliases
    assert ["b/contained.png", "train/000000000002.jpg"] in aliases
    assert ["b/turned.png"] in aliases


def test_a_plan_counts_how_often_training_looks_at_a_picture(twice: Project):
    assert planned(twice).reuse is None
    make(twice, "images", "annotations", "segments/ground_truth", "prompts", "samples")
    plan = planned(twice)
    reuse = plan.reuse
    assert reuse is not None and reuse.samples and reuse.used
    assert reuse.used <= 5 < reuse.pictures
    assert reuse.shown == 120
    assert reuse.looks_a_picture == 120 / reuse.used
    assert reuse.samples_a_picture == reuse.samples / reuse.used
    assert as_json(twice, plan)["reuse"]["looks_a_picture"] == reuse.looks_a_picture
    assert as_table(plan).splitlines()[-1].startswith("pictures: 7 under 9 names; training: ")
    elsewhere = twice.model_copy(update={"workspace": f"{twice.workspace}-other"})
    assert planned(elsewhere).reuse is None


def test_what_training_leaves_out_is_not_counted(twice: Project):
    """A picture whose features failed, and every sample about it."""
    make(twice, "images", "annotations", "segments/ground_truth", "prompts", "samples", "passport/sam2", "features/sam2")
    found = artifacts(steps_of(twice), Folder(twice.workspace))
    before = planned(twice).reuse
    samples = [row for rows in found["samples"].iterate(["image_key", "split"]) for row in rows.to_pylist()]
    failing = next(row["image_key"] for row in samples if row["split"] == "train")
    fail(found["features/sam2"], failing)
    after = planned(twice).reuse
    assert before is not None and after is not None and before.samples and before.used
    assert after.samples == before.samples - [row["image_key"] for row in samples].count(failing)
    assert after.used == before.used - 1
    assert after.looks_a_picture == 120 / after.used


def fail(features: Artifact, key: str) -> None:
    """Have the features of this picture failed."""
    for shard in range(features.shards):
        rows = features.read(shard).to_pylist()
        kept = [{"image_key": key, "error": "data: it is odd"} if row["image_key"] == key else row for row in rows]
        features.write(shard, features.table.rows(kept))
    features.seal("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00", {}, code="", packages={}, failures=[])


# -- what it will take -----------------------------------------------------------------------------------------------


def by_hand(rate: float = 1e6) -> Measured:
    """A thousand pictures of 10 kB; a teacher that takes 0.1 s for each, and a disk of `rate`."""
    pool = Pool(1000, Range.exactly(1e4), None, [], PicturePace(Range.exactly(0.02), Range.exactly(0.01)))
    parts = {"extract": Range.exactly(0.12), "publish": Range.exactly(0.03)}
    alone = {"forward": Range.exactly(0.1)}
    pace = StagePace(5.0, parts, alone, [20_000, 20_000], Overhead(0, 0), 10**9, 0)
    disk = Pace((Regime(10**9, Range.exactly(1 / rate)),))
    return Measured(pool, {"features/sam2": pace}, Storage(disk, disk))


def of(measured: Measured, project: Project, prices: Prices) -> Any:
    steps = steps_of(project)
    return estimate(project, steps, artifacts(steps, Folder(project.workspace)), measured, prices)


def test_a_step_takes_what_its_parts_take(twice: Project):
    found = of(by_hand(), twice, Prices())
    step = next(each for each in found.steps if each.step == "features/sam2")
    assert step.rows == Range.exactly(1000)
    assert step.bytes.likely == pytest.approx(20e6, rel=1e-3)
    # 150 ms a picture, 20 s of writing: beside each other at best, one after the other at worst.
    assert [step.seconds.low, step.seconds.likely, step.seconds.high] == pytest.approx([155, 175, 175], rel=1e-3)
    assert step.memory.low == pytest.approx(10**9 + 500 * 30_000, rel=0.01)
    assert "train" in found.unknown and "features/sam2" not in found.unknown
    assert found.cost.computing is None


def with_training(device_memory: int = 0) -> Measured:
    """The same, and a student that learns from a micro-batch in 2 s and loads it in 0.5; it is ready after 3 s."""
    measured = by_hand()
    seconds = {LEARN: Range.exactly(2.0), LOAD: Range.exactly(0.5)}
    pace = StagePace(3.0, seconds, {SAMPLE: Range.exactly(1.0)}, [], Overhead(0, 5_000_000), 10**9, device_memory)
    measured.stages["train"] = pace
    measured.stages["features/sam2"].alone["encode"] = Range.exactly(0.0)
    return replace(measured, evaluated=7)


def test_training_takes_the_steps_of_its_micro_batches(twice: Project):
    """30 steps of two micro-batches each, which take 2 s, or with their loading 2.5."""
    found = of(with_training(), twice, Prices(gpu_hour=3600.0))
    steps = {each.step: each for each in found.steps}
    step = steps["train"]
    assert step.seconds.low == pytest.approx(60 * 2 * BESIDE_STEPS.low + GROUP.low)
    assert step.seconds.likely == pytest.approx(60 * 2 * BESIDE_STEPS.likely + 3 + GROUP.likely)
    assert step.seconds.high == pytest.approx(60 * 2.5 * BESIDE_STEPS.high + 3 + GROUP.high, rel=0.05)
    assert step.bytes.low == pytest.approx(5e6, rel=0.01)
    assert step.memory.low == 10**9
    assert found.cost.computing is None
    assert "train" not in found.unknown
    assert [steps[f"predictions/{each}"].rows for each in ("trained", "untrained")] == [Range.exactly(7)] * 2
    assert steps["annotations"].rows == Range.exactly(1000)


def test_training_on_gpus_is_part_of_the_cost(twice: Project):
    two = {"executor": "ray", "workers": 2, "gpus": 1.0, "device": "cuda"}
    project = parse(Project, twice.model_dump() | {"resources": {"steps": {"train": two}}}, "two")
    found = of(with_training(8 * 10**9), project, Prices(gpu_hour=3600.0))
    (step,) = [each for each in found.steps if each.step == "train"]
    assert step.seconds.low == pytest.approx(30 * 2 * BESIDE_STEPS.low + GROUP.low)
    assert step.device_memory == Range.exactly(8 * 10**9)
    assert found.cost.computing.likely == pytest.approx(2 * step.seconds.likely)


def test_what_a_student_was_reckoned_to_take_is_less_sure(twice: Project):
    measured = with_training()
    pace = measured.stages["train"]
    reckoned = {RECKONED: Range(1.0, 2.0, 4.0), LOAD: Range.exactly(0.5)}
    measured.stages["train"] = replace(pace, seconds=reckoned)
    (step,) = [each for each in of(measured, twice, Prices()).steps if each.step == "train"]
    assert step.seconds.low == pytest.approx(60 * BESIDE_STEPS.low + GROUP.low)
    assert step.memory.high > 1.9 * step.memory.low
    assert "train: learn, reckoned 2e+03 ms" in as_text(measured, of(measured, twice, Prices()))


def test_a_certificate_takes_its_pictures_and_its_gradients(twice: Project):
    """16 pictures for a basis and 4 that are looked at twice, each in 0.1 s, and decoded in 0.01."""
    step = next(each for each in of(with_training(), twice, Prices()).steps if each.step == "certificate/sam2")
    assert step.seconds.low > 20 * 0.11 + 4 * 0.1
    slower = with_training()
    slower.stages["train"].alone[SAMPLE] = Range.exactly(2.0)
    other = next(each for each in of(slower, twice, Prices()).steps if each.step == "certificate/sam2")
    assert other.seconds.low > step.seconds.low
    assert "certificate/sam2" in of(by_hand(), twice, Prices()).unknown


def test_what_is_not_measured_says_why(twice: Project):
    text = as_text(with_training(), of(with_training(), twice, Prices()))
    assert "predictions/trained, predictions/untrained: how long answers are" in text
    assert as_foretold(with_training(), of(with_training(), twice, Prices()))["why_not_measured"].keys() <= {
        *WHY.values(),
        OTHERWISE,
    }


def test_more_workers_share_the_work_but_not_the_disk(twice: Project):
    two = {"executor": "ray", "workers": 2, "gpus": 1.0}
    project = parse(Project, twice.model_dump() | {"resources": {"steps": {"features": two}}}, "two")
    found = of(by_hand(), project, Prices(gpu_hour=3600.0, gb_month=1.0))
    step = next(each for each in found.steps if each.step == "features/sam2")
    assert step.seconds.likely == pytest.approx(5 + 75 + 20, rel=1e-3)
    assert found.cost.computing.likely == pytest.approx(2 * step.seconds.likely)
    assert found.cost.month.likely == pytest.approx(found.bytes.likely / 1e9)


@pytest.mark.parametrize(("rate", "verdict"), [(1e6, "pays"), (1e5, "does not pay"), (205e3, "may pay or not")])
def test_storing_pays_where_reading_is_quicker_than_the_teacher(twice: Project, rate: float, verdict: str):
    measured = by_hand(rate)
    wide = Range(0.09, 0.1, 0.11)
    measured.stages["features/sam2"].alone["forward"] = wide
    project = twice.model_copy(update={"train": twice.train.model_copy(update={"steps": 30_000})})
    (found,) = of(measured, project, Prices()).caching
    assert found.verdict == verdict
    assert found.looks == 120


def test_a_reader_is_told_what_was_measured_and_what_it_comes_to(twice: Project):
    measured = by_hand()
    fast, slow = Regime(10 * MIB, Range.exactly(1 / 8e8)), Regime(MIB, Range.exactly(1 / 1e8))
    measured = replace(measured, storage=Storage(Pace((fast, slow)), measured.storage.read))
    text = as_text(measured, of(measured, twice, Prices(gb_month=100.0)))
    assert "write: 763 MiB/s for 10 MiB; then 95 MiB/s, by which this is planned" in text
    assert "read: 977 KiB/s on all of 954 MiB; of what comes after that one knows nothing" in text
    assert "sam2: stored, 150 ms once and 20 ms a look; live, 100 ms a look. It pays from 1.9" in text
    assert "not measured: the time of annotations" in text
    assert "cost of a month of keeping it: 3.00" in text
    assert "cost of computing" not in text


def test_it_breaks_even_where_the_sums_are_equal():
    found = Caching("a", Range.exactly(0.5), Range.exactly(2.0), Range.exactly(0.1), 10)
    looks = found.break_even.likely
    assert looks == 5
    assert looks * 0.5 == 2.0 + looks * 0.1
    assert found.gain.likely == pytest.approx(5.0 / 3.0)
    assert Caching("a", Range.exactly(0.1), Range.exactly(2.0), Range.exactly(0.2), 10).break_even.low == float("inf")


def test_no_more_workers_compute_than_there_is_room_for():
    assert hands(Resources(executor="local", workers=8)) == 1
    assert hands(Resources(workers=100_000)) == together(Resources(workers=100_000)) < 100_000
    assert hands(Resources(workers=100_000, ray_address="auto")) == 100_000
    gpus = Resources(workers=8, device="cuda", gpus=0.5)
    assert (hands(gpus), together(gpus)) == (8, 2)


def test_pictures_come_from_the_pool_the_files_or_the_drawing_board(twice: Project):
    project = parse(Project, twice.model_dump() | {"teachers": {}, "features": {}, "loss": {}}, "without teachers")
    listed = tried(project, 4)
    assert (listed.pictures, listed.sizes, len(listed.tried)) == (9, None, 3)
    make(project, "images")
    pooled = tried(project, 4)
    assert (pooled.pictures, len(pooled.tried)) == (7, 4)
    assert pooled.sizes == {(64, 64): 7}
    shapes = parse(Project, project.model_dump() | {"source": {"kind": "shapes", "train": 50, "size": 64}}, "shapes")
    drawn = tried(shapes, 4)
    assert (drawn.pictures, len(drawn.tried), drawn.drawn is not None) == (250, 4, True)
    assert all(IMAGES.rows([dict(row)]).num_rows == 1 for row in (*listed.tried, *pooled.tried, *drawn.tried))


def tried(project: Project, count: int) -> Pool:
    """The pool that is measured; the student is left out, which takes a process of its own."""
    plan: Plan = planned(project)
    steps = [step for step in plan.steps if step.name != "train"]
    return measure(project, steps, plan.found, count, 16 * MIB).pool


def test_a_probe_foretells_the_run_and_leaves_nothing_but_that(twice: Project, tmp_path: Path):
    """From the command line; then the steps are made, training too, and held against what was foretold."""
    config = tmp_path / "twice.toml"
    config.write_text(as_toml(twice.model_dump(exclude_none=True)))
    make(twice, "images")
    before = Folder(twice.workspace).tree()
    done = sailyard("plan", config, "--probe", "4", "--probe-bytes", "16MiB", "--json")
    assert done.returncode == 0, done.stderr
    foretold = json.loads(done.stdout)["foretold"]
    assert Folder(twice.workspace).tree().keys() - before.keys() == {"plan.json"}
    steps = {step["step"]: step for step in foretold["steps"]}
    assert "images" not in steps
    assert foretold["caching"][0]["column"] == "sam2"
    data = ("annotations", "passport/sam2", "features/sam2", "segments/ground_truth", "prompts", "samples")
    make(twice, *data, "vocabulary", "certificate/sam2", "train")
    workspace = Folder(twice.workspace)
    found = compared(read_plan(workspace), artifacts(steps_of(twice), workspace))
    held = {(each.step, each.what): each for each in found}
    assert held["features/sam2", "rows"].held
    assert held["features/sam2", "bytes"].actual == pytest.approx(held["features/sam2", "bytes"].foretold.likely, rel=0.02)
    assert held["annotations", "rows"].held
    assert held["train", "bytes"].held
    took = held["train", "seconds"]  # other work on this machine may have come or gone since it was measured
    assert 0 < took.actual < took.foretold.high and took.foretold.low < 4 * took.actual
    assert ("train", "rows") not in held


def as_toml(fields: Mapping[str, Any]) -> str:
    """JSON is TOML but for tables."""
    return "\n".join(f"{name} = {_toml(value)}" for name, value in fields.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
