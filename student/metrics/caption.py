"""Scores of captions against references: CIDEr-D, ROUGE-L, BLEU, and METEOR where nltk and WordNet are installed.

The arithmetic is that of the COCO caption evaluation. Its Java tokenizer is replaced by `words`, which lowers the case and
drops punctuation as that does but leaves contractions whole. A caption is given as the student wrote it: the marks of
prompts and masks and the final stop are no words of it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from schemas.errors import MissingLibrary

GRAMS = 4
SIGMA = 6.0  # CIDEr-D: how quickly a difference in length costs
BETA = 1.2  # ROUGE-L: how much more recall weighs than precision
TINY, SMALL = 1e-15, 1e-9  # BLEU's guards against zero, which its numbers for short texts depend on

_OPENING = re.compile(r"^<Prompt\d+>:\s*")  # of an answer in our samples; the authors' references have none

Words = list[str]
Vectors = list[dict[tuple[str, ...], float]]  # n-gram -> weight, for n = 1 … GRAMS


def words(text: str) -> Words:
    """The words of a caption in lower case, without `<…>` marks, `[SEG]` and punctuation."""
    plain = re.sub(r"<[^<>]*>|\[SEG\]", " ", text)
    return re.findall(r"\w+(?:[-'.,]\w+)*", plain.lower())


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """cider (0 … 10), rouge_l and bleu_4 (0 … 1) of one prediction and one or more references an item."""
    if not predictions:
        return {}
    said, known = [words(text) for text in predictions], [[words(text) for text in texts] for texts in references]
    return {"cider": cider(said, known), "rouge_l": rouge_l(said, known), "bleu_4": bleu(said, known)[-1]}


def cider(said: Sequence[Words], known: Sequence[Sequence[Words]]) -> float:
    """CIDEr-D: likeness of n-grams weighted by how few items' references have them, averaged over n, times 10.

    Weights come from the references given, so the score of a single item is 0.
    """
    frequency = Counter(gram for texts in known for gram in {gram for text in texts for gram in _grams(text)})
    vectors = lambda text: _vectors(text, frequency, math.log(len(known)))  # noqa: E731
    items = (
        [_likeness(text, vectors(text), reference, vectors(reference)) for reference in texts]
        for text, texts in zip(said, known, strict=True)
    )
    return 10 * float(np.mean([np.mean(item) for item in items]))


def _grams(text: Words, sizes: Sequence[int] = range(1, GRAMS + 1)) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for n in sizes for i in range(len(text) - n + 1))


def _vectors(text: Words, frequency: Counter[tuple[str, ...]], log_items: float) -> Vectors:
    weight = lambda gram: log_items - math.log(max(frequency[gram], 1))  # noqa: E731
    return [{gram: count * weight(gram) for gram, count in _grams(text, [n]).items()} for n in range(1, GRAMS + 1)]


def _likeness(said: Words, said_vectors: Vectors, known: Words, known_vectors: Vectors) -> float:
    """Mean over n of the cosine, weights clipped to the reference's, times the cost of the difference in length."""
    cost = math.exp(-((len(said) - len(known)) ** 2) / (2 * SIGMA**2))
    return cost * float(np.mean([_cosine(a, b) for a, b in zip(said_vectors, known_vectors, strict=True)]))


def _cosine(said: dict[tuple[str, ...], float], known: dict[tuple[str, ...], float]) -> float:
    lengths = math.hypot(*said.values()) * math.hypot(*known.values())
    product = sum(min(weight, known[gram]) * known[gram] for gram, weight in said.items() if gram in known)
    return product / lengths if lengths else 0.0


def rouge_l(said: Sequence[Words], known: Sequence[Sequence[Words]]) -> float:
    """F of the longest common subsequence; precision and recall are each the best over an item's references."""
    return float(np.mean([_rouge(text, texts) for text, texts in zip(said, known, strict=True)]))


def _rouge(said: Words, known: Sequence[Words]) -> float:
    common = [_common(said, text) for text in known]
    precision = max(common) / max(len(said), 1)
    recall = max(length / max(len(text), 1) for length, text in zip(common, known, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for j, other in enumerate(b):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return row[-1]


def bleu(said: Sequence[Words], known: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 … BLEU-4 of the whole set; an item's reference length is the one closest to the prediction's."""
    right, made, length, expected = [0] * GRAMS, [0] * GRAMS, 0, 0
    for text, texts in zip(said, known, strict=True):
        length += len(text)
        expected += min((abs(len(other) - len(text)), len(other)) for other in texts)[1]
        for n in range(GRAMS):
            most: Counter[tuple[str, ...]] = Counter()
            for other in texts:
                most |= _grams(other, [n + 1])
            right[n] += (_grams(text, [n + 1]) & most).total()
            made[n] += max(len(text) - n, 0)
    ratio = (length + TINY) / (expected + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    precision = np.cumprod([(hits + TINY) / (tries + SMALL) for hits, tries in zip(right, made, strict=True)])
    return [float(product ** (1 / (n + 1)) * brevity) for n, product in enumerate(precision)]


def meteor(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean METEOR (0 … 1) by nltk, of one prediction and one reference an item."""
    score, pairs = _meteor_score(), zip(predictions, references, strict=True)
    return float(np.mean([score([words(known)], words(said)) for said, known in pairs]))


def paper_meteor(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The same as in the authors' PerBench script: prediction and reference have changed places, and words are what stands
    between blanks, with their punctuation."""
    score, pairs = _meteor_score(), zip(predictions, references, strict=True)
    return float(np.mean([score([paper_words(said)], paper_words(_OPENING.sub("", known))) for said, known in pairs]))


def paper_words(text: str) -> Words:
    """What stands between blanks, but for the mark of a prompt and the stop. Of "<Prompt0>: a box" the colon stays."""
    return re.sub(r"<Prompt\d+>|<\|endoftext\|>", "", text).split()


def _meteor_score() -> Callable[[Sequence[Words], Words], float]:
    """nltk's function of (references, hypothesis), once it and WordNet are known to be there."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        remedy = "Run `pip install nltk` and `python -m nltk.downloader wordnet`, or score captions by CIDEr."
        raise MissingLibrary(f"METEOR needs nltk and WordNet ({type(error).__name__})", "captions", remedy) from None
    return meteor_score
