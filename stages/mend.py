"""Single rows of a shard made anew: those that failed and are worth another try, and those that were damaged.

For stages whose inputs and output have one row a picture; of others the whole shard is made. A shard is published in one
piece as ever, so that a reader finds the old one or the new one. Whoever mends what is sealed withdraws the record first.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from schemas import tables
from schemas.artifact import Part, read_footer
from schemas.errors import BrokenArtifact
from schemas.row_errors import RowError
from stages.base import Tables
from stages.executor import Work


def mend(work: Work, number: int, rows: Sequence[int] | None) -> Part:
    """Make exactly these rows of shard `number` anew; all of it where none are named, or the rest cannot be kept."""
    return Mender(work).mend(number, rows)


class Mender:
    """For many shards of one stage, which is opened once."""

    def __init__(self, work: Work):
        self._work = work
        self._function = work.stage.open(work.resources, work.whole)

    def mend(self, number: int, rows: Sequence[int] | None) -> Part:
        """As the function of this name. An error that comes back has one attempt more."""
        output, inputs = self._work.output, self._inputs(number)
        old = None if rows is None else self._old(number)
        rows = sorted(set(rows or ()))
        if old is None or not _rest_is_aligned(old, inputs, rows):
            return output.write(number, self._function(inputs))
        some, replaced, kept = _taken(inputs, rows), old.take(rows), self._left_out(number)
        if kept is None or (kept and _errors(replaced).count(None)):  # what those rows that passed had left out is in there
            return output.write(number, self._function(inputs))
        made = self._function(some)
        left = {reason: kept.get(reason, 0) + count for reason, count in tables.left_out(made).items()}
        made = _with_attempts(made.cast(old.schema), replaced, some)
        return output.write(number, tables.without(_put(old, rows, made), kept | left))

    def made_again(self, number: int, rows: Sequence[int]) -> pa.Table:
        """These rows as they come out today; nothing is published."""
        assert self._work.output.table is not None
        return self._function(_taken(self._inputs(number), rows)).cast(self._work.output.table.schema)

    def _inputs(self, number: int) -> Tables:
        return {role: artifact.read(number) for role, artifact in self._work.inputs.items()}

    def _old(self, number: int) -> pa.Table | None:
        """What lies there, if it is a sound table."""
        output = self._work.output
        assert output.table is not None
        try:
            rows = output.read(number).cast(output.table.schema)
            rows.validate(full=True)
        except (BrokenArtifact, OSError, pa.ArrowInvalid, ValueError):
            return None
        return rows

    def _left_out(self, number: int) -> dict[str, int] | None:
        """What the footer says was left out of the shard; None where there is no footer of today."""
        output = self._work.output
        name = output.shard_name(number)
        footer = read_footer(output.folder, name, output.folder.size(name))
        return footer["left_out"] if footer and footer["fingerprint"] == output.fingerprint else None


def _rest_is_aligned(old: pa.Table, inputs: Tables, rows: Sequence[int]) -> bool:
    """Whether the old shard has a row for each row of every input, and the rows to be kept are of the same pictures."""
    keys = _column(old, "image_key")
    rest = sorted(set(range(len(keys))) - set(rows))
    return all(
        len(table) == len(keys) and [keys[i] for i in rest] == [theirs[i] for i in rest]
        for table in inputs.values()
        for theirs in [_column(table, "image_key")]
    )


def _taken(inputs: Tables, rows: Sequence[int]) -> Tables:
    return {role: table.take(pa.array(rows, pa.int64())) for role, table in inputs.items()}


def _put(old: pa.Table, rows: Sequence[int], made: pa.Table) -> pa.Table:
    """`old` with `made` in the place of `rows`."""
    places = {row: len(old) + index for index, row in enumerate(rows)}
    order = [places.get(row, row) for row in range(len(old))]
    return pa.concat_tables([old, made]).take(pa.array(order, pa.int64()))


def _with_attempts(made: pa.Table, replaced: pa.Table, inputs: Tables) -> pa.Table:
    """An error that a row had before, and has again by itself, says how often it was tried; one that it has of its inputs
    stays as it is."""
    if "error" not in made.schema.names:
        return made
    inherited = list(zip(*(_errors(table) for table in inputs.values()), strict=True))
    errors = [
        str(replace(RowError.parse(new), attempts=RowError.parse(before).attempts + 1))
        if new and before and new not in theirs
        else new
        for new, before, theirs in zip(_errors(made), _errors(replaced), inherited, strict=True)
    ]
    return made.set_column(made.schema.get_field_index("error"), made.schema.field("error"), pa.array(errors, pa.string()))


def _errors(table: pa.Table) -> list[str | None]:
    return _column(table, "error") if "error" in table.schema.names else [None] * len(table)


def _column(table: pa.Table, name: str) -> list:
    return table.column(name).to_pylist()
