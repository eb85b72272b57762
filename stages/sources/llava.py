"""LLaVA-1.5's instruction data: conversations about whole pictures, as they were fed to the model, without a mask.

Each record is one dialogue whose turns build on one another. `<image>` only says where the picture was; here it always comes
first. What the human says twice in a row is one question; what the assistant says before any question is left out, and so is
a last question without an answer. A record without a picture is text alone.
"""

from typing import Any

from schemas.annotations import Conversation
from schemas.dialogue import Turn
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, unmarked


def is_text_alone(record: Any) -> bool:
    return not record.get("image")


def flatten_conversation(record: Any) -> list[Statement]:
    what = f"conversation {record.get('id')}"
    if is_text_alone(record):
        return [{"what": what}]  # nothing of it is read: it only counts
    return [{"what": what, "said": spoken(record)}]


def spoken(record: Any) -> list[tuple[Any, Any]]:
    """Who says what, in order."""
    return [(each["from"], each["value"]) for each in record["conversations"]]


def add_conversation(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    turns = [Turn(unmarked(question), unmarked(answer)) for question, answer in exchanges(statement["said"])]
    if not turns:
        raise Unusable("text", "it has no question with an answer")
    draft.conversations.append(Conversation(turns, [], [], split, source))


def exchanges(said: list[tuple[Any, Any]]) -> list[tuple[str, str]]:
    """(question, answer) in order, the questions without `<image>`."""
    asked: list[str] = []
    answered: list[tuple[str, str]] = []
    for who, text in said:
        match who:
            case "human":
                asked.append(text.replace("<image>", "").strip())
            case "gpt" if asked:
                answered.append(("\n".join(asked), text))
                asked = []
            case "gpt":
                if answered:
                    raise Unusable("text", "an answer follows an answer")
            case _:
                raise Unusable("record", f"{who!r} speaks, neither human nor gpt")
    return answered
