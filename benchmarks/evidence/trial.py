"""One run of the study: trains, tests, and asks what was forgotten."""

import contextlib
import functools
import io
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import olor_mm  # noqa: E402, F401
from olor_mm.layers import layer_index  # noqa: E402
from olor_mm.measure import layer_drift, prediction_agreement  # noqa: E402
from olor_mm.measure.wise_ft import interpolate  # noqa: E402
from tools.model_converters.torchvision_mobilenet_v2 import layer_names  # noqa: E402

EVIDENCE = ROOT / 'data/evidence'
CONFIGS = {
    'classification': 'configs/classification/olor/mobilenet-v2_olor_1xb32-10e_digits-64px.py',
    'detection': 'configs/detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py',
    'instance': 'configs/instance_segmentation/olor/mask-rcnn_mobilenet-v2-fpn_olor_1xb4-6e_composite-160px.py',
    'semantic': 'configs/semantic_segmentation/olor/mobilenet-v2-d8_fcn_olor_1xb8-80iter_nuclei-128px.py',
}
LIBRARIES = dict(classification='mmpretrain', detection='mmdet', instance='mmdet', semantic='mmseg')
METRICS = dict(classification='accuracy/top1', detection='coco/bbox_mAP', instance='coco/segm_mAP', semantic='mIoU')
CLASSES = dict(nuclei=('nucleus',), trees=('tree',), composite=tuple(f'digit {digit}' for digit in range(10)))
SIDE = dict(classification=48, nuclei=128, composite=160, trees=256)
PHOTOS = dict(skimage=ROOT / 'data/photos', opencv=EVIDENCE / 'photos')
PHOTO_SIDE = 160


class ChannelsLastHook(Hook):
    """Convolutions of MobileNetV2 train twice as fast on CPU in this memory format.

    The heads get the usual one: mmcv's RoIAlign on CPU takes any memory for contiguous, and reads other values.
    """

    def before_run(self, runner) -> None:
        backbone = runner.model.backbone
        backbone.to(memory_format=torch.channels_last)
        backbone.register_forward_hook(lambda _, inputs, outputs: tuple(o.contiguous() for o in outputs))


def find(cfg, kind: str) -> dict:
    return next(step for step in cfg if step['type'] == kind)


def base_config(trial: dict) -> Config:
    """The config of a trial's task and data, but for the method."""
    cfg = Config.fromfile(ROOT / CONFIGS[trial['kind']])
    dict(classification=set_images, semantic=set_pixels).get(trial['kind'], set_boxes)(cfg, trial)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.num_workers = 0
        loader.persistent_workers = False
    cfg.train_dataloader.batch_size = trial['batch']
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    iters = trial['iters']
    cfg.train_cfg = dict(by_epoch=False, max_iters=iters, val_interval=10 * iters)
    warmup = max(iters // 10, 1)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=warmup),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=iters, T_max=iters - warmup),
    ]
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks = dict(
        logger=dict(type='LoggerHook', interval=1000), checkpoint=dict(type='CheckpointHook', interval=10 * iters)
    )
    cfg.default_hooks['checkpoint']['save_last'] = False
    cfg.randomness = dict(seed=trial['seed'])
    cfg.custom_hooks = []
    cfg.visualizer.vis_backends = []
    cfg.log_level = 'ERROR'
    if trial.get('norm_eval') is not None:
        cfg.model.backbone.norm_eval = trial['norm_eval']
    return cfg


def set_images(cfg: Config, trial: dict) -> None:
    """Classification."""
    train, test, side = cfg.train_dataloader, cfg.test_dataloader, SIDE['classification']
    for loader, part in ((train, f'train_{trial["size"]}_{trial["seed"]}'), (test, trial['split'])):
        loader.dataset.update(data_root=str(EVIDENCE / trial['data']), ann_file=f'{part}.txt', data_prefix='')
        find(loader.dataset.pipeline, 'Resize')['scale'] = side
        loader.update(collate_fn=dict(type='default_collate'))
    find(train.dataset.pipeline, 'RandomCrop').update(crop_size=side, padding=3)


