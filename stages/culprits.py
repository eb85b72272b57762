"""Which pictures of a shard take their worker with them, and the shard without these.

For stages whose inputs and output have one row a picture. What such a row has done to a worker stands in its error, as ever.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas import tables
from schemas.artifact import Artifact
from schemas.errors import StageFailed
from schemas.row_errors import RowError
from stages.base import Inputs, ShardFunction, ShardResult, Tables, make_shard
from stages.isolate import error_class, isolate

_MOST = 50  # workers that are spent on one shard: the fault of more than a few rows is not theirs


def culprits(count: int, attempt: Callable[[Sequence[int]], object], attempts: int) -> dict[int, str]:
    """The errors of the rows, of so many, with which `attempt` loses its worker whenever it is given one of them alone. It
    raises MemoryError where the worker was killed for its memory, else RuntimeError; that may have been chance, and so a
    row that is suspected is tried as often as a shard. `StageFailed` where too many workers are lost for a few bad rows."""
    deaths = 0

    def lost(rows: Sequence[int]) -> list[None]:
        nonlocal deaths
        deaths += 1
        if deaths > _MOST:
            raise StageFailed(f"{_MOST} workers were lost over parts of it")
        attempt(rows)
        deaths -= 1
        return [None] * len(rows)

    suspects = [row for row, error in enumerate(isolate(range(count), lost)) if error is not None]
    tried = {row: [isolate([row], lost)[0] for _ in range(attempts)] for row in suspects}
    return {row: _line(errors) for row, errors in tried.items() if None not in errors}


def _line(errors: Sequence[BaseException | None]) -> str:
    kinds = {error_class(error) for error in errors if error}
    kind = "capacity" if kinds == {"capacity"} else "code"
    return str(RowError(kind, f"alone, it took its worker with it: {errors[-1]}", len(errors)))


@dataclass(frozen=True)
class Shards:
    """What a worker that has opened a stage can do with shard `number`: make it, or see what is in the way."""

    function: ShardFunction
    inputs: Inputs
    output: Artifact

    def __call__(self, number: int) -> ShardResult:
        return make_shard(self.function, self.inputs, self.output, number)

    def count(self, number: int) -> int:
        """The rows of the shard, if each can be made without the others, or fail; else 0."""
        keys = [_keys(table) for table in self._read(number).values() if "image_key" in table.schema.names]
        is_aligned = len(keys) == len(self.inputs) > 0 and all(each == keys[0] for each in keys)
        return len(keys[0]) if is_aligned and self.output.table and self.output.table.has_errors else 0

    def attempt(self, number: int, rows: Sequence[int]) -> None:
        """Make these rows alone, and publish nothing."""
        self._made(self._read(number), rows)

    def publish(self, number: int, errors: Mapping[int, str]) -> ShardResult:
        """The shard with an error for these rows, which are not made."""
        inputs, table = self._read(number), self.output.table
        assert table is not None
        keys = _keys(next(iter(inputs.values())))
        rows = [row for row in range(len(keys)) if row not in errors]
        made = self._made(inputs, rows) if rows else table.rows([])
        blank = {field.name: [] for field in table.schema if pa.types.is_list(field.type) and not field.nullable}
        failed = table.rows([{**blank, "image_key": keys[row], "error": error} for row, error in errors.items()])
        place = {row: index for index, row in enumerate([*rows, *errors])}
        order = pa.array([place[row] for row in range(len(keys))], pa.int64())
        whole = pa.concat_tables([made.cast(table.schema), failed]).take(order)
        return make_shard(lambda _: tables.without(whole, tables.left_out(made)), {}, self.output, number)

    def _read(self, number: int) -> Tables:
        return {role: artifact.read(number) for role, artifact in self.inputs.items()}

    def _made(self, inputs: Tables, rows: Sequence[int]) -> pa.Table:
        some = {role: table.take(pa.array(rows, pa.int64())) for role, table in inputs.items()}
        made = self.function(some)
        if _keys(made) != _keys(next(iter(some.values()))):
            raise StageFailed("its rows are not one a picture", self.output.where)
        return made


def _keys(table: pa.Table) -> list[str]:
    return table.column("image_key").to_pylist()
