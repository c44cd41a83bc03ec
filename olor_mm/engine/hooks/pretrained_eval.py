"""What the pre-trained model still does with the run's weights, measured at every validation."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor, nn

from ...layers import backbones, main_stages, unwrapped
from ...measure import linear_cka, match_and_ties, prediction_agreement, prediction_divergence
from ...pretrained import LoadRecord
from .randomness import same_randomness
from .training import TrainedParameters

KEY, KEY_OF_0_1 = 'olor_pretrained', 'olor_upstream'  # in checkpoints
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
HEADS = ('head', 'decode_head', 'auxiliary_head')
PIPELINE = (
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
)


class PretrainedEvalHook(Hook):
    """Puts the current weights into the pre-trained model at every validation and measures what that still does.

    The hook builds the pre-trained model once and keeps it in memory. When training starts, it finds by value which of
    its tensors is which in the training model, whatever their names. The rest, such as its head, keeps its values. If
    several networks have the same weights, the one that is trained is measured, and no frozen or averaged copy of it;
    the log says which.

    With ``images``, for a classifier: ``pretrained/agreement``, % of the images with the same top-1 class as from the
    untouched model; ``pretrained/kl``, mean KL(original || current) in nats; ``pretrained/cka_stage0``, ..., linear CKA
    of the features after each stage, averaged over positions, and ``pretrained/cka``, their mean. With ``dataloader``
    and ``evaluator``, for any task: ``pretrained/METRIC`` of the evaluator. ``pretrained_restored/...`` are the same
    with the running statistics of norm layers put back, if they have changed. All are metrics of the validation, also
    for ``save_best``. The weights are those that are validated; the result of the run stays the same, bit for bit.

    Args:
        model (str or dict): The pre-trained model: path of a config, its name in a library, or a model's config alone.
        checkpoint (str): Its weights, all of them.
        images (str, optional): Folder of images, searched with its sub-folders. They stay in memory after the pipeline.
        pipeline (list[dict], optional): For ``images``. Defaults to the config's for testing, or ImageNet's usual one.
        batch_size (int): Of ``images``. Defaults to 32.
        dataloader (dict or str, optional): Labelled data of the old task; 'val' or 'test': its config's, evaluator too.
        evaluator (dict or list[dict], optional): As ``test_evaluator``.
        prefix (str): Where the training model has the pre-trained one, e.g. 'student.'. Defaults to anywhere.
        keep (list[str]): Parts of the pre-trained model that keep their values even if the training model has them,
            such as a head of as many classes. Defaults to ``['head', 'decode_head', 'auxiliary_head']``.

    Raises:
        ValueError: If an option does not fit; before training, if the checkpoint does not fill the model, the training
            model has less than half of it, a resumed checkpoint was saved without the hook, or a hook monitors
            ``upstream/...``, a name of version 0.1.

    Example:
        >>> custom_hooks = [dict(
        ...     type='PretrainedEvalHook',
        ...     model='mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        ...     checkpoint='data/weights/mobilenet_v2_mmpretrain.pth',
        ...     images='data/photos')]
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook puts the trained weights back, and before metrics are logged

    def __init__(
        self,
        model: str | dict,
        checkpoint: str,
        images: str | None = None,
        pipeline: list[dict] | None = None,
        batch_size: int = 32,
        dataloader: dict | str | None = None,
        evaluator: dict | list[dict] | None = None,
        prefix: str = '',
        keep: Sequence[str] = HEADS,
    ):
        by_name = isinstance(dataloader, str)
        if images is None and dataloader is None:
            raise ValueError("PretrainedEvalHook: give images='FOLDER', or dataloader and evaluator, or both")
        if by_name and dataloader not in ('val', 'test'):
            raise ValueError(f"PretrainedEvalHook.dataloader={dataloader!r} is unknown; give 'val', 'test' or a dict")
        if not by_name and (dataloader is None) != (evaluator is None):
            raise ValueError(f'PretrainedEvalHook: {dataloader=!r} and {evaluator=!r} go together; give both')
        if isinstance(keep, str):
            raise ValueError(f'PretrainedEvalHook.keep={keep!r} is not a list; give [{keep!r}]')
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f'PretrainedEvalHook.batch_size={batch_size!r} is not a number of images of 1 or more')
        self.cfg, self.checkpoint, self.prefix, self.keep = model, checkpoint, prefix, keep
        self.images, self.pipeline, self.batch_size = images, pipeline, batch_size
        self.dataloader, self.evaluator = dataloader, evaluator
        self._names: dict[str, str] | None = None  # in the pre-trained model to in the training model
        self._is_settled = False

    def before_run(self, runner) -> None:
        for hook in runner.hooks:
            for name in getattr(hook, 'save_best', None) or [getattr(hook, 'monitor', None)]:
                if str(name).startswith(('upstream/', 'upstream_restored/')):  # as in version 0.1
                    now = name.replace('upstream', 'pretrained', 1)
                    raise ValueError(f'{type(hook).__name__}: the metric {name!r} is called {now!r} now; write that')
        params = list(unwrapped(runner.model).parameters())
        if any(hasattr(p, 'to_local') or getattr(p, '_fsdp_flattened', False) for p in params):
            raise ValueError('PretrainedEvalHook needs whole weights, and FSDP shards them; use DDP')
        cfg, scope = _config_of(self.cfg)
        with same_randomness(params[0].device), DefaultScope.overwrite_default_scope(scope):
            self._build(cfg, params[0].device)

    def _build(self, cfg: Config, device: torch.device) -> None:
        self._model = revert_sync_batchnorm(MODELS.build(cfg.model))
        record = LoadRecord(self._model)
        load_checkpoint(self._model, self.checkpoint, map_location='cpu', logger='silent')
        record.close()
        lacking = [name for name, p in self._model.named_parameters() if not record.loaded([p])]
        if lacking:
            fault = f'{len(lacking)} parameters, e.g. {lacking[0]}, do not fit; give the whole model, with its head'
            raise ValueError(f'PretrainedEvalHook.checkpoint={self.checkpoint!r}: {fault}')
        self._model.eval().to(device)
        self._statistics = {name: value.clone() for name, value in self._model.named_buffers()}
        if self.images is not None and get_rank() == 0:
            self._batches = self._load_images(cfg)
            self._stages = [stage for _, part in backbones(self._model) for stage in main_stages(part)]
            self._original = self._predict()
        if self.dataloader is not None:
            loader, evaluator = self.dataloader, self.evaluator
            if isinstance(loader, str):
                loader, evaluator = cfg.get(f'{loader}_dataloader'), evaluator or cfg.get(f'{loader}_evaluator')
                if not loader or not evaluator:
                    fault = f'the config {self.cfg!r} lacks it or its evaluator; give both as dicts'
                    raise ValueError(f'PretrainedEvalHook.dataloader={self.dataloader!r}: {fault}')
            self._loader, self._evaluator = Runner.build_dataloader(loader, seed=0), Evaluator(evaluator)
            self._evaluator.dataset_meta = getattr(self._loader.dataset, 'metainfo', None)

    def _load_images(self, cfg: Config) -> list[dict]:
        files = sorted(str(file) for file in Path(self.images or '').rglob('*') if file.suffix.lower() in SUFFIXES)
        if len(files) < 2:
            raise ValueError(f'PretrainedEvalHook.images={self.images!r} is not a folder of two or more images')
        dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
        pipeline = Compose(self.pipeline if self.pipeline is not None else dataset.get('pipeline') or list(PIPELINE))
        samples = [pipeline(dict(img_path=file)) for file in files]
        return [pseudo_collate(samples[i : i + self.batch_size]) for i in range(0, len(files), self.batch_size)]

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._names = checkpoint.get(KEY, checkpoint.get(KEY_OF_0_1))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._names is not None:
            checkpoint[KEY] = self._names

    def before_train(self, runner) -> None:  # weights are loaded by now
        if runner.iter == 0:
            model = unwrapped(runner.model)
            self._match(model, {p for p in model.parameters() if p.requires_grad})
            if self._ties and not isinstance(runner.optim_wrapper, OptimWrapperDict):  # its first step tells all
                TrainedParameters(runner.optim_wrapper, lambda new: self._settle_ties(model, new))
        if self._names is None:
            raise ValueError('PretrainedEvalHook: the resumed checkpoint was saved without it; drop it or start anew')

    def _match(self, model: nn.Module, trained: set[nn.Parameter]) -> None:
        self._names, self._ties = match_and_ties(self._model, model, self.prefix, self.keep, trained)
        total = [name for name, _ in self._model.named_parameters()]
        missing = [name for name in total if name not in self._names]
        share = f'{len(total) - len(missing)} of the {len(total)} pre-trained parameter tensors'
        found = f'PretrainedEvalHook: the training model starts with {share}'
        if 2 * len(missing) > len(total):
            raise ValueError(f'{found} (prefix={self.prefix!r}); does it load checkpoint={self.checkpoint!r}?')
        print_log(f'{found}; the others keep their values: {", ".join(missing) or "none"}', logger='current')
        for taken, others in self._ties.items():
            same = f'{taken} is measured; {", ".join(others)} has the same weights'
            print_log(f'PretrainedEvalHook: {same}. Set prefix={others[0]!r} to measure that one', logger='current')

    def _settle_ties(self, model: nn.Module, trained: set[nn.Parameter]) -> None:
        """Match again before the first step, when gradients show what is trained, and weights are what they were."""
        if not self._is_settled:
            self._is_settled = True
            self._match(model, trained)

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        if self._names is None:
            print_log('PretrainedEvalHook: not trained with this hook, so nothing is measured', logger='current')
            return
        with same_randomness(next(self._model.parameters()).device), torch.no_grad():
            models = self._model, unwrapped(runner.model)
            target, source = (dict([*model.named_parameters(), *model.named_buffers()]) for model in models)
            for theirs, ours in self._names.items():
                target[theirs].copy_(source[ours])
            found = self._measure('pretrained')
            changed = [name for name, value in self._statistics.items() if not torch.equal(target[name], value)]
            if any(target[name].is_floating_point() for name in changed):
                for name in changed:
                    target[name].copy_(self._statistics[name])
                found.update(self._measure('pretrained_restored'))
        for name, value in found.items():
            runner.message_hub.update_scalar(f'val/{name}', value)
        if metrics is not None:
            metrics.update(found)

    def _measure(self, name: str) -> dict[str, float]:
        found: list[dict] = [{}]
        if self.images is not None:
            if get_rank() == 0:
                (logits, *features), (original, *before) = self._predict(), self._original
                alike = list(map(linear_cka, features, before))
                found[0] = dict(
                    agreement=100 * prediction_agreement(logits, original),
                    kl=prediction_divergence(logits, original),
                    cka=sum(alike) / len(alike),
                    **{f'cka_stage{i}': value for i, value in enumerate(alike)},
                )
            broadcast_object_list(found)
        if self.dataloader is not None:
            for batch in self._loader:
                self._evaluator.process(data_samples=self._model.test_step(batch), data_batch=batch)
            found[0].update(self._evaluator.evaluate(len(self._loader.dataset)))
        return {f'{name}/{key}': value for key, value in found[0].items()}

    @torch.no_grad()
    def _predict(self) -> list[Tensor]:
        """Logits of the images, shape (images, classes), and the features of each stage, shape (images, channels)."""
        rows: list[list[Tensor | None]] = []
        seen: dict[int, Any] = dict.fromkeys(range(len(self._stages)))
        with ExitStack() as hooks:
            for i, stage in enumerate(self._stages):
                hooks.enter_context(stage.register_forward_hook(lambda _, __, output, i=i: seen.update({i: output})))
            for batch in self._batches:
                scores = self._model(self._model.data_preprocessor(batch, False)['inputs'], mode='tensor')
                if not torch.is_tensor(scores) or scores.ndim != 2:
                    fault = f'{type(self._model).__name__} is not a classifier; give dataloader and evaluator instead'
                    raise ValueError(f'PretrainedEvalHook.images={self.images!r}: this {fault}')
                rows.append([scores, *(_pooled(output, len(scores)) for output in seen.values())])
        return [torch.cat(column) for column in zip(*rows) if all(map(torch.is_tensor, column))]


def _pooled(output, images: int) -> Tensor | None:
    """Maps (N, C, H, W) or tokens (N, L, C) averaged over positions, the first of several; None for anything else."""
    if isinstance(output, (list, tuple)) and output:
        output = output[0]
    if not torch.is_tensor(output) or len(output) != images or not 2 <= output.ndim <= 4:
        return None
    return output.mean((2, 3)) if output.ndim == 4 else output.mean(1) if output.ndim == 3 else output


def _config_of(model: str | Mapping) -> tuple[Config, str]:
    """The config that holds a model, and the scope of its types."""
    if isinstance(model, str):
        cfg = get_config(model) if '::' in model else Config.fromfile(model)
    else:
        cfg = Config(dict(model) if 'model' in model else dict(model=model))
    if not isinstance(cfg.get('model'), Mapping) or 'type' not in cfg.model:
        raise ValueError(f'PretrainedEvalHook.model={model!r} is not a config with a model, nor one of a model')
    if cfg.get('data_preprocessor'):  # as Runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    named = cfg.model.type.rpartition('.')[0] if isinstance(cfg.model.type, str) else ''
    current = DefaultScope.get_current_instance()
    return cfg, cfg.get('default_scope') or named or getattr(current, 'scope_name', 'mmengine')
