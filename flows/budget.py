"""Which codec for which column, so that all features fit a number of bytes at the least loss of gradient: `sailyard budget`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from flows.config import Project
from flows.graph import above, artifacts, steps_of
from flows.words import grid, size
from schemas.artifact import Artifact
from schemas.codecs import layout_bytes
from schemas.errors import ConfigError, DataError
from schemas.features import FeatureSpec
from schemas.storage import Folder
from stages.certificate import read_certificate, worst_cosine
from stages.features import FeaturesStage

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Offer:
    """One codec of a column: what all pictures take, the loss of gradient weighted as training weights the teacher, and the
    certificate's row."""

    column: str
    codec: str
    bytes: int
    loss: float
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Budget:
    """Every offer, and of each column the one that was chosen."""

    pictures: int
    max_bytes: int
    offers: Sequence[Offer]
    chosen: Sequence[Offer]


def needed(project: Project) -> list[str]:
    """The steps that must be made before a budget can be drawn up: the certificates, and what they are made from."""
    return above(steps_of(project), [f"certificate/{name}" for name in project.loss.distillation])


def draw_up(project: Project, max_bytes: int) -> Budget:
    """The choice that fits at the least loss; `DataError` where none does. The certificates lie there."""
    steps = steps_of(project)
    found = artifacts(steps, Folder(project.workspace))
    sizes = _sizes(found["images"])
    stages = {step.stage.name: step.stage for step in steps if isinstance(step.stage, FeaturesStage)}
    left = max_bytes - sum(_of_all(stages[name].spec, sizes) for name in stages if name not in project.loss.distillation)
    columns = [
        list(_offers(stages[name].spec, loss.weight, read_certificate(found[f"certificate/{name}"]), sizes))
        for name, loss in project.loss.distillation.items()
    ]
    fitting = [chosen for chosen in product(*columns) if _bytes(chosen) <= left]
    if not fitting:
        least = sum(min(offer.bytes for offer in offers) for offers in columns)
        what = f"no choice of codecs fits {size(max_bytes)}: the smallest take {size(least)} for {sizes.total()} pictures"
        raise DataError(what, "--max-bytes", "Give more, or widen certificate.ladder.")
    chosen = min(fitting, key=lambda offers: (sum(offer.loss for offer in offers), _bytes(offers)))
    return Budget(sizes.total(), max_bytes, [offer for offers in columns for offer in offers], chosen)


def _bytes(offers: Sequence[Offer]) -> int:
    return sum(offer.bytes for offer in offers)


def _sizes(images: Artifact) -> Counter[tuple[int, int]]:
    """(width, height) -> how many pictures of the pool have it."""
    found: Counter[tuple[int, int]] = Counter()
    for rows in images.iterate(["width", "height", "error"]):
        good = rows.filter(rows.column("error").is_null())
        found.update(zip(good.column("width").to_pylist(), good.column("height").to_pylist(), strict=True))
    return found


def _offers(
    spec: FeatureSpec, weight: float, certificate: Mapping[str, Any], sizes: Counter[tuple[int, int]]
) -> Iterator[Offer]:
    measured = {row["codec"]: row["bytes_an_image"] for row in certificate["codecs"]}
    for row in certificate["codecs"]:
        form = spec.model_copy(update={"codec": row["codec"]})
        taken = _of_all(form, sizes)
        if not taken:
            taken = measured[row["codec"]] * sizes.total()
        elif form.is_squeezed and "bf16" in measured:
            taken = int(taken * measured[row["codec"]] / measured["bf16"])
        yield Offer(spec.teacher, row["codec"], taken, weight * (1 - worst_cosine(row)), row)


def _of_all(spec: FeatureSpec, sizes: Counter[tuple[int, int]]) -> int:
    """The bytes of all pictures' rows before any compression; 0 where the teacher alone knows its grid."""
    if spec.grid == "native":
        return 0
    return sum(layout_bytes(spec.layout(*(spec.grid_of(*each) or (0, 0)))) * count for each, count in sizes.items())


def as_table(budget: Budget) -> str:
    head = ("", "column", "codec", "an image", "all", "error", "cosine", "loss", "gradient", "late")
    rows = [("->" if offer in budget.chosen else "", *_cells(offer, budget.pictures)) for offer in budget.offers]
    lines = [f'[features.{offer.column}]\ncodec = "{offer.codec}"' for offer in budget.chosen]
    total = f"{size(_bytes(budget.chosen))} of {size(budget.max_bytes)} for {budget.pictures} pictures"
    return "\n\n".join([grid([head, *rows]), total, *lines])


def _cells(offer: Offer, pictures: int) -> tuple[str, ...]:
    numbers = ("relative_error", "cosine", "loss_change", "gradient_cosine", "late_gradient_cosine")
    sizes = size(offer.bytes / pictures), size(offer.bytes)
    return offer.column, offer.codec, *sizes, *(f"{offer.row[name]:.4f}" for name in numbers)


def as_json(budget: Budget) -> dict[str, Any]:
    return {
        "pictures": budget.pictures,
        "max_bytes": budget.max_bytes,
        "total_bytes": _bytes(budget.chosen),
        "chosen": {offer.column: offer.codec for offer in budget.chosen},
        "offers": [{"column": offer.column, "bytes": offer.bytes, **offer.row} for offer in budget.offers],
    }


def parse_bytes(text: str) -> int:
    """500GB, 4 MiB, 1e9: decimal units with B, binary ones with iB."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in UNITS or match[1].count(".") > 1:
        raise ConfigError(f"{text!r} is no number of bytes", "--max-bytes", "Write it as 500GB, 4TiB or 1e12.")
    return int(float(match[1]) * UNITS[match[2]])
