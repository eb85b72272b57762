"""Every benchmark runs by its own command, at a tiny size, and says its result in the agreed form. Nothing is timed here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from student.train_config import TrainConfig
from student.vocabulary import Vocabulary

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
TINY = {
    "store": ["--rows", "3", "--rounds", "1"],
    "overhead": ["--shards", "3", "--many-shards", "4", "--rounds", "1", "--workers", "0"],
    "resume": ["--shards", "5", "--rounds", "1"],
    "loader": ["--pictures", "8", "--rounds", "1"],
    "step": ["--pictures", "2", "--batch", "1", "--rounds", "1"],
    "train": ["--rounds", "1", "--batch", "2"],
    "generate": ["--pictures", "2", "--rounds", "1", "--steps", "1"],
    "extract": ["--pictures", "1", "--rounds", "1", "--side", "128"],
    "fidelity": ["--side", "128", "--hidden", "64", "--pictures-measured", "1", "--pictures-fitted", "1"],
    "scale": ["--shards", "4", "--rows", "2", "--workers", "0", "--pictures", "8"],
}
BARS = {
    "store": 1,
    "overhead": 3,
    "resume": 1,
    "loader": 4,
    "step": 2,
    "extract": 2,
    "fidelity": 1,
    "scale": 4,
    "train": 2,
    "generate": 3,
}
FACTS = {
    "extract": {"device", "pictures", "one_pass"},
    "loader": {f"share of time waiting at 1 GB/s, first visits, train.readers = {TrainConfig().readers}, no bar"},
}


def run(name: str, *arguments: str) -> str:
    """What `python benchmarks/bench_NAME.py` prints."""
    command = [sys.executable, str(FOLDER / f"bench_{name}.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_form(result: dict[str, Any], name: str) -> None:
    assert set(result) == {"benchmark", "machine", "bars", "details"}
    assert result["benchmark"] == name
    assert result["machine"]["cores"] >= 1
    assert len(result["bars"]) == BARS[name]
    for bar in result["bars"]:
        assert set(bar) in ({"name", "value", "at_least"}, {"name", "value", "at_most"})
        assert all(isinstance(value, int | float) for key, value in bar.items() if key != "name")
    assert result["details"]["table"]


def test_each_benchmark_has_a_tiny_size_and_a_kept_result():
    names = {path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py")}
    assert names == set(TINY)
    assert names == {path.stem.removeprefix("bench_") for path in (FOLDER / "results").glob("bench_*.json")}


@pytest.mark.parametrize("name", TINY)
def test_last_line_is_the_result(name: str, tmp_path: Path):
    *_, last = run(name, "--json", "--folder", str(tmp_path), *TINY[name]).splitlines()
    check_form(json.loads(last), name)
    assert FACTS.get(name, set()) <= json.loads(last)["details"].keys()
    assert not list(tmp_path.iterdir()), "it left data behind"


def test_a_person_reads_a_table():
    lines = run("resume", *TINY["resume"]).splitlines()
    assert lines[0] == "resume"
    assert any(line.split()[:1] == ["local"] for line in lines)
    assert lines[-1].startswith(("met", "MISSED"))


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda path: path.stem)
def test_kept_results_have_the_form_and_meet_their_bars(path: Path):
    result = json.loads(path.read_text())
    check_form(result, path.stem.removeprefix("bench_"))
    for bar in result["bars"]:
        assert bar["value"] >= bar.get("at_least", bar["value"])
        assert bar["value"] <= bar.get("at_most", bar["value"])


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks can be imported."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("way", ["repeated", "spelt_out"])
def test_the_dense_way_is_the_same_with_heads_repeated(way: str, rooms: None):
    import training

    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, heads, 7, 8, generator=draw, requires_grad=True) for heads in (6, 2, 2)]
    seen_B1LL = torch.rand(2, 1, 7, 7, generator=draw).lt(0.5) | torch.eye(7, dtype=torch.bool)
    shared = F.scaled_dot_product_attention(*parts, attn_mask=seen_B1LL, enable_gqa=True)
    own = getattr(training, way)(*parts, seen_B1LL)
    torch.testing.assert_close(own, shared)
    along = torch.randn(shared.shape, generator=draw)
    gradients = [torch.autograd.grad((made * along).sum(), parts) for made in (own, shared)]
    torch.testing.assert_close(*gradients)


class Attentions(TorchFunctionMode):
    """Of each call of torch's attention: the heads of query, key and value, and whether it is to share them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[int], bool]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.seen.append(([part.shape[1] for part in args], kwargs["enable_gqa"]))
        return func(*args, **(kwargs or {}))


def test_on_a_gpu_the_dense_way_shares_no_heads_under_its_mask(rooms: None):
    """No fused kernel takes both. The tensors are of a GPU in name only."""
    import training

    with FakeTensorMode(), Attentions() as attentions:
        parts = [torch.empty(2, heads, 7, 8, device="cuda", dtype=torch.bfloat16) for heads in (6, 2, 2)]
        seen_B1LL = torch.empty(2, 1, 7, 7, device="cuda", dtype=torch.bool)
        assert training.fastest(parts[0])(*parts, seen_B1LL).shape == parts[0].shape
    assert attentions.seen == [([6, 6, 6], False)]


def test_what_a_gpu_is_asked_runs_on_a_cpu_in_small(rooms: None, tmp_path: Path):
    import bench_step
    import full_size

    words = Vocabulary.train([full_size.QUESTION, full_size.ANSWER, full_size.CAPTION, full_size.TOLD] * 4, 300, 15)
    small = full_size.Case("0.5B", replace(bench_step.micro(2), width=64, height=48), words)
    result = full_size.measure_full(tmp_path, [small], rounds=1)
    ours, theirs = result.table
    assert 0 <= ours["waiting"] < 1
    assert theirs["waiting"] == "-"
    assert [bar.name.split(",")[0] for bar in result.bars] == ["MFU", "samples/s", "share of time waiting for data"]
    assert not list(tmp_path.iterdir()), "it left data behind"


def test_memory_is_asked_of_eight_large_pictures(rooms: None):
    import full_size

    row = {"MFU": 1.0, "samples/s": 1.0, "waiting": 0.0, "GB": 1.0}
    names = [bar.name for case in full_size.cases(16) for bar in full_size.bars_of(case, row, row)]
    assert [name for name in names if "GB" in name] == ["GB held, 0.5B, 1024 x 1024, batch 8"]


@pytest.mark.slow
def test_overhead_on_ray():
    *_, last = run("overhead", "--json", "--shards", "4", "--many-shards", "6", "--rounds", "1", "--workers", "2").splitlines()
    cases = [row["case"] for row in json.loads(last)["details"]["table"]]
    assert cases.count("ray, 2 worker(s)") == 2