def set_pixels(cfg: Config, trial: dict) -> None:
    """Semantic segmentation."""
    data, train, test = trial['data'], cfg.train_dataloader, cfg.test_dataloader
    classes = ('background', *CLASSES[data])
    palette = [[20 * i, 255 - 20 * i, 40] for i in range(len(classes))]
    for loader, part in ((train, 'train'), (test, trial['split'])):
        folder = 'test' if part == 'test' else 'train'
        loader.dataset.update(
            data_root=str(ROOT / 'data' / data),
            ann_file=str(EVIDENCE / data / f'{part}.txt'),
            metainfo=dict(classes=classes, palette=palette),
            data_prefix=dict(img_path=folder, seg_map_path=f'{folder}_semantic'),
        )
    side = (SIDE[data],) * 2
    cfg.model.data_preprocessor.size = side
    find(train.dataset.pipeline, 'RandomResize')['scale'] = side
    find(train.dataset.pipeline, 'RandomCrop')['crop_size'] = side
    # the head of the config, on the deepest features alone, learns nothing in so few iterations
    cfg.model.backbone.update(strides=(1, 2, 2, 2, 1, 2, 1), dilations=(1,) * 7)
    head = cfg.model.decode_head
    if data == 'composite':  # ten classes in 6 % of the pixels; to tell them apart takes a look around
        remove_flips(train)
        head.update(in_channels=[32, 96, 320], in_index=[1, 2, 3], input_transform='resize_concat')
        head.update(num_convs=2, channels=128, concat_input=False)
        head.loss_decode.class_weight = [0.1] + [1.0] * (len(classes) - 1)
    else:
        head.update(type='SegformerHead', in_channels=[24, 32, 96, 320], in_index=[0, 1, 2, 3])
        for key in ('num_convs', 'concat_input'):
            head.pop(key)
    head.num_classes = len(classes)
    cfg.model.auxiliary_head = None


def set_boxes(cfg: Config, trial: dict) -> None:
    """Detection and instance segmentation."""
    data, split, subset = trial['data'], trial['split'], trial.get('subset', '')
    train, test, classes = cfg.train_dataloader, cfg.test_dataloader, CLASSES[data]
    if subset:
        classes = classes[:5] if subset == '_old' else classes[5:]
    for loader, part in ((train, f'train{subset}'), (test, f'{split}{subset}')):
        loader.dataset.update(
            data_root=str(ROOT / 'data') + '/',
            ann_file=str(EVIDENCE / data / f'{part}.json'),
            metainfo=dict(classes=classes),
        )
    find(train.dataset.pipeline, 'Resize')['scale'] = (SIDE[data],) * 2
    find(test.dataset.pipeline, 'Resize').update(scale=None, scale_factor=1.0)  # objects as large as in training
    if data == 'nuclei' and not any(step['type'] == 'RandomFlip' for step in train.dataset.pipeline):
        train.dataset.pipeline.insert(-1, dict(type='RandomFlip', prob=0.5))
    elif data == 'composite':
        remove_flips(train)
    cfg.test_evaluator.ann_file = str(EVIDENCE / data / f'{split}{subset}.json')
    cfg.model.train_cfg.rcnn.sampler.num = 32
    roi = cfg.model.roi_head
    for head in ('bbox_head', 'mask_head'):
        if roi.get(head):
            roi[head].num_classes = len(classes)
    if trial['kind'] == 'instance' and data == 'composite':  # masks of ten thin classes take more iterations than these
        roi.mask_head.update(class_agnostic=True, norm_cfg=dict(type='BN'))


def remove_flips(loader) -> None:
    """A digit that is flipped is another one, or none."""
    loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step['type'] != 'RandomFlip']


