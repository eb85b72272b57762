"""What each codec costs the student's gradient, on maps of the largest size: Mask2Former's, for pictures of 1024 x 1024.

No published weights can be had where this was written, so the network has the layers of Swin-T at its real input size and
seeded random weights: the maps are as large as the real ones and vary with the picture, but what principal components make of
them says little of a trained teacher. Points do not ask what is in a map. The student has the mask head of the one of 0.5B,
and two layers. `sailyard budget` prints the same table for your weights and your pictures.
"""

import io
from pathlib import Path

import numpy as np
from harness import Bar, Result, main
from PIL import Image

from schemas import tables
from schemas.artifact import Artifact
from schemas.grids import PatchGrid
from schemas.pictures import image_key
from schemas.storage import Folder
from stages.base import Resources
from stages.certificate import CertificateStage, worst_cosine
from stages.sources.shapes.render import paint
from stages.sources.shapes.scene import compose
from stages.vocabulary import FILE
from student.config import StudentConfig
from student.vocabulary import Vocabulary
from teachers.mask2former.config import PRESETS, Mask2FormerConfig

MOST_BYTES = 4 << 20
LADDER = ("bf16", "int8", "pca60-int8", "points8000", "points2000")
TEXTS = ["What is in the picture?", "A picture.", "Please segment the red circle.", "It is [SEG]."] * 4


def teacher(side: int) -> Mask2FormerConfig:
    sizes = PRESETS["facebook/mask2former-swin-tiny-coco-panoptic"]["sizes"]
    edge = max(32, 800 * side // 1024)
    return Mask2FormerConfig(
        weights="random", sizes=sizes, channels=256, shortest_edge=edge, longest_edge=2 * edge, dtype="float32"
    )


def student(side: int, hidden: int) -> StudentConfig:
    return StudentConfig(layers=2, hidden=hidden, heads=hidden // 64, kv_heads=hidden // 64, ffn=4 * hidden, max_side=side)


def pictures(folder: Path, count: int, side: int) -> Artifact:
    """Drawn scenes of `side` pixels, as the pool keeps pictures."""
    draws = [np.random.default_rng(number) for number in range(count)]
    scenes = [paint(compose(rng, side=side, objects=(3, 6)), rng) for rng in draws]
    made = Artifact(Folder(str(folder / "images")), {}, tables.IMAGES, 1, "images")
    made.write(0, tables.IMAGES.rows([_row(pixels) for pixels in scenes]))
    return made


def _row(pixels_HWC: np.ndarray) -> dict[str, object]:
    data = io.BytesIO()
    Image.fromarray(pixels_HWC).save(data, "PNG")
    height, width, _ = pixels_HWC.shape
    known = {"image_key": image_key(pixels_HWC), "width": width, "height": height, "format": "PNG", "sha256": "", "aliases": []}
    return known | {"bytes": data.getvalue()}


def measure(folder: Path, *, pictures_measured: int, pictures_fitted: int, side: int, hidden: int, threads: int) -> Result:
    stage = CertificateStage(
        name="mask2former",
        teacher=teacher(side),
        grid=PatchGrid(patch=16, max_side=side, cells=4),
        student=student(side, hidden),
        reads="mask_features",
        ladder=LADDER,
        pictures=pictures_measured,
        basis_pictures=pictures_fitted,
    )
    vocabulary = Artifact(Folder(str(folder / "vocabulary")), {}, None, 0, "vocabulary")
    vocabulary.folder.write(FILE, Vocabulary.train(TEXTS, 320, stage.student.prompts).to_json().encode())
    inputs = {"images": pictures(folder, pictures_measured + pictures_fitted, side), "vocabulary": vocabulary}
    output = Artifact(Folder(str(folder / "certificate")), {}, None, 0, "certificate/mask2former")
    found = stage.run(inputs, output, Resources(threads=threads), lambda done, total, unit, note="": None)
    rows = found.summary["codecs"]
    small = [worst_cosine(row) for row in rows if row["bytes_an_image"] <= MOST_BYTES]
    bar = Bar("gradient cosine of the best codec of 4 MiB a picture or less", max(small), at_least=0.99)
    return Result([bar], rows, {"weights": "random, layers of Swin-T"})


if __name__ == "__main__":
    main(
        "fidelity",
        measure,
        pictures_measured=(1, "pictures that codecs are measured on"),
        pictures_fitted=(4, "pictures that principal components are fitted on"),
        side=(1024, "pixels to a side of a picture"),
        hidden=(512, "width of the student"),
        threads=(2, "of the teacher and the student"),
    )
