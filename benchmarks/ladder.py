"""What is each part of the student worth? The rungs of the paper's ladder on the rendered scenes, for `make ladder`.

    python benchmarks/ladder.py flows/configs/ladder_*.toml --seeds 1 --set train.steps=200 --folder runs/small

A rung has one part more than the one that it extends. Prints a line for every run and then the table, which lies in the
folder as JSON and as a page too.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from flows.ladder import PAGE, climb
from flows.words import grid
from schemas.errors import SailyardError


def main() -> int:
    parser = argparse.ArgumentParser(description="Train each rung from several seeds, alike, and compare.")
    parser.add_argument("rungs", nargs="+", type=Path, metavar="CONFIG", help="a rung's TOML file")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (3)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in every rung")
    parser.add_argument("--folder", type=Path, default=Path("runs/ladder"), help="for all of it (runs/ladder)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="how many trainings at a time (one a core)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: trainings end with their step saved
    try:
        found = climb(
            chosen.rungs,
            seeds=chosen.seeds,
            sets=chosen.set,
            folder=chosen.folder,
            at_once=chosen.at_once,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except SailyardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, type it again", file=sys.stderr)
        return 128 + signal.SIGINT
    print(grid(found.rows()))
    print(f"page: {chosen.folder / PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
