"""Picture files -> IMAGES, with Beam: decode, check, key, drop duplicates, cut into shards.

Only names, sizes and keys travel through the pipeline. Whoever writes a shard reads the bytes it needs again, so pictures
never pass through a shuffle. A shard is made from its keys in order and each row from its first name in order, so the bytes
are the same on every runner and with any number of workers.
"""

import contextvars
import functools
import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from schemas import errors
from schemas.artifact import Artifact
from schemas.errors import DataError, SailyardError, StageFailed
from schemas.pictures import MAX_PIXELS, examine, failed_key, image_key
from schemas.tables import IMAGES, Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources, judge, row_error
from stages.sources.config import CocoSource, ImageFolder
from stages.sources.listing import ImageFile, images_digest, listing

SECONDS_BETWEEN_LOOKS = 1.0


class PoolStage(JobStage):
    """One row a picture of `images`, or, where there are none, of the scenes that the input `source` holds. A picture of more
    than `max_pixels` is refused before it is decoded."""

    images: tuple[ImageFolder, ...] = ()
    shards: int = Field(16, ge=1)
    max_pixels: int = Field(MAX_PIXELS, ge=1)

    def table(self) -> Table:
        return IMAGES

    def outside(self) -> dict[str, str]:
        return {"images": images_digest(listing(self.images))} if self.images else {}

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        files = listing(self.images or CocoSource.of_shapes(inputs["source"].where).images)
        missing = lacking(output)
        if missing:
            waiting = _not_in(files, output)
            build = functools.partial(_pool, waiting, output, sorted(missing), self.max_pixels)
            note = f"{len(waiting)} pictures to look at"
            run_pipeline(build, output, resources, functools.partial(progress, note=note))
        lines = judge(output, resources.max_error_rate)
        return Outcome(_summary(files, output), lines)


def lacking(output: Artifact) -> set[int]:
    """Numbers of the shards that do not lie there yet."""
    return set(range(output.shards)) - output.found().keys()


def shard_of(key: str, shards: int) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % shards


def _not_in(files: list[ImageFile], output: Artifact) -> list[ImageFile]:
    """The files that no finished shard holds: all names of a picture lie in its one shard."""
    tables = (output.read(number, ["aliases"]) for number in output.found())
    done = {alias for table in tables for aliases in table.column("aliases").to_pylist() for alias in aliases}
    return [file for file in files if file.name not in done]


def _summary(files: list[ImageFile], output: Artifact) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    for table in output.iterate(["format"]):
        formats.update(table.column("format").to_pylist())
    unreadable = formats.pop("", 0)
    pictures = formats.total() + unreadable
    found = {"files": len(files), "pictures": pictures, "duplicates": len(files) - pictures, "unreadable": unreadable}
    return found | {"formats": dict(sorted(formats.items()))}


# -- the pipeline ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What looking at one file told."""

    key: str
    file: ImageFile
    width: int
    height: int
    format: str
    sha256: str
    error: str | None = None


def _pool(files: list[ImageFile], output: Artifact, missing: list[int], max_pixels: int, pipeline: Any) -> None:
    import apache_beam as beam

    wanted = pipeline | "missing shards" >> beam.Create([(number, None) for number in missing])
    findings = (
        pipeline
        | "files" >> beam.Create(files)
        | "look" >> beam.Map(_look, max_pixels)
        | "by key" >> beam.Map(lambda finding: (finding.key, finding))
        | "one picture" >> beam.GroupByKey()
        | "by shard" >> beam.Map(lambda item: (shard_of(item[0], output.shards), list(item[1])))
        | "only missing" >> beam.Filter(lambda item: item[0] in missing)
    )
    joined = {"wanted": wanted, "pictures": findings} | "one shard" >> beam.CoGroupByKey()
    _ = joined | "write" >> beam.MapTuple(lambda number, groups: _write(number, groups["pictures"], output))


