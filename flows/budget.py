"""Which codec for which column, so that all features fit a number of bytes at the least loss of gradient: `sailyard budget`.
None is chosen that training would refuse."""

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
from stages.certificate import demand_true_rows, read_certificate, worst_cosine
from stages.features import FeaturesStage

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Offer:
    """One codec of a column: what all pictures take, the loss of gradient weighted as training weights the teacher, the
    certificate's row, and whether training takes it: its cosine is not under `train.min_gradient_cosine`. `again`: components
    that were measured with another basis than theirs, which is fitted when the column has them; to be certified again then."""

    column: str
    codec: str
    bytes: int
    loss: float
    row: Mapping[str, Any]
    taken: bool
    again: bool


@dataclass(frozen=True)
class Budget:
    """Every offer, and of each column the one that was chosen among those that training takes."""

    pictures: int
    max_bytes: int
    least_cosine: float
    offers: Sequence[Offer]
    chosen: Sequence[Offer]


def needed(project: Project) -> list[str]:
    """The steps that must be made before a budget can be drawn up: the certificates, and what they are made from."""
    steps, certificates = steps_of(project), [f"certificate/{name}" for name in project.loss.distillation]
    gates = {gate for step in steps if step.name in certificates for gate in step.gates.values()}
    return above(steps, [*certificates, *gates])


def draw_up(project: Project, max_bytes: int) -> Budget:
    """The choice that training takes and that fits, at the least loss; `DataError` where none does. The certificates lie
    there."""
    steps = steps_of(project)
    found = artifacts(steps, Folder(project.workspace))
    sizes = _sizes(found["images"])
    stages = {step.stage.name: step.stage for step in steps if isinstance(step.stage, FeaturesStage)}
    left = max_bytes - sum(_of_all(stages[name].spec, sizes) for name in stages if name not in project.loss.distillation)
    least = project.train.min_gradient_cosine
    columns = [
        list(_offers(stages[name].spec, loss.weight, read_certificate(found[f"certificate/{name}"]), sizes, least))
        for name, loss in project.loss.distillation.items()
    ]
    choices = [_taken(offers, least) for offers in columns]
    fitting = [chosen for chosen in product(*choices) if _bytes(chosen) <= left]
    if not fitting:
        smallest = sum(min(offer.bytes for offer in offers) for offers in choices)
        what = f"no choice of codecs fits {size(max_bytes)}: the smallest take {size(smallest)} for {sizes.total()} pictures"
        raise DataError(what, "--max-bytes", "Give more, widen certificate.ladder, or lower train.min_gradient_cosine.")
    chosen = min(fitting, key=lambda offers: (sum(offer.loss for offer in offers), _bytes(offers)))
    return Budget(sizes.total(), max_bytes, least, [offer for offers in columns for offer in offers], chosen)


def _taken(offers: Sequence[Offer], least: float) -> list[Offer]:
    """Those that training takes; `DataError` where there is none."""
    taken = [offer for offer in offers if offer.taken]
    if not taken:
        best = min(offers, key=lambda offer: offer.loss)
        what = f"training takes none of its codecs: the best, {best.codec}, has gradient cosine {worst_cosine(best.row):.4f}"
        remedy = "Widen certificate.ladder, or lower train.min_gradient_cosine."
        raise DataError(f"{what}, less than {least}", f"features.{best.column}", remedy)
    return taken


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
    spec: FeatureSpec, weight: float, certificate: Mapping[str, Any], sizes: Counter[tuple[int, int]], least: float
) -> Iterator[Offer]:
    demand_true_rows(certificate, spec)
    measured = {row["codec"]: row["bytes_an_image"] for row in certificate["codecs"]}
    for row in certificate["codecs"]:
        form = spec.model_copy(update={"codec": row["codec"]})
        taken = _of_all(form, sizes)
        if not taken:
            taken = measured[row["codec"]] * sizes.total()
        elif form.is_squeezed and "bf16" in measured:
            taken = int(taken * measured[row["codec"]] / measured["bf16"])
        worst = worst_cosine(row)
        again = bool(form.components) and row["codec"] not in certificate.get("bases", {})
        yield Offer(spec.teacher, row["codec"], taken, weight * (1 - worst), row, taken=worst >= least, again=again)


def _of_all(spec: FeatureSpec, sizes: Counter[tuple[int, int]]) -> int:
    """The bytes of all pictures' rows before any compression; 0 where the teacher alone knows its grid."""
    if spec.grid == "native":
        return 0
    return sum(layout_bytes(spec.layout(*(spec.grid_of(*each) or (0, 0)))) * count for each, count in sizes.items())


def as_table(budget: Budget) -> str:
    head = ("", "column", "codec", "an image", "all", "error", "cosine", "loss", "gradient", "late")
    rows = [(_mark(offer, budget), *_cells(offer, budget.pictures)) for offer in budget.offers]
    lines = [_lines(offer) for offer in budget.chosen]
    total = f"{size(_bytes(budget.chosen))} of {size(budget.max_bytes)} for {budget.pictures} pictures"
    refused = [] if all(offer.taken for offer in budget.offers) else [f"x: training refuses less than {budget.least_cosine}"]
    return "\n\n".join([grid([head, *rows]), *refused, total, *lines])


def _lines(offer: Offer) -> str:
    """For the config."""
    again = f"  # then --rebuild certificate/{offer.column}, which measured it with another basis" if offer.again else ""
    return f'[features.{offer.column}]\ncodec = "{offer.codec}"{again}'


def _mark(offer: Offer, budget: Budget) -> str:
    if offer in budget.chosen:
        return "->"
    return "" if offer.taken else "x"


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
        "offers": [_as_json(offer) for offer in budget.offers],
    }


def _as_json(offer: Offer) -> dict[str, Any]:
    return {"column": offer.column, "bytes": offer.bytes, "taken": offer.taken, "again": offer.again, **offer.row}


def parse_bytes(text: str) -> int:
    """500GB, 4 MiB, 1e9: decimal units with B, binary ones with iB."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in UNITS or match[1].count(".") > 1:
        raise ConfigError(f"{text!r} is no number of bytes", "--max-bytes", "Write it as 500GB, 4TiB or 1e12.")
    return int(float(match[1]) * UNITS[match[2]])
