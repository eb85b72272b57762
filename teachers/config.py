"""The configs of all teachers, a union on `kind`. Each lies beside the network that it describes.

`weights` names the network and picks the defaults of the other fields (the `PRESETS` beside each config): "random" is a micro
network with seeded weights for trials and tests, the other names are those of the published checkpoints. The name is
identity, where the files lie (`folder`) is not; a digest of the files themselves is part of the identity of all that they make.
"""

from typing import Annotated

from pydantic import Field

from teachers.mask2former.config import Mask2FormerConfig
from teachers.radio.config import RadioConfig
from teachers.sam2.config import Sam2Config

TeacherConfig = Annotated[Sam2Config | Mask2FormerConfig | RadioConfig, Field(discriminator="kind")]
