"""Single rows of a shard made anew: those that failed and are worth another try, and those that were damaged.

For stages whose inputs and output have one row a picture; of others the whole shard is made. A shard is published in one
piece as ever, so that a reader finds the old one or the new one. Whoever mends what is sealed withdraws the record first.

What is written has a digest of its own, and looks sound ever after. So only what is known to be what was published is kept
of the old shard: all of it where its bytes give their digest, and else those rows of features that prove themselves.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from schemas import tables
from schemas.artifact import Part, read_footer, shard_digest
from schemas.errors import BrokenArtifact
from schemas.features import FeatureSpec
from schemas.row_errors import RowError
from stages.base import Tables
from stages.executor import Work


def mend(work: Work, number: int, rows: Sequence[int] | None) -> Part:
    """Make exactly these rows of shard `number` anew; all of it where none are named, or the rest cannot be kept."""
    return Mender(work).mend(number, rows)


@dataclass(frozen=True)
class Old:
    """A shard that lies there, and what was left out of it. `doubtful` are the rows that are not known to be what was
    published; where its bytes give their digest, it `is_whole`, and none are."""

    rows: pa.Table
    left_out: Mapping[str, int]
    is_whole: bool
    doubtful: Sequence[int] = ()


class Published:
    """What of a stage's output is known to be what was published. Made while its record is there, which is asked first."""

    def __init__(self, work: Work):
        self._work, record = work, work.output.record()
        self._digests = {part.name: part.digest for part in record.parts} if record else {}

    def old(self, number: int, inputs: Tables) -> Old | None:
        """The shard; None where nothing of it can be kept."""
        rows, footer = self._rows(number), self._footer(number)
        if rows is None or footer is None:
            return None
        if self._gives_its_digest(footer):
            return Old(rows, footer["left_out"], is_whole=True)
        table, pictures = self._work.output.table, inputs.get("images")
        assert table is not None
        if table.spec is None or pictures is None or footer["left_out"] or len(pictures) != len(rows):
            return None
        return Old(rows, {}, is_whole=False, doubtful=_doubtful(rows, pictures, table.spec))

    def with_doubtful(self, number: int, rows: Sequence[int]) -> list[int]:
        """These rows and those that are in doubt with them; none where nothing can be kept."""
        old = self.old(number, read_inputs(self._work, number))
        return sorted({*rows, *old.doubtful}) if old else []

    def _rows(self, number: int) -> pa.Table | None:
        """What lies there, if it is a sound table."""
        output = self._work.output
        assert output.table is not None
        try:
            rows = output.read(number).cast(output.table.schema)
            rows.validate(full=True)
        except (BrokenArtifact, OSError, pa.ArrowInvalid, ValueError):
            return None
        return rows

    def _footer(self, number: int) -> dict[str, Any] | None:
        """What the shard says of itself; None where that is nothing, or not of today."""
        output = self._work.output
        name = output.shard_name(number)
        footer = read_footer(output.folder, name, output.folder.size(name)) if output.folder.exists(name) else None
        return footer if footer and footer["fingerprint"] == output.fingerprint else None

    def _gives_its_digest(self, footer: Mapping[str, Any]) -> bool:
        name, told = footer["name"], footer["digest"]
        return told == self._digests.get(name, told) and told == shard_digest(self._work.output.folder.read(name))


def read_inputs(work: Work, number: int) -> Tables:
    return {role: artifact.read(number) for role, artifact in work.inputs.items()}


def _doubtful(rows: pa.Table, pictures: pa.Table, spec: FeatureSpec) -> list[int]:
    told = pictures.select(["image_key", "width", "height", "error"]).to_pylist()
    plain = rows.drop_columns(["feature"]).to_pylist()
    stored = rows.column("feature")
    return [n for n, picture in enumerate(told) if not _proves_itself(plain[n], stored[n], picture, spec)]


def _proves_itself(row: Mapping[str, Any], stored: pa.LargeBinaryScalar, picture: Mapping[str, Any], spec: FeatureSpec) -> bool:
    """Whether what its picture says of a row is there, and its bytes give its CRC. A teacher's own grid follows from nothing
    that is known here, and nor does an error that is not the picture's."""
    if any(row[name] != picture[name] for name in ("image_key", "error")):
        return False
    if picture["error"]:
        return not stored.is_valid and all(row[name] is None for name in ("height", "width", "size", "crc"))
    if not stored.is_valid or (row["height"], row["width"]) != spec.grid_of(picture["width"], picture["height"]):
        return False
    data = stored.as_buffer()
    return len(data) == row["size"] and zlib.crc32(data) == row["crc"]


class Mender:
    """For many shards of one stage, which is opened once."""

    def __init__(self, work: Work):
        self._work = work
        self._published = Published(work)
        self._function = work.stage.open(work.resources, work.whole)

    def mend(self, number: int, rows: Sequence[int] | None) -> Part:
        """As the function of this name. An error that comes back has one attempt more."""
        inputs = read_inputs(self._work, number)
        mended = None if rows is None else self._mended(number, rows, inputs)
        return self._work.output.write(number, self._function(inputs) if mended is None else mended)

    def _mended(self, number: int, rows: Sequence[int], inputs: Tables) -> pa.Table | None:
        """The old shard with these rows anew, and those in doubt; None where all of it has to be made."""
        old = self._published.old(number, inputs)
        rows = sorted({*rows, *old.doubtful}) if old else []
        if old is None or not _rest_is_aligned(old.rows, inputs, rows):
            return None
        some, replaced = _taken(inputs, rows), old.rows.take(rows)
        if old.left_out and _errors(replaced).count(None):  # what those rows that passed had left out is in there
            return None
        made = self._function(some)
        left = {reason: old.left_out.get(reason, 0) + count for reason, count in tables.left_out(made).items()}
        made = made.cast(old.rows.schema)
        made = _with_attempts(made, replaced, some) if old.is_whole else made
        return tables.without(_put(old.rows, rows, made), {**old.left_out, **left})

    def made_again(self, number: int, rows: Sequence[int]) -> pa.Table:
        """These rows as they come out today; nothing is published."""
        assert self._work.output.table is not None
        return self._function(_taken(read_inputs(self._work, number), rows)).cast(self._work.output.table.schema)


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
