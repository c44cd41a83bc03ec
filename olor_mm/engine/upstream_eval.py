"""What the model that a run started from still does with the run's weights, at every validation."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor, nn

from ..analysis import linear_cka, match_by_value, prediction_agreement, prediction_divergence
from ..compat import unwrapped, whole_parameters
from ..layers import backbones, main_stages
from ..pretrained import LoadRecord

KEY = 'olor_upstream'  # in checkpoints
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
HEADS = ('head', 'decode_head', 'auxiliary_head')
PIPELINE = (
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
)


class UpstreamEvalHook(Hook):
    """At every validation, puts the weights as they are into the pre-trained model and looks what that still does.

    The pre-trained model is built once, from its own config and checkpoint, and stays in memory. Which of its tensors
    is which in the training model is found by value when training starts, whatever they are called there; its head, and
    all that the training model did not start from, stays as it was.

    With ``images``, for a classifier, without labels: ``upstream/agreement``, in % of the images, top-1 with the
    untouched model; ``upstream/kl``, KL(original || current) in nats, mean over the images; and ``upstream/cka_stage0``
    ..., linear CKA of the features at the end of each stage, averaged over positions, with their mean ``upstream/cka``.
    With ``dataloader`` and ``evaluator``, for a model of any task: ``upstream/METRIC`` of the evaluator. The same as
    ``upstream_restored/...`` with the running statistics of norm layers put back, if they have changed.

    They are metrics of the validation: in its log line and visualizer, and for ``save_best``. Measured is what is
    validated, with ``EMAHook`` the average. The run itself ends as without the hook, to the bit.

    Args:
        model (str or dict): The pre-trained model: path of a config, its name in a library, e.g.
            ``'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'``, or the config of a model alone.
        checkpoint (str): Its weights, all of them.
        images (str, optional): Folder of images, searched with its sub-folders. They are kept in memory as the pipeline
            leaves them.
        pipeline (list[dict], optional): For ``images``. Defaults to the test pipeline of the config, or, with the
            config of a model alone, to the usual one of ImageNet, 224 pixels.
        batch_size (int): Of ``images``. Defaults to 32.
        dataloader (dict or str, optional): Of labelled data of the pre-trained model's task, as ``test_dataloader``;
            'val' or 'test' for that of its config, with its evaluator.
        evaluator (dict or list[dict], optional): As ``test_evaluator``.
        prefix (str): Where in the training model to look for the pre-trained one, e.g. 'backbone.', if it is there more
            than once. Defaults to everywhere.
        keep (list[str]): Parts of the pre-trained model that stay as they were even where the training model has them
            in the same shape, as a head of as many classes. Defaults to ``['head', 'decode_head', 'auxiliary_head']``.

    Raises:
        ValueError: If an option does not fit; before the first iteration if the checkpoint does not fill the model, if
            less than half of the model is in the training model, or a resumed checkpoint was saved without the hook.

    Example:
        >>> custom_hooks = [dict(
        ...     type='UpstreamEvalHook',
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
        if images is None and dataloader is None:
            raise ValueError(
                "UpstreamEvalHook: give images='FOLDER' for agreement, KL and CKA, or dataloader=dict(...) and "
                'evaluator=dict(...) for a metric on labelled data, or both'
            )
        by_name = isinstance(dataloader, str)
        if by_name and dataloader not in ('val', 'test'):
            raise ValueError(f"UpstreamEvalHook.dataloader={dataloader!r} is unknown; take 'val', 'test' or a dict")
        if not by_name and (dataloader is None) != (evaluator is None):
            raise ValueError(
                f'UpstreamEvalHook: dataloader={dataloader!r} and evaluator={evaluator!r} go together; give both'
            )
        if isinstance(keep, str):
            raise ValueError(f'UpstreamEvalHook.keep={keep!r} is no list; take [{keep!r}]')
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f'UpstreamEvalHook.batch_size={batch_size!r} is not a number of images of 1 or more')
        self.cfg, self.checkpoint, self.prefix, self.keep = model, checkpoint, prefix, keep
        self.images, self.pipeline, self.batch_size = images, pipeline, batch_size
        self.dataloader, self.evaluator = dataloader, evaluator
        self._resumed: dict[str, str] | None = None
        self._names: dict[str, str] | None = None

    def before_run(self, runner) -> None:
        with whole_parameters(runner.model) as is_sharded:
            model = unwrapped(runner.model)
        if is_sharded or any(hasattr(p, 'to_local') for p in model.parameters()):
            raise ValueError(
                'UpstreamEvalHook: the model is sharded by FSDP, and it needs whole weights; take '
                'DistributedDataParallel, or leave the hook out and evaluate checkpoints'
            )
        device = next(model.parameters()).device
        with same_randomness(device):
            cfg, scope = _config_of(self.cfg)
            with DefaultScope.overwrite_default_scope(scope):
                self._build(cfg, device)
            self._statistics = {name: value.clone() for name, value in self._model.named_buffers()}
            if self.images is not None and get_rank() == 0:
                self._original = self._predict()

    def _build(self, cfg: Config, device: torch.device) -> None:
        self._model = revert_sync_batchnorm(MODELS.build(cfg.model))
        record = LoadRecord(self._model)
        load_checkpoint(self._model, self.checkpoint, map_location='cpu', logger='silent')
        record.close()
        lacking = [name for name, p in self._model.named_parameters() if not record.loaded([p])]
        if lacking:
            raise ValueError(
                f'UpstreamEvalHook.checkpoint={self.checkpoint!r} does not have {len(lacking)} parameters of the '
                f'model, like {lacking[0]}, or has them in another shape: it has to be the whole model, head included'
            )
        self._model.eval().to(device)
        if self.images is not None and get_rank() == 0:
            self._batches = self._load_images(cfg)
            self._stages = main_stages(dict(backbones(self._model)).popitem()[1])
        if self.dataloader is not None:
            loader, evaluator = self.dataloader, self.evaluator
            if isinstance(loader, str):
                loader, evaluator = cfg.get(f'{loader}_dataloader'), evaluator or cfg.get(f'{loader}_evaluator')
                if not loader or not evaluator:
                    raise ValueError(
                        f'UpstreamEvalHook.dataloader={self.dataloader!r}: model={self.cfg!r} has no '
                        f'{self.dataloader}_dataloader and {self.dataloader}_evaluator; give dataloader and evaluator '
                        'as dicts'
                    )
            self._loader, self._evaluator = Runner.build_dataloader(loader, seed=0), Evaluator(evaluator)
            self._evaluator.dataset_meta = getattr(self._loader.dataset, 'metainfo', None)

    def _load_images(self, cfg: Config) -> list[dict]:
        files = sorted(str(file) for file in Path(self.images or '').rglob('*') if file.suffix.lower() in SUFFIXES)
        if len(files) < 2:
            raise ValueError(f'UpstreamEvalHook.images={self.images!r} is no folder with two images or more in it')
        steps = self.pipeline
        if steps is None:
            given = cfg.get('test_dataloader') or {}
            steps = given.get('dataset', {}).get('pipeline') or list(PIPELINE)
        pipeline = Compose(steps)
        samples = [pipeline(dict(img_path=file)) for file in files]
        return [pseudo_collate(samples[i : i + self.batch_size]) for i in range(0, len(files), self.batch_size)]

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._resumed = checkpoint.get(KEY)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._names is not None:
            checkpoint[KEY] = self._names

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._names is not None:
            return
        if runner.iter:
            if self._resumed is None:
                raise ValueError(
                    f'UpstreamEvalHook: training was resumed at iteration {runner.iter} from a checkpoint that was '
                    'saved without this hook, so it is not known any more which weights are whose. Leave the hook out, '
                    'or start anew'
                )
            self._names = self._resumed
            return
        self._names = match_by_value(self._model, unwrapped(runner.model), self.prefix, self.keep)
        total = [name for name, _ in self._model.named_parameters()]
        found = [name for name in total if name in self._names]
        missing = ', '.join(name for name in total if name not in self._names)
        if 2 * len(found) < len(total):
            raise ValueError(
                f'UpstreamEvalHook: only {len(found)} of the {len(total)} parameter tensors of the pre-trained model '
                f'are in the training model (prefix={self.prefix!r}), with the values that training starts from: does '
                f'this run load the weights of checkpoint={self.checkpoint!r}?'
            )
        print_log(
            f'UpstreamEvalHook: {len(found)} of {len(total)} parameter tensors of the pre-trained model are in the '
            f'training model, the others stay as they were: {missing or "none"}',
            logger='current',
        )

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        names = self._resumed if self._names is None else self._names
        if names is None:  # of a model that was not trained here
            print_log('UpstreamEvalHook: not known which weights are whose, nothing is measured', logger='current')
            return
        with same_randomness(next(self._model.parameters()).device), torch.no_grad():
            target, source = _tensors(self._model), _tensors(unwrapped(runner.model))
            for theirs, ours in names.items():
                target[theirs].copy_(source[ours])
            found = self._measure('upstream')
            changed = [name for name, value in self._statistics.items() if not torch.equal(target[name], value)]
            if any(target[name].is_floating_point() for name in changed):
                for name in changed:
                    target[name].copy_(self._statistics[name])
                found.update(self._measure('upstream_restored'))
        for name, value in found.items():
            runner.message_hub.update_scalar(f'val/{name}', value)
        if metrics is not None:
            metrics.update(found)

    def _measure(self, name: str) -> dict[str, float]:
        found: list[dict] = [{}]
        if self.images is not None:
            if get_rank() == 0:
                logits, features = self._predict()
                original_logits, original_features = self._original
                alike = list(map(linear_cka, features, original_features))
                found[0] = dict(
                    agreement=100 * prediction_agreement(logits, original_logits),
                    kl=prediction_divergence(logits, original_logits),
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
    def _predict(self) -> tuple[Tensor, list[Tensor]]:
        """Logits of the images, shape (images, classes), and features of each stage, shape (images, channels)."""
        logits: list[Tensor] = []
        features: dict[int, list[Tensor]] = {}
        seen: dict[int, Tensor] = {}
        handles = [
            stage.register_forward_hook(lambda _, inputs, output, i=i: seen.update({i: output}))
            for i, stage in enumerate(self._stages)
        ]
        try:
            for batch in self._batches:
                scores = self._model(self._model.data_preprocessor(batch, False)['inputs'], mode='tensor')
                if not torch.is_tensor(scores) or scores.ndim != 2:
                    raise ValueError(
                        f'UpstreamEvalHook.images={self.images!r} needs a classifier, which '
                        f'{type(self._model).__name__} is not: leave images out, and give dataloader and evaluator'
                    )
                logits.append(scores)
                for i, output in seen.items():
                    if (pooled := _pooled(output, len(scores))) is not None:
                        features.setdefault(i, []).append(pooled)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat(logits), [torch.cat(features[i]) for i in sorted(features)]


def _pooled(output, images: int) -> Tensor | None:
    """Maps (N, C, H, W) or tokens (N, L, C) averaged over positions, the first of several; None for anything else."""
    if isinstance(output, (list, tuple)) and output:
        output = output[0]
    if not torch.is_tensor(output) or len(output) != images or not 2 <= output.ndim <= 4:
        return None
    return output.mean((2, 3)) if output.ndim == 4 else output.mean(1) if output.ndim == 3 else output


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _config_of(model: str | Mapping) -> tuple[Config, str]:
    """The config that holds a model, and the scope that its types are of."""
    if isinstance(model, str):
        cfg = get_config(model) if '::' in model else Config.fromfile(model)
    else:
        cfg = Config(dict(model) if 'model' in model else dict(model=model))
    if not isinstance(cfg.get('model'), Mapping) or 'type' not in cfg.model:
        raise ValueError(f'UpstreamEvalHook.model={model!r} is no config with a model, and no config of a model')
    if cfg.get('data_preprocessor'):  # as Runner does
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    named, dot, _ = cfg.model.type.rpartition('.') if isinstance(cfg.model.type, str) else ('', '', '')
    current = DefaultScope.get_current_instance()
    return cfg, cfg.get('default_scope') or (named if dot else getattr(current, 'scope_name', 'mmengine'))


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Let random numbers afterwards go on as if nothing had been drawn within."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
