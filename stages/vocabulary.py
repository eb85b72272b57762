"""SAMPLES -> the tokenizer: byte-level BPE trained on the training text, stored as an artifact."""

from schemas.artifact import Artifact
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources

FILE = "tokenizer.json"


class VocabularyStage(JobStage):
    """`size` counts the special tokens; `prompts` is the number of `<PromptK>`."""

    size: int = 512
    prompts: int = 15

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        from student.vocabulary import Vocabulary

        texts: list[str] = []
        for number, shard in enumerate(inputs["samples"].iterate(["split", "turns"]), start=1):
            rows = (row for row in shard.to_pylist() if row["split"] == "train")
            texts += [text for row in rows for turn in row["turns"] for text in (turn["question"], turn["answer"])]
            progress(number, inputs["samples"].shards, "shards")
        vocabulary = Vocabulary.train(texts, self.size, self.prompts)
        output.folder.write(FILE, vocabulary.to_json().encode())
        return Outcome({"tokens": len(vocabulary), "texts": len(texts)})
