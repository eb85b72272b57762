"""SAMPLES -> the tokenizer: byte-level BPE trained on the training text, or that of the base model, stored as an artifact."""

from typing import Any

from schemas.artifact import Artifact, file_digest
from schemas.config import fingerprint, later
from schemas.storage import Folder
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from stages.weights import ABSENT
from student.config import BaseConfig
from student.weights.published import TOKENIZER_FILES

FILE = "tokenizer.json"


class VocabularyStage(JobStage):
    """`size` counts the special tokens; `prompts` is the number of `<PromptK>`; without `pictures` there are none that name
    what is seen. With a `base` the tokens are those of its tokenizer and what it lacks, no input is looked at, and `size`
    means nothing."""

    size: int = 512
    prompts: int = 15
    base: BaseConfig | None = None
    pictures: bool = later(True)

    def identity(self) -> dict[str, Any]:
        """Without the field that means nothing: the size where there is a base, and else the base."""
        unused = "size" if self.base else "base"
        return {name: value for name, value in super().identity().items() if name != unused}

    def outside(self) -> dict[str, str]:
        return {"base": base_digest(self.base, weights=False)} if self.base else {}

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        if self.base:
            return self._take(self.base, output)
        from student.vocabulary import Vocabulary

        texts: list[str] = []
        for number, shard in enumerate(inputs["samples"].iterate(["split", "turns"]), start=1):
            rows = (row for row in shard.to_pylist() if row["split"] == "train")
            texts += [text for row in rows for turn in row["turns"] for text in (turn["question"], turn["answer"])]
            progress(number, inputs["samples"].shards, "shards")
        vocabulary = Vocabulary.train(texts, self.size, self.prompts, self.pictures)
        output.folder.write(FILE, vocabulary.to_json().encode())
        return Outcome({"tokens": len(vocabulary), "texts": len(texts)})

    def _take(self, base: BaseConfig, output: Artifact) -> Outcome:
        from student.vocabulary import Vocabulary
        from student.weights.base import locate

        vocabulary = Vocabulary.from_qwen(locate(base), self.prompts, self.pictures)
        output.folder.write(FILE, vocabulary.to_json().encode())
        return Outcome({"tokens": len(vocabulary), "base": base.weights})


def base_digest(base: BaseConfig, *, weights: bool = True) -> str:
    """A digest of the base's files: the tokenizer's and, with `weights`, its config and tensors. ABSENT in its place is no
    obstacle to reading what was made when they were there, only to making more."""
    folder = Folder(base.folder or ABSENT)
    read = [name for name in folder.names() if name in TOKENIZER_FILES or (weights and _is_weights(name))]
    return fingerprint({name: file_digest(folder, name) for name in read}) if read else ABSENT


def _is_weights(name: str) -> bool:
    return name == "config.json" or name.endswith((".safetensors", ".safetensors.index.json"))
