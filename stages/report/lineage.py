"""Where a number comes from: every artifact behind the report, found through the records from one to the next."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from schemas.artifact import RECORD, Artifact, Record
from schemas.storage import Folder
from stages.report.training import teacher_weights


@dataclass(frozen=True)
class Made:
    """One artifact of the lineage. `record` is None where only its fingerprint is known: it is gone, or was made anew."""

    name: str
    fingerprint: str
    inputs: tuple[str, ...] = ()
    record: Record | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        return self.record.identity.get("config", {}) if self.record else {}

    @property
    def seconds(self) -> float | None:
        """From start to end, as the record has it."""
        if self.record is None:
            return None
        return (datetime.fromisoformat(self.record.ended) - datetime.fromisoformat(self.record.started)).total_seconds()

    @property
    def weights(self) -> str | None:
        """The weights of the teacher that made it."""
        return (
            teacher_weights(self.record.identity) if self.record and self.name.startswith(("features/", "segments/")) else None
        )

    @property
    def has_random_teacher(self) -> bool:
        return (self.weights or "").lower().startswith("random")


def family(inputs: Mapping[str, Artifact]) -> dict[str, Made]:
    """Every artifact that the inputs, given by role, and their inputs in turn were made from; ancestors come first.

    An ancestor that is no input itself is read where the workspace has it, if its fingerprint is still the one named.
    """
    known = {artifact.name or role: artifact for role, artifact in inputs.items()}
    found: dict[str, Made] = {}

    def visit(name: str, fingerprint: str, artifact: Artifact | None) -> None:
        if name in found:
            return
        record = artifact.record() if artifact else None
        if record is None or record.fingerprint != fingerprint:
            found[name] = Made(name, fingerprint)
            return
        for made in record.inputs.values():
            near = known.get(made["name"]) or _sibling(known, made["name"])
            visit(made["name"], made["fingerprint"], near)
        parents = tuple(dict.fromkeys(made["name"] for made in record.inputs.values()))
        found[name] = Made(name, fingerprint, parents, record)

    for name, artifact in known.items():
        visit(name, artifact.fingerprint, artifact)
    return found


def _sibling(known: Mapping[str, Artifact], name: str) -> Artifact | None:
    """The artifact called `name` in the workspace that the others lie in."""
    root = next(_roots(known), None)
    if root is None or not root.child(name).exists(RECORD):
        return None
    return Artifact.sealed(root.child(name), name)


def _roots(known: Mapping[str, Artifact]) -> Iterator[Folder]:
    for name, artifact in known.items():
        url = artifact.folder.url.rstrip("/")
        if url.endswith(f"/{name}"):
            yield Folder(url.removesuffix(f"/{name}"))
