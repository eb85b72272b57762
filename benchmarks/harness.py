"""What every benchmark does alike: its command line, its rounds, the machine it names, the two ways to print.

A benchmark is a function from an empty folder and its sizes to a `Result`. Contenders run in turn within each round, and
ratios are taken round by round, so that another program on the machine slows all of them and not one.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

Times = Mapping[str, list[float]]


@dataclass(frozen=True)
class Bar:
    """A number with a limit on one side."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        met = self.value >= self.at_least if self.at_least is not None else self.value <= self.at_most
        limit = f">= {self.at_least:.4g}" if self.at_least is not None else f"<= {self.at_most:.4g}"
        return f"{'met   ' if met else 'MISSED'} {self.name}: {self.value:.4g} ({limit})"


@dataclass(frozen=True)
class Result:
    """`table`: one row a case, the same columns in each. `facts`: what else was seen."""

    bars: list[Bar]
    table: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def main(name: str, measure: Callable[..., Result], **sizes: tuple[int, str]) -> None:
    """Run `measure(folder, **sizes)` as the command line says and print what it found. `sizes`: default and meaning."""
    parser = argparse.ArgumentParser(description=f"Benchmark: {name}.")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--folder", help="where the data of the run lies for its time (a temporary folder)")
    for size, (default, meaning) in sizes.items():
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=default, help=f"{meaning} ({default})")
    arguments = parser.parse_args()
    chosen = {size: getattr(arguments, size) for size in sizes}
    on = machine()
    with tempfile.TemporaryDirectory(prefix="sailyard-bench-", dir=arguments.folder) as folder:
        result = measure(Path(folder), **chosen)
    if arguments.json:
        details = {"sizes": chosen, "table": result.table, **result.facts}
        bars = [bar.fields() for bar in result.bars]
        print(json.dumps({"benchmark": name, "machine": on, "bars": bars, "details": details}))
    else:
        print("\n".join([name, *_lines(on, chosen, result)]))


def _lines(on: Mapping[str, Any], sizes: Mapping[str, int], result: Result) -> list[str]:
    """What a person reads: machine, sizes, the table in columns, the bars."""
    columns = list(result.table[0])
    cells = [columns, *([_cell(row[column]) for column in columns] for row in result.table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    head = [f"machine: {_list(on)}", f"sizes: {_list(sizes)}"]
    return [*head, "", *rows, "", *(f"{name}: {_cell(fact)}" for name, fact in result.facts.items()), *map(str, result.bars)]


def _list(items: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in items.items())


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    """What the numbers depend on, without naming the host; `load` is how busy it was before the run."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pyarrow", "torch", "fsspec", "ray")},
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round. Every round runs all of them, in an order of its own."""
    draw = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in draw.sample(list(contenders), len(contenders)):
            start = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - start)
    return times


def speed(times: Times, name: str, base: str) -> float:
    """How fast `name` is against `base`: the median of the rounds."""
    return statistics.median(slow / fast for slow, fast in zip(times[base], times[name], strict=True))
