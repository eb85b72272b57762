"""Every benchmark runs by its own command, at a tiny size, and says its result in the agreed form. Nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
FACTS = {"extract": {"device", "pictures", "one_pass"}}


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


@pytest.mark.slow
def test_overhead_on_ray():
    *_, last = run("overhead", "--json", "--shards", "4", "--many-shards", "6", "--rounds", "1", "--workers", "2").splitlines()
    cases = [row["case"] for row in json.loads(last)["details"]["table"]]
    assert cases.count("ray, 2 worker(s)") == 2
