"""Reads images and annotations with the steps that training loads them with."""

from collections.abc import Callable
from pathlib import Path

from mmengine.registry import TRANSFORMS, DefaultScope

from ...inspect.libraries import quiet


class Reader:
    """The loading steps of a config's training pipeline.

    Args:
        scope (str): Default scope of the config.
        image (dict): Config of the step that loads images.
        annotations (dict, optional): Config of the step that loads annotations.
    """

    def __init__(self, scope: str, image: dict, annotations: dict | None = None):
        self.scope, self._annotations = scope, annotations or {}
        self._load_image = self._build(image)

    def _build(self, step: dict) -> Callable:
        with quiet(), DefaultScope.overwrite_default_scope(self.scope):
            return TRANSFORMS.build(step)

    def annotations(self, **options) -> Callable[[dict], dict]:
        """The step that loads annotations, with some options changed."""
        return self._build({**self._annotations, **options})

    def size(self, file: Path) -> tuple[int, int]:
        """Width and height of an image as training sees it: most readers turn it as its EXIF orientation says."""
        height, width = self._load_image(dict(img_path=str(file)))['img_shape']
        return width, height