def apply_method(cfg: Config, trial: dict) -> None:
    """Put the fragment of a method, with a trial's options, on a config."""
    options = dict(trial['options'])
    fragment = Config.fromfile(ROOT / f'configs/_base_/finetune/{trial["method"]}.py')
    wrapper = fragment.finetune_optim_wrapper
    wrapper.optimizer.update(lr=options.pop('lr'), **options.pop('optimizer', {}))
    if 'decay' in options:
        wrapper.paramwise_cfg.layer_decay_rate = options.pop('decay')
    rollback = (wrapper.get('paramwise_cfg') or {}).get('rollback')
    if options.pop('inverted', False):
        rollback['layer_index'] = inverted(cfg)
    if 'max_drift' in options:
        del rollback['max_level']
    elif trial['method'] == 'olor':
        rollback['min_level'] = 0.0  # the default at the time of these runs
    if rollback is not None:
        rollback.update(options)
    if trial['kind'] in ('detection', 'instance'):
        wrapper.clip_grad = dict(max_norm=10.0)
    cfg.optim_wrapper = wrapper
    cfg.custom_hooks = [*fragment.finetune_hooks, dict(type=ChannelsLastHook)]


def inverted(cfg: Config) -> dict[str, int]:
    """A ``layer_index`` with the blocks of the backbone in reverse: the deepest is pulled back most."""
    model = build(cfg.model, cfg.default_scope)
    index = {name: i for name, i in layer_index(model).items() if name.startswith('backbone.')}
    last = max(layer for layer, _ in index.values())
    return {name: last - layer for name, (layer, _) in index.items()}


def build(model_cfg, scope: str) -> nn.Module:
    from mmengine.registry import MODELS

    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model_cfg)


class Pretrained:
    """The ImageNet classifier, to be asked about the photos of a folder again with a fine-tuned backbone in it."""

    def __init__(self, folder: Path):
        config = Config.fromfile(ROOT / CONFIGS['classification'])
        cfg = config.model
        cfg.head.update(num_classes=1000, topk=(1,))
        cfg.backbone.pop('init_cfg')
        cfg.data_preprocessor = dict(type='ClsDataPreprocessor', num_classes=1000)
        self.model = build(cfg, 'mmpretrain').eval()
        file = ROOT / 'data/weights/mobilenet_v2_mmpretrain.pth'
        self.state = torch.load(file, weights_only=True)['state_dict']
        mean, std = (torch.tensor(config.data_preprocessor[key]) for key in ('mean', 'std'))
        photos = [cv2.imread(str(file)) for file in sorted(folder.glob('*.png'))]
        photos = [cv2.resize(photo, (PHOTO_SIDE,) * 2, interpolation=cv2.INTER_AREA)[..., ::-1] for photo in photos]
        images = torch.stack([(torch.from_numpy(photo.copy()) - mean) / std for photo in photos])
        self.photos = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        self.model.to(memory_format=torch.channels_last)
        self.original = self.logits(self.state)

    @torch.no_grad()
    def logits(self, state: dict[str, Tensor]) -> Tensor:
        self.model.load_state_dict(state)
        return torch.cat([self.model(batch, mode='tensor') for batch in self.photos.split(31)])

    def renamed(self, state: dict[str, Tensor], library: str) -> dict[str, Tensor]:
        """The backbone's tensors of a model of mmdet or mmseg under the names they have in mmpretrain."""
        ours, theirs = layer_names('mmpretrain'), layer_names(library)
        found = {}
        for layer in ours:
            for kind in ('weight', 'bias', 'running_mean', 'running_var'):
                value = state.get(f'backbone.{theirs[layer]}.{kind}') if layer in theirs else None
                if value is not None:
                    found[f'backbone.{ours[layer]}.{kind}'] = value
        return found

    def retention(self, state: dict[str, Tensor], library: str) -> dict[str, float]:
        """Agreement (%) and KL divergence (nats) with the statistics as they are and restored, and drift by depth."""
        moved = self.renamed(state, library)
        weights = {name: value for name, value in moved.items() if 'running' not in name}
        row = {}
        for suffix, changed in (('', moved), ('_restored', weights)):
            logits = self.logits({**self.state, **changed})
            logs, original = logits.double().log_softmax(1), self.original.double().log_softmax(1)
            row[f'agreement{suffix}'] = 100 * prediction_agreement(logits, self.original)
            row[f'kl{suffix}'] = (original.exp() * (original - logs)).sum(1).mean().item()
        index = {name: i for name, i in layer_index(self.model).items() if name in weights}
        drift = list(layer_drift(weights, self.state, index).values())
        third = len(drift) // 3
        for part, values in dict(
            shallow=drift[:third], middle=drift[third:-third], deep=drift[-third:], mean=drift
        ).items():
            row[f'drift_{part}'] = sum(values) / len(values)
        return row


