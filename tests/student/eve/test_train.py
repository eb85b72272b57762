"""A student of EVEv2 is trained as any other, stopped and resumed to the same bytes; its operations are counted as by torch."""

import math
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from schemas.errors import ConfigError
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from student.config import LossConfig, TeacherLoss
from student.data.corpus import Corpus
from student.data.features import Column
from student.losses import Distillation, losses
from student.sequence import collate
from student.train_config import TrainConfig
from student.training import checkpoint
from student.training.flops import forward_flops, training_flops
from student.training.run import TrainSetup
from student.training.train import train
from tests.student.eve.micro import eve_config, eve_mixed, eve_student
from tests.student.micro import micro_vocabulary
from tests.student.stores import FAST, Store, small_loss

RUN = {"stage": "train", "version": 1}


def open_setup(store: Store) -> TrainSetup:
    config, words = eve_config(mask_stride=4), micro_vocabulary()
    parts = {"samples": store.samples, "images": store.images, "features": store.features}
    fields = {"student": config, "loss": small_loss(), "optim": FAST, "identity": RUN, "vocabulary": words}
    plan = TrainConfig(steps=4, batch=4, micro_batch=2, checkpoint_every=2, log_every=1)
    return TrainSetup(**fields, train=plan, corpus=Corpus(**parts, vocabulary=words, config=config))


class Killed(Exception):
    pass


def kill_at_three(row: dict[str, Any]) -> None:
    if row["step"] == 3:
        raise Killed


def test_a_killed_run_ends_as_an_unbroken_one(small_store: Store):
    unbroken, killed = small_store.folder.child("unbroken"), small_store.folder.child("killed")
    rows: list[dict[str, Any]] = []
    train(open_setup(small_store), unbroken, rows.append)
    with pytest.raises(Killed):
        train(open_setup(small_store), killed, kill_at_three)
    train(open_setup(small_store), killed, rows.append)
    assert {name: killed.read(name) for name in killed.tree()} == {name: unbroken.read(name) for name in unbroken.tree()}
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    first, last = (checkpoint.at(unbroken, step, RUN).model() for step in (0, 4))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert first.keys() - moved == {"single_transformer.model.vp_embed.weight"}


def test_features_on_the_patches_of_another_student_are_refused():
    """Pictures have other sizes here, so other patches."""
    spec = FeatureSpec(teacher="sam2", layer="l", channels=3, grid=PatchGrid(patch=8, max_side=64, cells=1))
    loss = LossConfig(distillation={"sam2": TeacherLoss(reads="patches")})
    with pytest.raises(ConfigError, match=r"features.sam2: .*EVEv2 has other patches.* set grid = 'native'"):
        Distillation(eve_config(), loss, {"sam2": Column(spec)})


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_operations_are_those_that_torch_counts(rng, backward):
    """But for what its kernel computes beside the mask, and, backward, without the upsampler (test_flops.py)."""
    config, batch = eve_config(mask_stride=8 if backward else 2), collate(eve_mixed(rng))
    student = eve_student(mask_stride=config.mask_stride)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = student(batch, every_picture=False)
        if backward:
            loss = LossConfig(points=8)
            losses(output, batch, Distillation(config, loss, {}), loss, torch.Generator().manual_seed(0))["total"].backward()
    rows, times = len(micro_vocabulary()), 3 if backward else 1
    pairs = sum(span.length * (span.length - 1) // 2 for span in batch.spans)
    beside = 4 * config.layers * config.heads * config.head_dim * pairs
    ours = training_flops(config, batch, rows, False) if backward else sum(forward_flops(config, batch, rows, False).values())
    assert ours + times * beside == counter.get_total_flops()
