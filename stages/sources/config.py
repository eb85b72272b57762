"""Where the pictures and the annotation files of a data set lie, and what each file holds.

The paths are execution: the same files elsewhere are the same data. What counts is digested by `listing`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import model_validator

from schemas.config import Compat, Config, execution, later
from schemas.dialogue import Split, Task
from schemas.storage import Folder

Kind = Literal[
    "instances",
    "panoptic",
    "refs",
    "captions",
    "detailed",
    "choices",
    "references",
    "conversations",
    "reasoning",
    "short_captions",
    "described",
    "grounded",
    "muse",
    "osprey",
    "semantic",
    "instance",
    "classified",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What a statement of each kind is asked as; objects are not asked about.
_TASKS: Mapping[Kind, tuple[Task, ...]] = {
    **dict.fromkeys(("refs", "described", "semantic"), ("segmentation",)),
    **dict.fromkeys(("captions", "detailed", "short_captions"), ("caption",)),
    "choices": ("choice",),
    **dict.fromkeys(("references", "reasoning", "instance", "classified"), ("reference",)),
    **dict.fromkeys(("conversations", "grounded", "muse"), ("conversation",)),
    "osprey": ("conversation", "caption"),
}
_OF_PANOPTIC = ("semantic", "instance", "classified")  # which speak of its segments
# Their records say their split, or say nothing of a picture that could have one.
_NEED_NO_SPLIT = ("instances", "panoptic", "refs", "captions", "short_captions", "described")


class _Place(Config):
    """Something at `path` (local, or any fsspec URL); in a TOML the path alone will do."""

    path: str = execution()

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ImageFolder(_Place):
    """Every picture below `path`; its name is `prefix` and its path relative to the folder."""

    prefix: str = ""


class AnnotationFile(_Place):
    """One file; `name` labels what it says (its own name, where none is given). `split` is that of the records that do not
    say theirs."""

    name: str = ""
    split: Split | None = None

    @property
    def label(self) -> str:
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


class PanopticFile(AnnotationFile):
    """COCO panoptic JSON; its PNGs lie in `masks`, or beside it in the folder of its name without the ending."""

    masks: str | None = execution(None)


class NamingFile(AnnotationFile):
    """A file that calls pictures by names of its own. `names`: beginnings of such names, and what stands in their place in the
    pool; of several that fit the longest counts. For a folder of files, `path` is the folder."""

    names: dict[str, str] = {}


@dataclass(frozen=True)
class SourceFile:
    """An annotation file as the readers want it, to be read as `compat` says; `number` is its place among all of the source."""

    kind: Kind
    number: int
    label: str
    url: str
    split: Split | None
    masks: Folder | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    compat: Compat = "correct"

    def in_pool(self, picture: str) -> str:
        """The name in the pool of what the file calls `picture`."""
        beginning = max(filter(picture.startswith, self.names), key=len, default=None)
        return picture if beginning is None else self.names[beginning] + picture.removeprefix(beginning)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return _TASKS.get(self.kind, ())

    @property
    def folder(self) -> Folder:
        return Folder(self.url.rsplit("/", 1)[0] if "/" in self.url else ".")

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class CocoSource(Config):
    """Pictures and what is said about them, in the formats of COCO and of the data sets built on it.

    `refs`: RefCOCO pickles and gRefCOCO JSON. `captions`: Pix2Cap. `detailed`, `choices`, `references`: PerBench's detailed
    captions, multiple choice and V-T RES. `conversations`: LLaVA's questions and answers. `reasoning`: folders of ReasonSeg.
    `short_captions`: a refs file whose sentences are captions of what they name. `described`: Pix2Cap, where what is described
    is to be segmented. `grounded`: GLaMM's four kinds of captions. `muse`: MUSE's questions. `osprey`:
    Osprey-724K's conversations and descriptions. `semantic`, `instance`, `classified`: a COCO panoptic file that is among
    `panoptic`, for what its classes let one ask.
    """

    kind: Literal["coco"] = "coco"
    images: tuple[ImageFolder, ...]
    instances: tuple[AnnotationFile, ...] = ()
    panoptic: tuple[PanopticFile, ...] = ()
    refs: tuple[AnnotationFile, ...] = ()
    captions: tuple[AnnotationFile, ...] = ()
    detailed: tuple[AnnotationFile, ...] = ()
    choices: tuple[AnnotationFile, ...] = ()
    references: tuple[AnnotationFile, ...] = ()
    conversations: tuple[NamingFile, ...] = later(())
    reasoning: tuple[NamingFile, ...] = later(())
    short_captions: tuple[AnnotationFile, ...] = later(())
    described: tuple[AnnotationFile, ...] = later(())
    grounded: tuple[NamingFile, ...] = later(())
    muse: tuple[NamingFile, ...] = later(())
    osprey: tuple[NamingFile, ...] = later(())
    semantic: tuple[AnnotationFile, ...] = later(())
    instance: tuple[AnnotationFile, ...] = later(())
    classified: tuple[AnnotationFile, ...] = later(())

    @model_validator(mode="after")
    def _labels_and_splits(self) -> "CocoSource":
        labels: set[str] = set()
        for kind, file in self._listed():
            if file.label in labels:
                raise ValueError(f"two files are called {file.label!r}: give {file.path} a name of its own")
            if kind not in _NEED_NO_SPLIT and file.split is None:
                raise ValueError(f"{kind}: say the split of {file.path}, 'train' or 'evaluation': its records do not")
            labels.add(file.label)
        return self

    @model_validator(mode="after")
    def _classes_are_of_panoptic_files(self) -> "CocoSource":
        known = {file.path for file in self.panoptic}
        for kind, file in self._listed():
            if kind in _OF_PANOPTIC and file.path not in known:
                raise ValueError(f"{kind}: {file.path} is not among panoptic, which has the segments that it speaks of")
        return self

    def _listed(self) -> Iterator[tuple[Kind, AnnotationFile]]:
        return ((kind, file) for kind in KINDS for file in getattr(self, kind))

    def files(self, compat: Compat = "correct") -> list[SourceFile]:
        """The annotation files, those that define objects before those that speak of them."""
        return [
            SourceFile(kind, number, file.label, file.path, file.split, _masks(file), getattr(file, "names", {}), compat)
            for number, (kind, file) in enumerate(self._listed())
        ]

    @classmethod
    def of_shapes(cls, url: str) -> "CocoSource":
        """The data set that the `shapes` renderer wrote at `url`."""
        held_out = [("detailed", "detailed_caption"), ("choices", "mcq"), ("references", "vres")]
        tables: dict[str, list[dict[str, str]]] = {
            kind: [{"path": f"{url}/perbench/{name}.json", "split": "evaluation"}] for kind, name in held_out
        }
        for kind, name in held_out[1:]:
            tables[kind].append({"path": f"{url}/train_{name}.json", "split": "train"})
        rendered = sorted({"train", "eval"} & set(Folder(url).folders()))
        return cls.model_validate(
            {
                "images": [{"path": f"{url}/{name}", "prefix": f"{name}/"} for name in rendered],
                "instances": [f"{url}/instances.json"],
                "panoptic": [f"{url}/panoptic.json"],
                "refs": [f"{url}/refs.p", f"{url}/grefs.json"],
                "captions": [f"{url}/captions.json"],
                **tables,
            }
        )


def _masks(file: AnnotationFile) -> Folder | None:
    if not isinstance(file, PanopticFile):
        return None
    return Folder(file.masks or file.path.rsplit(".", 1)[0])
