"""The pictures and workspaces of the chaos suite, and the table of what it has done."""

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.storage import Folder
from tests.chaos import world
from tests.chaos.life import Lives, Verdict, forks

VERDICTS = pytest.StashKey[list[Verdict]]()


@pytest.fixture(scope="session")
def verdicts(pytestconfig: pytest.Config) -> list[Verdict]:
    return pytestconfig.stash.setdefault(VERDICTS, [])


@pytest.fixture(scope="session")
def lives_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Lives]]:
    """Where lives of artifacts of so many shards are lived."""
    made: dict[int, Lives] = {}
    with forks(2) as pair:

        def lives(shards: int) -> Lives:
            if shards not in made:
                folder = tmp_path_factory.mktemp(f"chaos-{shards}")
                world.pool(Folder(str(folder / "images")), shards, np.random.default_rng(shards))
                made[shards] = Lives(folder, str(folder / "images"), pair)
            return made[shards]

        yield lives


@pytest.fixture
def mount() -> Iterator[Callable[[str, str], None]]:
    """Mounts a tmpfs of a size at a folder, and makes a mounted one larger; skips where one may not."""
    mounted: list[str] = []

    def put(folder: str, size: str) -> None:
        options = f"size={size}" + (",remount" if folder in mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
        if folder not in mounted:
            mounted.append(folder)

    yield put
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Faults, runs, orphans and violations by kind: in the terminal, and as JSON where SAILYARD_CHAOS_REPORT says."""
    table = _table(config.stash.get(VERDICTS, []))
    if not table:
        return
    terminalreporter.section("chaos")
    columns = list(table["all"])
    terminalreporter.write_line(f"{'kind':<24}" + "".join(f"{name:>12}" for name in columns))
    for kind, row in table.items():
        terminalreporter.write_line(f"{kind:<24}" + "".join(f"{row[name]:>12}" for name in columns))
    if path := os.environ.get("SAILYARD_CHAOS_REPORT"):
        Path(path).write_text(json.dumps(table, indent=1) + "\n")


def _table(verdicts: list[Verdict]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("lives", "runs", "faults", "orphans", "violations"), 0)
    )
    for verdict in verdicts:
        counts = {"lives": 1, "runs": verdict.runs, "faults": len(verdict.faults)}
        counts |= {"orphans": verdict.orphans, "violations": len(verdict.wrong)}
        for kind in (verdict.kind, "all"):
            for name, count in counts.items():
                table[kind][name] += count
    if table:
        table["all"] = table.pop("all")
    return dict(table)
