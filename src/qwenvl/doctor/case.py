"""The model under examination: what can be read and loaded of it, made once, its failures kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from qwenvl.config import Qwen2_5_VLConfig, Qwen2VLConfig, load_config
from qwenvl.config_base import read_config
from qwenvl.doctor.finding import Unavailable, one_line
from qwenvl.gguf_folder import pair_of, unfold

if TYPE_CHECKING:
    from PIL.Image import Image

    from qwenvl.gguf_folder import Gguf
    from qwenvl.model.qwen_vl import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
    from qwenvl.processing import Qwen2_5_VLProcessor, Qwen2VLProcessor

    Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration
    Processor = Qwen2_5_VLProcessor | Qwen2VLProcessor

QUESTION = "Describe this image."
Made = TypeVar("Made")


class Once(Generic[Made]):
    """A call that is made once: its result, or its error again."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: list[Made] = []
        self._error: Exception | None = None

    def __call__(self) -> Made:
        if self._error is not None:
            raise self._error
        if not self._made:
            try:
                self._made.append(self._make())
            except Exception as error:
                self._error = error
                raise
        return self._made[0]


def or_skip(make: Callable[[], Made], what: str) -> Made:
    """make(); Unavailable with the reason where it fails."""
    try:
        return make()
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"{what}: {one_line(error)}") from error


@dataclass
class Case:
    """path: the folder of a checkpoint; a GGUF file becomes the folder that stands for it. dtype, device, quantize: how
    it is loaded. golden: a file with logits to compare with, None = those known. quick: long checks are left out.

    The properties raise Unavailable where they cannot be had, which skips a check; the `load_*` raise what went wrong,
    for the check that is about it.
    """

    path: Path
    dtype: str = "auto"
    device: str = "cpu"
    quantize: str | None = None
    quick: bool = False
    golden: Path | None = None
    load_config: Once[Qwen2_5_VLConfig | Qwen2VLConfig] = field(init=False, repr=False)
    load_processor: Once[Processor] = field(init=False, repr=False)
    load_model: Once[Model] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.path = unfold(self.path) if self.path.is_file() else self.path
        self.load_config = Once(lambda: load_config(self.path))
        self.load_processor = Once(self._processor)
        self.load_model = Once(self._model)

    @property
    def gguf(self) -> tuple[Gguf, Gguf] | None:
        """The GGUF files (text model, tower) that the folder stands for; None for any other folder. ValueError when
        they are damaged."""
        return pair_of(self.path)

    @property
    def raw_config(self) -> dict[str, Any]:
        """config.json as it stands."""
        return or_skip(lambda: read_config(self.path), "config.json cannot be read")

    @property
    def config(self) -> Qwen2_5_VLConfig | Qwen2VLConfig:
        """The configuration as it is understood."""
        return or_skip(self.load_config, "config.json is not understood")

    @property
    def processor(self) -> Processor:
        return or_skip(self.load_processor, "there is no processor")

    @property
    def model(self) -> Model:
        return or_skip(self.load_model, "the model could not be loaded")

    def prompt(self, text: str = QUESTION, size: tuple[int, int] | None = (252, 196)) -> dict[str, Any]:
        """What forward() takes for a question about the picture of that (width, height), on the model's device.
        size None: without a picture."""
        picture = [] if size is None else [{"type": "image", "image": drawn_picture(*size)}]
        talk = [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]
        processor = self.processor

        def make() -> dict[str, Any]:
            inputs = processor.apply_chat_template(
                talk, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            return {name: value.to(self.model.device) for name, value in inputs.items()}

        return or_skip(make, "no prompt can be made")

    def _processor(self) -> Processor:
        from qwenvl.processing import AutoProcessor

        return AutoProcessor.from_pretrained(self.path)

    def _model(self) -> Model:
        from qwenvl.checkpoint import load_model

        return load_model(self.path, self.dtype, device=self.device, quantize=self.quantize)


def drawn_picture(width: int, height: int) -> Image:
    """A picture that is the same everywhere, by whole numbers: slopes, stripes and a chequered ground, no two patches
    alike."""
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 5 + y) % 256, (y * 3 + x // 4) % 256, (x // 7) * (y // 7) * 5 % 256
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))
