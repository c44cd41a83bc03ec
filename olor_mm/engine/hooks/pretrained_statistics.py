"""Statistics of norm layers from before fine-tuning, put back for a test of the old task."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop

from ...optim.state import statistics_in


class PretrainedStatisticsHook(Hook):
    """Tests a checkpoint with the running statistics of norm layers that the pre-trained model had.

    A checkpoint of a run with ``OLOROptimWrapperConstructor`` has two sets: those of the new images with the weights,
    and those of before beside the anchors. The first suit the new task, the second the old one. A checkpoint without
    the state of the optimizer may have the second set as ``pretrained_statistics``, beside ``state_dict``. Nothing is
    done in training. ``tools/test.py --pretrained-statistics`` adds this hook.

    Raises:
        ValueError: When the checkpoint is loaded, if it has no such statistics, or its model has not the norm layers.

    Example:
        >>> custom_hooks = [dict(type='PretrainedStatisticsHook')]
    """

    priority = 'VERY_HIGH'  # before EMAHook loads the same values into its copy

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            return
        file = runner._load_from
        statistics = statistics_in(checkpoint.get('optimizer') or {}) or statistics_in(checkpoint)
        if not statistics:
            raise ValueError(
                f'PretrainedStatisticsHook: {file!r} has no pretrained_statistics; give a checkpoint of a run with '
                'OLOROptimWrapperConstructor, saved with its optimizer (CheckpointHook save_optimizer=True)'
            )
        weights = checkpoint.get('state_dict', checkpoint)
        missing = [name for name in statistics if name not in weights]
        if missing:
            fault = f'has pretrained_statistics of {missing[0]!r} and no such layer; give it as it was saved'
            raise ValueError(f'PretrainedStatisticsHook: {file!r} {fault}')
        weights.update(statistics)
        print_log(f'PretrainedStatisticsHook: put back {len(statistics)} statistics of norm layers', logger='current')