def _look(file: ImageFile, max_pixels: int) -> Finding:
    data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    try:
        form, pixels_HWC = examine(data, max_pixels)
    except DataError as error:
        return Finding(failed_key(file.name, data), file, 0, 0, "", digest, row_error("data", f"{file.name}: {error}"))
    height, width, _ = pixels_HWC.shape
    return Finding(image_key(pixels_HWC), file, width, height, form, digest)


def _write(number: int, pictures: Iterable[list[Finding]], output: Artifact) -> None:
    rows = [_row(sorted(findings, key=lambda finding: finding.file.name)) for findings in pictures]
    output.write(number, IMAGES.rows(sorted(rows, key=lambda row: row["image_key"])))


def _row(findings: list[Finding]) -> dict[str, Any]:
    first = findings[0]
    data = b"" if first.error else first.file.read()
    if not first.error and hashlib.sha256(data).hexdigest() != first.sha256:
        raise DataError(f"the picture {first.file.name!r} changed while it was read", first.file.folder.url, "Run again.")
    return {
        "image_key": first.key,
        "width": first.width,
        "height": first.height,
        "format": first.format,
        "bytes": data,
        "sha256": first.sha256,
        "aliases": [finding.file.name for finding in findings],
        "error": first.error,
    }


# -- running Beam ----------------------------------------------------------------------------------------------------

# Beam's DirectRunner would first try to download and start Prism, a runner in Go; the last option keeps it from that.
_LOCAL = ("--runner=DirectRunner", "--default_sdk_harness_log_level=CRITICAL", "--allow_unsafe_triggers")
_ADDED_BY_BEAM = re.compile(r" \[while running [^]]*\]")


def run_pipeline(build: Callable[[Any], None], output: Artifact, resources: Resources, progress: Callable[..., None]) -> None:
    """Run the pipeline that `build` puts together, by default in this process, else as `beam_options` say."""
    with _beam_is_quiet(), _telling(progress, output):
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        pipeline = beam.Pipeline(options=PipelineOptions([*_LOCAL, *resources.beam_options]))
        build(pipeline)
        try:
            pipeline.run().wait_until_finish()
        except SailyardError as error:
            raise type(error)(_ADDED_BY_BEAM.sub("", error.what), error.where, error.remedy) from None
        except RuntimeError as error:
            raise _named(error, output) from None


def _named(error: RuntimeError, output: Artifact) -> SailyardError:
    """Workers in other threads and processes hand over the text of a traceback; its last line names the error."""
    last = _ADDED_BY_BEAM.sub("", str(error).strip().splitlines()[-1])
    name, _, what = last.removeprefix(f"{errors.__name__}.").partition(": ")
    if issubclass(kind := getattr(errors, name, StageFailed), SailyardError) and kind is not StageFailed:
        return kind(what)
    return StageFailed(f"Beam: {last}", output.where, "Run again with --traceback; what is done stays done.")


@contextmanager
def _telling(progress: Callable[..., None], output: Artifact) -> Iterator[None]:
    """Tell `progress` now and then how many shards lie in the store: the one measure that every runner shows meanwhile."""

    def tell() -> None:
        present = names & output.folder.names().keys()
        progress(len(present), output.shards, "shards")

    def keep_telling() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            tell()

    names = {output.shard_name(number) for number in range(output.shards)}
    ended = threading.Event()
    teller = threading.Thread(target=contextvars.copy_context().run, args=(keep_telling,), daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
    tell()


@contextmanager
def _beam_is_quiet() -> Iterator[None]:
    """Importing Beam warns through the root logger, which would also set it up, and a failing worker logs its traceback
    before it hands it over; neither is news to the user."""
    root, beam = logging.getLogger(), logging.getLogger("apache_beam")
    level, absorber = beam.level, logging.NullHandler()
    root.addHandler(absorber)
    root.addFilter(_not_apitools)
    beam.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        beam.setLevel(level)
        root.removeFilter(_not_apitools)
        root.removeHandler(absorber)


def _not_apitools(record: logging.LogRecord) -> bool:
    return "apitools not found" not in record.msg
