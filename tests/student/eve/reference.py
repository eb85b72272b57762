"""A student in the layout of EVEv2 written out, where it differs from the one in `tests/student/reference.py`."""

import math

import numpy as np

from tests.student.reference import IGNORED, Raw, Reference, Tokens, Vector, cut, marks, resampled

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NO_PATCH, CLASS, SPLIT = -1, -2, -3
TOWER = "single_transformer.model.vision_tower"


def picture_size(width: int, height: int, patch: int, side: int) -> tuple[int, int]:
    """(width, height) of the picture that the student sees."""
    scale = math.sqrt(width * height) / side
    return tuple(max(math.ceil(length / scale / patch) * patch, patch) for length in (width, height))


def cubic(x: float) -> float:
    """What Pillow's bicubic filter is made of; its constant is -1/2."""
    x = abs(x)
    if x < 1:
        return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


class EveReference(Reference):
    """The student with these `tensors`, by the names of the checkpoint."""

    def patches(self, image_HWC: np.ndarray) -> tuple[list[Vector], tuple[int, int]]:
        width, height = picture_size(image_HWC.shape[1], image_HWC.shape[0], self.config.patch, self.config.eve.side)
        wide_WHC = resampled(image_HWC.transpose(1, 0, 2), width, cubic, 2)
        return cut(resampled(wide_WHC.transpose(1, 0, 2), height, cubic, 2), self.config.patch, MEAN, DEVIATION)

    def tokens(self, raw: Raw, grid: tuple[int, int] | None) -> Tokens:
        """The ids of visual tokens are those of the end of the text: nobody reads them."""
        ids, labels, patch, prompt = [], [], [], []

        def add(words: str, supervised: bool = False) -> None:
            piece = self.vocabulary.encode(words)
            ids.extend(piece)
            labels.extend(piece if supervised else [IGNORED] * len(piece))
            patch.extend([NO_PATCH] * len(piece))
            prompt.extend([-1] * len(piece))

        def see(kind: int, number: int = -1) -> None:
            ids.extend(self.vocabulary.encode("<|endoftext|>"))
            labels.append(IGNORED)
            patch.append(kind)
            prompt.append(number)

        def picture(h: int, w: int) -> None:
            numbers = marks(raw.prompts, (h, w))
            see(CLASS)
            for row in range(h):
                for place in range(row * w, (row + 1) * w):
                    see(place, numbers[place])
                see(SPLIT)

        for turn, (question, answer) in enumerate(raw.turns):
            begin = "<|im_start|>user\n" if turn == 0 else "\n<|im_start|>user\n"
            if turn == 0 and grid is not None:
                add(begin)
                picture(*grid)
                begin = "\n"
            add(f"{begin}{question.strip()}<|im_end|>\n<|im_start|>assistant\n")
            add(answer.strip(), supervised=True)
            add("<|im_end|>", supervised=True)
        return Tokens(ids, labels, patch, prompt, [(i, i, i) for i in range(len(ids))], block=0)

    def of(self, name: str, tokens: Tokens, i: int) -> str:
        """What is seen goes through weights of its own."""
        before, _, last = name.rpartition(".")
        return name if tokens.patch[i] == NO_PATCH else f"{before}.moe_{last}"

    def embedded(self, tokens: Tokens, patches: list[Vector], i: int) -> Vector:
        table_VH = self.tensors["single_transformer.model.embed_tokens.weight"]
        match tokens.patch[i]:
            case -1:
                return table_VH[tokens.ids[i]]
            case -2:
                return self.tensors[f"{TOWER}.class_embedding"]
            case -3:
                return self.tensors[f"{TOWER}.split_embedding"]
            case place:
                x = self.seen(patches[place])
        if tokens.prompt[i] >= 0:
            x = x + table_VH[self.vocabulary.encode(f"<Prompt{tokens.prompt[i]}>")[0]]
        return x

    def seen(self, patch_P: Vector) -> Vector:
        """A convolution of half a patch, GELU, and one of two by two."""
        p = self.config.patch
        pixels_3pp, half = patch_P.reshape(3, p, p), p // 2
        first, second = (self.tensors[f"{TOWER}.patch_embedding.{layer}.weight"] for layer in (0, 2))
        total_H = self.tensors[f"{TOWER}.patch_embedding.2.bias"]
        for y, x in np.ndindex(2, 2):
            quarter = pixels_3pp[:, y * half : (y + 1) * half, x * half : (x + 1) * half].ravel()
            inner = [u @ quarter for u in first.reshape(len(first), -1)] + self.tensors[f"{TOWER}.patch_embedding.0.bias"]
            bent = np.array([u * 0.5 * (1 + math.erf(u / math.sqrt(2))) for u in inner])
            total_H = total_H + second[:, :, y, x] @ bent
        return total_H
