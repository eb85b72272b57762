"""Multiple choice: which lettered option an answer picks, and how often it is the right one.

The authors ask whether the expected text stands anywhere in the answer, so "A" is right in any answer with an A. That count
is kept for comparison, as `accuracy_paper`; `accuracy` reads the option that was picked.
"""

import re
from collections.abc import Iterable, Mapping

from student.metrics.caption import words

# An option opens with a capital, alone or in brackets, and a mark: `A. red`, `B) a car`, `(C) none`.
_OPTION = re.compile(r"(?<![\w<])\(?([A-Z])[.):]\s+")
# It may lack the space before it, as in the authors' script.
_BEGINS = r"\s*(?:\b|(?-i:(?<=\w)(?=[A-Z])))(?:select|choose|answer)\b"
_INSTRUCTION = re.compile(_BEGINS + r"[^.]*\b(?:choice|option|letter)\b[^.]*\.?\s*$", re.IGNORECASE)
_LEADING = re.compile(r"[\W_]*([A-Z])(?:[.):,]|\s*$)")
_NAMED = re.compile(r"(?i:\b(?:answer|option|choice)\b(?:\s+is)?)\W*\b([A-Z])\b(?!')")


def options(question: str) -> dict[str, str]:
    """Letter -> text of the options A, B, … that a question carries; empty where it carries none."""
    text, found = _INSTRUCTION.sub("", question), []
    for match in _OPTION.finditer(text):
        found += [match] if match[1] == chr(ord("A") + len(found)) else []
    ends = [*(match.start() for match in found[1:]), len(text)][: len(found)]
    return {match[1]: text[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}


def picked(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter that an answer picks: the one it opens with or names, else of the one option whose words it says.

    Of options that are said within one another ("circle", "red circle") the longest counts. None where it is not clear.
    """
    plain = re.sub(r"<[^<>]*>", " ", answer).strip()
    for pattern in (_LEADING.match, _NAMED.search):
        match = pattern(plain)
        if match and match[1] in choices:
            return match[1]
    said = [letter for letter, text in choices.items() if _says(words(plain), words(text))]
    longest = [a for a in said if not any(a != b and _says(words(choices[b]), words(choices[a])) for b in said)]
    return longest[0] if len(longest) == 1 else None


def _says(text: list[str], part: list[str]) -> bool:
    """Whether the words `part` stand in `text` in a row."""
    return bool(part) and any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def is_right(question: str, expected: str, answer: str) -> bool:
    """Whether the answer picks the expected option; for a question without options, whether it says the same words."""
    choices = options(question)
    if not choices:
        return words(answer) == words(expected)
    choice = picked(answer, choices)
    return choice is not None and choice == picked(expected, choices)


def choice_scores(items: Iterable[tuple[str, str, str]]) -> dict[str, float]:
    """accuracy, and accuracy_paper as the authors count, of (question, expected, answer); each 0 … 1."""
    cases = list(items)
    if not cases:
        return {}
    right = sum(is_right(*case) for case in cases)
    within = sum(expected in answer for _, expected, answer in cases)
    return {"accuracy": right / len(cases), "accuracy_paper": within / len(cases)}
