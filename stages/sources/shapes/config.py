"""What decides a set of synthetic scenes; every byte written follows from these fields."""

from typing import Literal

from pydantic import Field, field_validator

from schemas.config import Config


class ShapesConfig(Config):
    """Scenes of coloured shapes: how many, how large, how crowded; `objects` is the fewest and the most in a scene."""

    kind: Literal["shapes"] = "shapes"
    train: int = Field(2000, ge=0)
    evaluation: int = Field(200, ge=0)
    size: int = Field(128, ge=64)
    seed: int = Field(0, ge=0)
    objects: tuple[int, int] = (3, 5)

    @field_validator("objects")
    @classmethod
    def _a_range_that_fits(cls, value: tuple[int, int]) -> tuple[int, int]:
        fewest, most = value
        if not 1 <= fewest <= most <= 6:
            raise ValueError("needs 1 <= fewest <= most <= 6: more shapes hide each other")
        return value
