"""The curves of a training on its Prefect page: bars and numbers of the steps that were told."""

import base64
import json
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.pages import MOST_ROWS, Bar, curves_text
from flows.progress import Meter


def test_curves_rise_from_their_lowest_to_their_highest():
    text = curves_text({step: {"step": step, "lm": 8.0 - step, "grad_norm": 1.0} for step in range(1, 9)}, "train: 8/8 steps")
    assert "| lm | `█▇▆▅▄▃▂▁` |" in text
    assert "| grad_norm | `▁▁▁▁▁▁▁▁` |" in text
    assert "| step | lm | grad_norm |" in text
    assert "| 8 | 0 | 1 |" in text


def test_of_many_steps_a_few_are_shown_the_first_and_the_last_among_them():
    text = curves_text({step: {"lm": 1.0} for step in range(1, 1001)}, "")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.removeprefix("| ")[:1].isdigit()]
    assert len(rows) == MOST_ROWS
    assert (rows[0], rows[-1]) == ("| 1", "| 1000")


def test_a_number_that_some_steps_lack_leaves_a_gap():
    assert "| mask | `▁ █` |" in curves_text({1: {"mask": 1.0}, 2: {}, 3: {"mask": 2.0}}, "")


def test_the_page_of_a_training_has_its_curves(prefect_server: str, capsys: pytest.CaptureFixture[str]):
    @flow(name="curves")
    def training() -> None:
        with Meter("train", Bar("curving", "train").draw) as meter:
            for step in (1, 2, 3):
                meter.chart(step, {"lm": 3.0 - step})
                meter(step, 3, "steps")

    training()
    assert any("| lm | `█▅▁` |" in str(artifact.data) for artifact in artifacts("curving-curves-train"))


def test_of_each_part_it_is_told_how_many_samples_were_seen(prefect_server: str, capsys: pytest.CaptureFixture[str]):
    @flow(name="counting")
    def training() -> None:
        bar = Bar("counting", "train")
        with Meter("train", bar.draw, bar.hang, bar.lay) as meter:
            meter.lay([{"part": "caption", "shown": 6}, {"part": "choice", "shown": 3}], "9 samples an epoch")
            meter.chart(1, {"lm": 1.0, "seen/caption": 1200, "seen/choice": 600})
            meter.chart(2, {"lm": 1.0})
            meter(2, 2, "steps")

    training()
    (curves,) = artifacts("counting-curves-train")
    assert "| caption | 1,200 |\n| choice | 600 |" in curves.data
    assert "seen/" not in curves.data
    (table,) = artifacts("counting-shown-train")
    assert json.loads(table.data) == [{"part": "caption", "shown": 6}, {"part": "choice", "shown": 3}]
    assert "train: 9 samples an epoch\n" in capsys.readouterr().err


def artifacts(key: str) -> list[Any]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def test_what_a_student_says_on_its_way_hangs_on_its_page(prefect_server: str, capsys: pytest.CaptureFixture[str]):
    @flow(name="looking")
    def training() -> None:
        bar = Bar("looking", "train")
        with Meter("train", bar.draw, bar.hang) as meter:
            meter.hang(b"first", "after 1 of 2 steps")
            meter.hang(b"second", "after 2 of 2 steps")

    training()
    found = {artifact.description: artifact.data for artifact in artifacts("looking-look-train")}
    url = f"data:image/png;base64,{base64.b64encode(b'second').decode()}"
    assert found.keys() == {"after 1 of 2 steps", "after 2 of 2 steps"}
    assert found["after 2 of 2 steps"] == url
