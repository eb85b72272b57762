"""The real photographs of the sample data, and what is said of them, as published files have it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def as_reference(record: dict[str, Any]) -> dict[str, Any]:
    """The record as RefCOCO's pickles have it; the sample has one sentence in each."""
    sentence = {"sent": record["sentence"], "raw": record["sentence"], "sent_id": record["sent_id"]}
    ann_id = -1 if record["no_target"] else record["ann_id"] or record["panoptic_segment_id"]
    return {key: record[key] for key in ("ref_id", "image_id", "split")} | {"ann_id": ann_id, "sentences": [sentence]}


def chosen_pictures(sample: Path, image_ids: Iterable[int], folder: Path) -> Path:
    """A new folder with links to these pictures of the sample."""
    folder.mkdir()
    for name in {f"{image_id:012}.jpg" for image_id in image_ids}:
        (folder / name).symlink_to(sample / "images" / name)
    return folder