def train(cfg: Config, trial: dict) -> Runner:
    DefaultScope._instance_dict.clear()
    MMLogger._instance_dict.clear()
    cfg.experiment_name = f'{trial["key"]}_{time.time_ns()}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def metric(runner: Runner, kind: str) -> float:
    return float(runner.test()[METRICS[kind]])


def run(trial: dict, pretrained: Pretrained, work_dir: Path) -> list[dict]:
    """Train, and give a row of results; one more for every interpolation of WiSE-FT that the trial asks for."""
    kind, library = trial['kind'], LIBRARIES[trial['kind']]
    if 'chain' in trial:
        return [run_chain(trial, pretrained, work_dir)]
    cfg = base_config(trial)
    apply_method(cfg, trial)
    cfg.work_dir = str(work_dir)
    start = time.monotonic()
    runner = train(cfg, trial)
    state = {name: value.clone() for name, value in runner.model.state_dict().items()}
    rows = [dict(value=metric(runner, kind), **pretrained.retention(state, library), seconds=time.monotonic() - start)]
    weights = torch.load(ROOT / f'data/weights/mobilenet_v2_{library}.pth', weights_only=True)['state_dict']
    weights = {f'backbone.{name.removeprefix("backbone.")}': value for name, value in weights.items()}
    for alpha in trial.get('wise_ft', ()):
        start = time.monotonic()
        between, _ = interpolate(weights, state, alpha)
        runner.model.load_state_dict(between)
        measured = dict(value=metric(runner, kind), **pretrained.retention(between, library))
        rows.append(dict(method='wise_ft', alpha=alpha, options={}, **measured, seconds=time.monotonic() - start))
    return rows


def run_chain(trial: dict, pretrained: Pretrained, work_dir: Path) -> dict:
    """ImageNet -> task A -> task B; then A's head on what B left of the rest, on the test set of A.

    ``forgotten`` is the metric on A after A less that after B, with B's norm statistics, ``forgotten_restored`` with
    those of A.
    """
    kind = trial['kind']
    start = time.monotonic()
    first = {**trial, **trial['chain']}
    cfg_a = base_config(first)
    apply_method(cfg_a, trial)
    cfg_a.work_dir = str(work_dir / 'a')
    runner_a = train(cfg_a, trial)
    before = metric(runner_a, kind)
    state_a = {name: value.clone() for name, value in runner_a.model.state_dict().items()}
    heads = ('head.', 'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg')
    body = {name: value for name, value in state_a.items() if not name.startswith(heads)}
    checkpoint = work_dir / 'a.pth'
    torch.save(dict(state_dict=body, meta={}), checkpoint)
    cfg_b = base_config(trial)
    apply_method(cfg_b, trial)
    cfg_b.load_from = str(checkpoint)
    cfg_b.work_dir = str(work_dir / 'b')
    runner_b = train(cfg_b, trial)
    value = metric(runner_b, kind)
    state_b = runner_b.model.state_dict()
    row = dict(value=value, before=before)
    for suffix, running in (('', True), ('_restored', False)):
        taken = {name: state_b[name].clone() for name in body if running or 'running_' not in name}
        runner_a.model.load_state_dict({**state_a, **taken})
        row[f'old{suffix}'] = metric(runner_a, kind)
    state_b = {name: v.clone() for name, v in state_b.items()}
    row.update(pretrained.retention(state_b, LIBRARIES[kind]))
    row['seconds'] = time.monotonic() - start
    return row


pretrained_of = functools.cache(Pretrained)


def measure(trial: dict) -> list[dict]:
    """Run a trial in a folder of its own; what the libraries print is dropped."""
    with tempfile.TemporaryDirectory(prefix='evidence') as work_dir, contextlib.redirect_stdout(io.StringIO()):
        return run(trial, pretrained_of(PHOTOS[trial.get('photos', 'skimage')]), Path(work_dir))
