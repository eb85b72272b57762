"""SAMPLES and IMAGES, by a checkpoint -> PREDICTIONS: what the student writes and segments when it is asked."""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from schemas.dialogue import SEG, Sample
from schemas.pictures import decode, sound_bytes
from schemas.regions import Rle
from schemas.tables import PREDICTIONS, Table, revive
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables
from stages.vocabulary import FILE
from student.config import StudentConfig

PREFIX = "It is [SEG]."


class PredictStage(MapStage):
    """Inputs: `samples` and `images`; whole: `train` and `vocabulary`. "untrained" is the student as training found it,
    the floor under every score. A visual-text reference that brings no mask is asked again with the answer begun
    (reference 7.5c)."""

    student: StudentConfig
    weights: Literal["trained", "untrained"] = "trained"
    max_new_tokens: int = 512

    def table(self) -> Table:
        return PREDICTIONS

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        from student.training.checkpoint import open_student
        from student.vocabulary import Vocabulary

        vocabulary = Vocabulary.from_json(whole["vocabulary"].folder.read(FILE).decode())
        model = open_student(
            whole["train"].folder,
            self.student,
            vocabulary,
            trained=self.weights == "trained",
            device=resources.device,
            threads=resources.threads,
        )
        return _Answerer(self, model, vocabulary, resources.batch).answer


class _Answerer:
    def __init__(self, stage: PredictStage, model: Any, vocabulary: Any, batch: int):
        self.stage, self.model, self.vocabulary, self.batch = stage, model, vocabulary, batch

    def answer(self, inputs: Tables) -> pa.Table:
        rows = [row for row in inputs["samples"].to_pylist() if row["split"] == "evaluation"]
        samples = revive(list[Sample], rows)
        pictures = pictures_of(inputs["images"], {sample.image_key for sample in samples})
        answers = self._ask(samples, pictures, None)
        silent = [i for i, s in enumerate(samples) if s.task == "reference" and SEG not in answers[i].text]
        again = self._ask([samples[i] for i in silent], pictures, PREFIX)
        answers = {**dict(enumerate(answers)), **dict(zip(silent, again, strict=True))}
        return PREDICTIONS.rows([prediction(sample, answers[i]) for i, sample in enumerate(samples)])

    def _ask(self, samples: Sequence[Sample], pictures: dict[str, Any], prefix: str | None) -> list[Any]:
        from student.data.samples import encode_question
        from student.generate import generate

        student = self.stage.student
        examples = [encode_question(self.vocabulary, student, s, pictures[s.image_key], prefix) for s in samples]
        return generate(self.model, self.vocabulary, examples, self.stage.max_new_tokens, self.batch)


def pictures_of(images: pa.Table, wanted: set[str]) -> dict[str, Any]:
    """key -> the pixels of each picture of the shard that is wanted."""
    rows = images.select(["image_key", "bytes", "sha256"])
    found = (rows.slice(at, 1).to_pylist()[0] for at, key in enumerate(rows["image_key"].to_pylist()) if key in wanted)
    return {image["image_key"]: decode(sound_bytes(image)) for image in found}


def prediction(sample: Sample, answer: Any) -> dict[str, Any]:
    """The row of PREDICTIONS of what was answered to the sample's last question."""
    turn = sample.turns[-1]
    height, width = (sample.masks[0].height, sample.masks[0].width) if sample.masks else (1, 1)
    return {
        "sample_id": sample.sample_id,
        "image_key": sample.image_key,
        "task": sample.task,
        "question": turn.question,
        "expected": turn.answer,
        "text": answer.text,
        "targets": sample.masks,
        "levels": sample.levels,
        "masks": [Rle.of(mask) for mask in answer.masks(height, width)] if sample.masks else [],
    }
