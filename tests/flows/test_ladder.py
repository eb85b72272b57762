"""The rungs of the ladder: configs that differ in a part each, runs that share what they can, the table that compares them."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flows.config import Project
from flows.graph import artifacts, steps_of
from flows.ladder import Run, climb, compared
from flows.plan import planned
from flows.states import state_of
from schemas.config import differences, parse, read_toml
from schemas.errors import ConfigError, StaleArtifact
from schemas.regions import Rle
from schemas.storage import Folder
from schemas.tables import PREDICTIONS
from stages.report.ladder import Interval, Ladder, Rung, page
from tests.flows.processes import children, is_alive, until
from tests.flows.small import ROOT

CONFIGS = ROOT / "flows" / "configs"
NAMES = ("plain", "upsampler", "injected", "distilled")
RUNGS = [CONFIGS / f"ladder_{name}.toml" for name in NAMES]
TINY = {
    "source": {"train": 6, "evaluation": 2, "size": 64},
    "pool": {"shards": 2},
    "student": {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 64, "max_side": 64},
    "train": {"steps": 2, "batch": 4, "micro_batch": 4},
    "evaluation": {"max_new_tokens": 4},
}
SETS = [f"{table}.{key}={value}" for table, values in TINY.items() for key, value in values.items()]


def project(path: Path) -> Project:
    return parse(Project, read_toml(path), str(path))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_can_be_planned(path, tmp_path, monkeypatch):
    """With the files that it names in their places; weights of teachers and bases may be missing."""
    monkeypatch.chdir(tmp_path)
    config = project(path)
    if config.source.kind == "coco":
        for number, folder in enumerate(config.source.images):
            Folder(folder.path).write(f"{number:012}.jpg", b"not looked at")
        for file in config.source.files():
            if file.kind == "reasoning":  # a folder
                Folder(file.url).write("000000000001.json", b"{}")
            else:
                file.folder.write(file.name, b"[]")
            for masks in filter(None, [file.masks]):
                masks.write("000000000001.png", b"not looked at")
    assert {row.state.kind for row in planned(config).rows} == {"missing"}


def test_each_rung_differs_from_the_one_below_in_its_part_alone():
    first, second, third, last = (
        project(path).model_dump(mode="json", exclude={"name", "workspace", "report"}) for path in RUNGS
    )
    assert differences(first, second) == ["student.mask_stride: 16 -> 4"]
    assert differences(second, third) == ['student.prompting: "pooled" -> "injected"']
    changed = {line.split(":")[0].split(".")[0] for line in differences(third, last)}
    assert changed == {"certificate", "loss", "teachers"}


def test_an_interval_is_students():
    """Three values, two degrees of freedom: 4.303 standard errors."""
    found = Interval.of([0.1, 0.2, 0.6])
    assert found.mean == pytest.approx(0.3)
    assert found.half == pytest.approx(4.303 * math.sqrt((0.04 + 0.01 + 0.09) / 2) / math.sqrt(3))
    assert Interval.of([0.4]) == Interval(0.4, None)


def rung(name: str, below: str | None, ciou: list[float], accuracy: list[float]) -> Rung:
    return Rung(name, f"<{name}>", below, {"segmentation/ciou": ciou, "choice/accuracy": accuracy})


def test_a_gain_is_taken_seed_by_seed_over_the_rung_that_is_extended():
    low = rung("low", None, [0.1, 0.3, 0.5], [0.2, 0.2, 0.2])
    high = rung("high", "low", [0.2, 0.41, 0.6], [0.2, 0.3, 0.1])
    other = rung("other", "low", [0.1, 0.2, 0.3], [0.2, 0.2, 0.2])
    ladder = Ladder([0, 1, 2], 5, [low, high, other])
    gains = ladder.gains(high)
    assert ladder.gains(low) == {}
    assert gains["segmentation/ciou"].mean == pytest.approx(0.31 / 3)
    assert gains["segmentation/ciou"].is_clear, "what chance does to both is none of it"
    assert not gains["choice/accuracy"].is_clear
    assert ladder.gains(other)["segmentation/ciou"].mean == pytest.approx(-0.1)
    rows = ladder.rows()
    assert [row[0].strip() for row in rows] == ["", "1 <low>", "2 <high>", "gain over 1", "3 <other>", "gain over 1"]
    assert rows[3][1] == "+10.3 ± 1.4*"
    shown = json.loads(json.dumps(ladder.as_json()))["rungs"][1]
    assert shown["scores"]["segmentation/ciou"]["values"] == [0.2, 0.41, 0.6]
    assert shown["gains"]["segmentation/ciou"]["is_clear"]
    drawn = page(ladder)
    assert drawn.count('<svg class="plot"') == 2
    assert "&lt;high&gt;" in drawn
    assert "<b>+10.3 ± 1.4</b>" in drawn


def complete(run: Run, name: str) -> None:
    """An empty table of this name, sealed."""
    made = run.artifacts[name]
    for number in range(made.shards):
        made.write(number, made.table.rows([]))
    made.seal("2020-01-01T00:00:00", "2020-01-01T00:00:01", {}, code="", packages={})


def test_a_run_borrows_what_is_the_same_and_nothing_else(tmp_path):
    first, second = (Run(RUNGS[2], 0, (*SETS, *more), tmp_path / str(n)) for n, more in enumerate([(), ("prompts.seed=3",)]))
    for name in ("images", "prompts", "samples"):
        complete(first, name)
    second.borrow([first])
    assert {name for name in second.wanted if state_of(second.artifacts[name]).kind == "done"} == {"images"}
    theirs, ours = (Path(run.artifacts["images"].folder.path("record.json")) for run in (first, second))
    assert theirs.samefile(ours)
    second.artifacts["images"].folder.remove()
    assert state_of(first.artifacts["images"]).kind == "done", "what is taken away here stays there"


def answer(run: Run, shift: int) -> None:
    """As if the student had marked a square of 8 pixels, `shift` beside the right one."""
    made = run.artifacts["predictions/trained"]
    row = {"sample_id": "a", "image_key": "k", "task": "segmentation", "question": "?", "expected": "[SEG]", "text": "[SEG]"}
    target, mask = (Rle.of(square(at)) for at in (0, shift))
    made.write(0, PREDICTIONS.rows([row | {"targets": [target], "masks": [mask]}]))
    made.write(1, PREDICTIONS.rows([]))
    made.seal("2020-01-01T00:00:00", "2020-01-01T00:00:01", {}, code="", packages={})


def square(left: int) -> np.ndarray:
    mask = np.zeros((8, 64), bool)
    mask[:, left : left + 8] = True
    return mask


def test_rungs_are_compared_by_what_the_students_answered(tmp_path):
    runs = [Run(path, seed, tuple(SETS), tmp_path) for seed in (0, 1) for path in RUNGS[:2]]
    for run, shift in zip(runs, (4, 0, 4, 2), strict=True):
        answer(run, shift)
    found = compared(runs)
    assert [(each.name, each.below) for each in found.rungs] == [("ladder_plain", None), ("ladder_upsampler", "ladder_plain")]
    low, high = (each.values["segmentation/ciou"] for each in found.rungs)
    assert low == pytest.approx([4 / 12, 4 / 12])
    assert high == pytest.approx([1, 6 / 10])


def test_rungs_that_are_not_trained_alike_are_refused(tmp_path):
    other = tmp_path / "ladder_long.toml"
    other.write_text(f'extends = "{RUNGS[0]}"\nname = "long"\ntrain.steps = 3\n')
    with pytest.raises(ConfigError, match="rungs of 3 and 1600 steps"):
        climb([RUNGS[0], other], seeds=1, sets=[], folder=tmp_path, at_once=1, tell=str)
    with pytest.raises(ConfigError, match="no such config file"):
        climb([tmp_path / "none.toml"], seeds=1, sets=[], folder=tmp_path, at_once=1, tell=str)
    with pytest.raises(ConfigError, match="more than 10 seeds"):
        climb([RUNGS[0]], seeds=11, sets=[], folder=tmp_path, at_once=1, tell=str)
    twin = tmp_path / RUNGS[0].name
    twin.write_text(f'extends = "{RUNGS[0]}"\n')
    with pytest.raises(ConfigError, match="two rungs of one file name"):
        climb([RUNGS[0], twin], seeds=1, sets=[], folder=tmp_path, at_once=1, tell=str)


def test_an_interruption_is_a_line_and_leaves_no_process_behind(tmp_path):
    """A signal that comes to the ladder alone, not to its group as Ctrl-C does, while it makes what runs share."""
    command = [sys.executable, "benchmarks/ladder.py", str(RUNGS[0]), "--seeds", "1", "--folder", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as climbing:
        below = until(lambda: children(climbing.pid), 30)
        climbing.send_signal(signal.SIGINT)
        _, told = climbing.communicate(timeout=60)
    assert (climbing.returncode, told) == (130, "interrupted: what is done is kept, type it again\n")
    assert not any(map(is_alive, below))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_ladder_runs_and_runs_again(prefect_server, tmp_path):
    taught = tmp_path / "ladder_taught_a_little.toml"
    lessons = "teach.panoptic = { steps = 2, held_out = 2 }"
    taught.write_text(f'extends = "{CONFIGS}/ladder_taught.toml"\nname = "taught"\n{lessons}\n')
    rungs = [str(path) for path in (taught, *reversed(RUNGS))]
    command = [sys.executable, "benchmarks/ladder.py", *rungs, "--folder", str(tmp_path), "--at-once", "1"]
    command += ["--seeds", "2", *(word for each in SETS for word in ("--set", each))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = json.loads((tmp_path / "ladder.json").read_text())
    names = [f"ladder_{name}" for name in NAMES]
    assert [each["name"] for each in shown["rungs"]] == [*names, taught.stem]
    assert [each["below"] for each in shown["rungs"]] == [None, *names[:3], names[2]]
    assert shown["seeds"] == [0, 1]
    weights = {Path(name).read_bytes() for name in tmp_path.glob("*/train/step-00000002/model.safetensors")}
    assert len(weights) == 10, "each rung and seed is another student"
    assert len({path.stat().st_ino for path in tmp_path.glob("*/images/record.json")}) == 1, "the scenes are drawn once"

    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (again.stdout, again.stderr) == (done.stdout, ""), "nothing is left to do"
    with pytest.raises(StaleArtifact, match="steps: 2 -> 3"):
        climb(RUNGS[:1], seeds=1, sets=[*SETS, "train.steps=3"], folder=tmp_path, at_once=1, tell=str)


def test_the_ladder_has_the_rungs_of_the_paper_in_order():
    assert {path.stem for path in RUNGS} <= {path.stem for path in CONFIGS.glob("ladder_*.toml")}
    steps = [{step.name for step in steps_of(project(path))} for path in RUNGS]
    assert steps[0] == steps[1] == steps[2] < steps[3]
    made = [artifacts(steps_of(project(path)), Folder("nowhere")) for path in RUNGS]
    assert len({each["samples"].fingerprint for each in made}) == 1, "all see the same dialogues"
