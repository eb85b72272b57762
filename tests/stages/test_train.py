"""A signal on whoever runs the stage: the step is saved, the signal goes on to whom it was meant for, and so does the run."""

import io
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.artifact import Artifact
from schemas.storage import Folder
from stages.base import Inputs, Resources
from stages.looks import Look
from stages.train import TrainStage
from stages.vocabulary import FILE
from student.data.corpus import Corpus
from student.train_config import TrainConfig
from student.training import checkpoint
from student.training.run import initial_student
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.stores import FAST, small_loss, write_store

RAYS_OWN = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of ray.train, about itself


class Terminated(BaseException):
    """What SIGTERM comes to under the command line, or under Prefect."""


@contextmanager
def terminated():
    """SIGTERM as whoever runs the stage has it."""

    def raised(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, raised)
    try:
        with pytest.raises(Terminated):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def inputs(tmp_path: Path, rng: np.random.Generator) -> Inputs:
    store = write_store(Folder(str(tmp_path / "store")), rng)
    vocabulary = Artifact(store.folder.child("vocabulary"), {"stage": "vocabulary"})
    vocabulary.folder.write(FILE, micro_vocabulary().to_json().encode())
    features = {f"features/{name}": artifact for name, artifact in store.features.items()}
    return {"samples": store.samples, "images": store.images, "vocabulary": vocabulary, **features}


def stage(**changes) -> TrainStage:
    settings = {"steps": 12, "batch": 4, "micro_batch": 2, "checkpoint_every": 100, "log_every": 1} | changes
    return TrainStage(student=micro_config(), loss=small_loss(), optim=FAST, train=TrainConfig(**settings))


def output(tmp_path: Path, name: str) -> Artifact:
    return Artifact(Folder(str(tmp_path / name)), {"stage": "train"})


def at_step(step: int, act: Callable[[], None]):
    """A progress that does so once, when it is told of that step or a later one."""
    left = [act]

    def progress(done: int, total: int, unit: str, note: str = "") -> None:
        if done >= step and left:
            left.pop()()

    return progress


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    """Nobody looks."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_when_the_step_is_saved(inputs: Inputs, tmp_path: Path, number: signal.Signals):
    here, unbroken = Resources(executor="local"), output(tmp_path, "unbroken")
    stage().run(inputs, unbroken, here, quiet)
    made = output(tmp_path, "made")
    with terminated():
        stage().run(inputs, made, here, at_step(3, lambda: signal.raise_signal(number)))
    assert checkpoint.steps(made.folder) == [0, 4]
    stage().run(inputs, made, here, quiet)
    for name in ("metrics.jsonl", "step-00000012/model.safetensors", "step-00000012/training.safetensors"):
        assert made.folder.read(name) == unbroken.folder.read(name)


@pytest.mark.slow
@RAYS_OWN
def test_a_signal_on_the_driver_has_the_group_save_and_leave(inputs: Inputs, tmp_path: Path, ray_cluster: None):
    group, made = Resources(executor="ray", workers=2), output(tmp_path, "made")
    with terminated():
        stage(steps=5000).run(inputs, made, group, at_step(1, lambda: signal.raise_signal(signal.SIGTERM)))
    left = checkpoint.latest(made.folder)
    assert left is not None and left.step % 100 and left.step < 5000
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray takes a minute to believe that a machine is gone
@RAYS_OWN
def test_a_group_that_loses_a_machine_goes_on_smaller(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of three workers, on machines of two and of one, two go on, and share the four micro-batches of a step."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second, made = cluster.add_node(num_cpus=1), output(tmp_path, "made")
    group = Resources(executor="ray", workers=3, ray_address=cluster.address)
    told: list[int] = []

    def progress(done: int, total: int, unit: str, note: str = "") -> None:
        if not told:
            cluster.remove_node(second, allow_graceful=False)
        told.append(done)

    try:
        work = stage(steps=40, micro_batch=1, min_workers=1, checkpoint_every=5)
        assert work.run(inputs, made, group, progress).summary["steps"] == 40
        assert [row["step"] for row in checkpoint.latest(made.folder).history] == list(range(1, 41))
    finally:
        ray.shutdown()
        cluster.shutdown()


class Wall:
    """A progress that keeps the pictures it is given."""

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self.tables: list[Any] = []

    def __call__(self, done: int, total: int, unit: str, note: str = "") -> None: ...

    def chart(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def hang(self, png: bytes, title: str) -> None:
        self.pictures[title] = png

    def lay(self, rows: Sequence[Mapping[str, Any]], line: str) -> None:
        self.tables.append((rows, line))


def test_now_and_then_the_student_is_asked_and_what_it_says_is_shown(inputs: Inputs, tmp_path: Path):
    wall, plain = Wall(), output(tmp_path, "plain")
    stage(steps=4, look_every=2, recompute=True).run(inputs, output(tmp_path, "seen"), Resources(executor="local"), wall)
    stage(steps=4).run(inputs, plain, Resources(executor="local"), quiet)
    titles = [f"What the student says of training pictures after {step} of 4 steps" for step in (2, 4)]
    assert list(wall.pictures) == titles
    ((rows, line),) = wall.tables
    assert sorted(row["part"] for row in rows) == ["caption", "choice", "segmentation"]
    assert line.startswith("18 samples an epoch: ")
    first, last = (np.asarray(Image.open(io.BytesIO(wall.pictures[title]))) for title in titles)
    assert first.shape == last.shape
    assert (first != last).any()
    seen = checkpoint.latest(output(tmp_path, "seen").folder)
    unseen = checkpoint.latest(plain.folder)
    assert seen and unseen
    assert all(np.array_equal(value, unseen.model()[name]) for name, value in seen.model().items())


def test_what_is_too_long_to_be_asked_is_passed_over(inputs: Inputs):
    features = {name: inputs[f"features/{name}"] for name in ("sam2", "mask2former")}
    heights = []
    for longest in (200, 35, 10):
        config, vocabulary = micro_config(max_length=longest), micro_vocabulary()
        parts = {"samples": inputs["samples"], "images": inputs["images"], "features": features}
        corpus = Corpus(**parts, vocabulary=vocabulary, config=config)
        png = Look(corpus, count=18)(1, initial_student(config, vocabulary, 0).eval())
        heights.append(Image.open(io.BytesIO(png)).height)
    assert heights[0] > heights[1] > heights[2]
