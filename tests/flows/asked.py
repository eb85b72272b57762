"""A project whose student has learned one answer by heart, made without any step being run."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from flows.config import Project
from flows.graph import artifacts, steps_of
from schemas.config import parse, read_toml
from schemas.storage import Folder
from stages.vocabulary import FILE
from student.model import PixelSail
from student.sequence import collate, encode
from student.training.checkpoint import write
from tests.student.micro import HEAD, SIZES, micro_vocabulary, picture, square

QUESTION, SAYS = "Please segment <Prompt0>.", "It is [SEG]."
HEIGHT, WIDTH = 48, 64
POINT, SQUARE = (16, 20), square(HEIGHT, WIDTH, 8, 4, 24)
STEPS = 40


def write_project(folder: Path, more: str = "") -> Path:
    """The TOML, with `more` at its top level; beside it lie the picture `scene.png`, and the workspace `runs` with a vocabulary
    and two checkpoints."""
    config = folder / "asked.toml"
    sizes = "\n".join(f"{name} = {value}" for name, value in (SIZES | HEAD | {"layers": 1}).items())
    source = f'source.kind = "shapes"\npool.shards = 1\nsamples.prompts = 3\nresources.threads = 1\n{more}'
    config.write_text(f'name = "asked"\nworkspace = "{folder / "runs"}"\n{source}\n[student]\n{sizes}\n')
    pixels = picture(np.random.default_rng(0), HEIGHT, WIDTH)
    Image.fromarray(pixels).save(folder / "scene.png")
    _write_run(parse(Project, read_toml(config), str(config)), pixels)
    return config


def _write_run(project: Project, pixels: np.ndarray) -> None:
    made = artifacts(steps_of(project), Folder(project.workspace))
    made["vocabulary"].folder.write(FILE, micro_vocabulary().to_json().encode())
    made["vocabulary"].seal("2020", "2020", {}, code="", packages={})
    model = PixelSail(project.student, micro_vocabulary(), torch.Generator().manual_seed(0))
    for step in (0, STEPS):
        if step:
            _learn(model, pixels)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        write(made["train"].folder, made["train"].identity, step=step, samples=step, history=[], model=state, training={})


def _learn(model: PixelSail, pixels: np.ndarray) -> None:
    """One dialogue over and over."""
    mark = square(HEIGHT, WIDTH, *POINT[::-1], 1)
    turns = [(QUESTION, SAYS)]
    batch = collate([encode(micro_vocabulary(), model.config, turns=turns, image=pixels, prompts=[(0, mark)], masks=[SQUARE])])
    target_nhw = F.interpolate(batch.masks[0][None].float(), scale_factor=0.25, mode="area")[0]
    labels_R = batch.next_labels_R
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(STEPS):
        output = model(batch)
        words = F.cross_entropy(output.logits_SV, labels_R[labels_R >= 0])
        masks = F.binary_cross_entropy_with_logits(output.mask_logits[0], target_nhw)
        optimizer.zero_grad()
        (words + masks).backward()
        optimizer.step()
