"""What a config needs so that a trained model stays as it is, and a branch of its own learns new classes."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from ..extend.exact import exact_settings, fitting_hook
from .config_text import Code, merged
from .data import DataError

NOTE = (
    '# The trained model is frozen: its outputs stay the same bits. A branch of its own learns the new classes (docs:\n'
    '# Exact mode). Nothing that was pre-trained is trained, so there is no rollback.\n'
)


def keep_exactly(settings: dict[str, Any], base: Config, old: Sequence[str], classes: Sequence[str]) -> str:
    """Change the settings of a config that fine-tunes; return a comment.

    Args:
        settings (dict): As :func:`~olor_mm.cli.config_text.config_text` writes them.
        base (Config): That of the trained model.
        old (Sequence[str]): Its classes.
        classes (Sequence[str]): These, and the new ones.

    Raises:
        DataError: If the model allows no branch.
    """
    try:
        settings['model'] = exact_settings(base, old, classes)['model']
    except ValueError as error:
        raise DataError(f'--keep-classes exact: {error}') from error
    stock = base.get('custom_hooks') or []
    codes = settings.get('custom_hooks') or [Code(f'_base_.custom_hooks[{i}]') for i in range(len(stock))]
    fitting = [fitting_hook(hook) for hook in stock]
    if fitting != stock:
        settings['custom_hooks'] = [
            code if hook == own else Code(merged(code, {key: hook[key] for key in hook if hook[key] != own[key]}))
            for code, hook, own in zip(codes, fitting, stock, strict=True)
            if hook is not None
        ]
    wrapper = settings['optim_wrapper']
    del wrapper['constructor'], wrapper['paramwise_cfg']['rollback']
    wrapper['optimizer']['type'] = 'AdamW'
    return NOTE
