"""The old classifier's probabilities in the training of a new one."""

import math
import os

import numpy as np
import pytest
import torch
from digits import config, train
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmpretrain.structures import DataSample
from PIL import Image

from olor_mm.extend.distill import OldProbabilities, save_probabilities

OLD, NEW = 3, 5


@pytest.fixture
def stored(tmp_path):
    """Six images in two folders, and the probabilities of three old classes for each."""
    rng = np.random.default_rng(0)
    logs = {}
    for name in ('x/0.png', 'x/1.png', 'y/0.png', 'y/1.png', 'y/2.png', 'y/3.png'):
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / 'images' / name)
        scores = rng.normal(size=OLD) * 4
        logs[name] = (scores - np.log(np.exp(scores).sum())).astype(np.float16)
    save_probabilities(tmp_path / 'old.npz', tmp_path / 'images', ['a', 'b', 'c'], logs)
    return tmp_path, {name: np.exp(value.astype(np.float32)) for name, value in logs.items()}


def loss_of(**options):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        own = options.pop('loss', dict(type='CrossEntropyLoss'))
        return MODELS.build(dict(type='olor_mm.DistillationLoss', loss=own, **options))


def packed(old, labels, classes=NEW):
    return torch.cat([old, torch.nn.functional.one_hot(torch.as_tensor(labels), classes).float()], 1)


def slow(scores, old, label, temperature, weight):
    """The loss of one image, written out."""
    own = -math.log(math.exp(scores[label]) / sum(math.exp(z) for z in scores))
    powers = [p ** (1 / temperature) for p in old]
    soft = [math.exp(z / temperature) for z in scores[: len(old)]]
    distance = 0.0
    for power, s in zip(powers, soft):
        p, q = power / sum(powers), s / sum(soft)
        distance += p * math.log(p / q)
    return own + weight * temperature**2 * distance


@pytest.mark.parametrize('temperature, weight', [(1, 1), (2, 1), (4, 0.3), (2, 0)])
def test_the_loss_is_that_of_the_papers(temperature, weight):
    scores, old, labels = torch.randn(4, NEW), torch.randn(4, OLD).softmax(1), [0, 4, 2, 3]
    found = loss_of(temperature=temperature, weight=weight)(scores, packed(old, labels))
    rows = [slow(*row, temperature, weight) for row in zip(scores.tolist(), old.tolist(), labels)]
    assert float(found) == pytest.approx(sum(rows) / 4, rel=1e-5)


def test_a_model_that_says_what_the_old_one_said_has_no_distance():
    scores = torch.randn(4, NEW)
    target = packed(scores[:, :OLD].softmax(1), [3, 4, 3, 4])
    difference = loss_of(weight=7.0)(scores, target) - loss_of(weight=0.0)(scores, target)
    assert float(difference) == pytest.approx(0, abs=1e-5)


def test_images_without_probabilities_have_their_own_loss_alone():
    scores, old = torch.randn(2, NEW), torch.randn(2, OLD).softmax(1)
    target = packed(old, [3, 1])
    target[1, :OLD] = 0
    both = loss_of()(scores, target) - loss_of(weight=0.0)(scores, target)
    first = loss_of()(scores[:1], target[:1]) - loss_of(weight=0.0)(scores[:1], target[:1])
    assert float(both) == pytest.approx(float(first) / 2, rel=1e-4)


@pytest.mark.parametrize(
    'own',
    [
        dict(type='CrossEntropyLoss', loss_weight=0.5),
        dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=NEW),
        dict(type='FocalLoss'),
        dict(type='CrossEntropyLoss', use_soft=True),
        dict(type='CrossEntropyLoss', use_sigmoid=True),
    ],
    ids=lambda own: '-'.join(map(str, own.values())),
)
def test_the_heads_own_loss_is_what_it_is_without(own):
    scores, labels = torch.randn(4, NEW), torch.tensor([0, 4, 2, 3])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        alone = MODELS.build(own)
    soft = own.get('use_soft') or own.get('use_sigmoid')
    expected = alone(scores, torch.nn.functional.one_hot(labels, NEW).float() if soft else labels, avg_factor=4)
    found = loss_of(loss=own, weight=0.0)(scores, packed(torch.randn(4, OLD).softmax(1), labels), avg_factor=4)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_targets_without_probabilities_are_an_error():
    for target in (torch.tensor([0, 1]), torch.rand(2, NEW), torch.rand(2, 2 * NEW + 1)):
        with pytest.raises(ValueError, match='OldProbabilities'):
            loss_of()(torch.randn(2, NEW), target)
    for options in (dict(temperature=0), dict(weight=-1)):
        with pytest.raises(ValueError, match=next(iter(options))):
            loss_of(**options)


HEADS = [
    (dict(type='LinearClsHead', in_channels=8), lambda: (torch.randn(4, 8),)),
    (dict(type='StackedLinearClsHead', in_channels=8, mid_channels=[6]), lambda: (torch.randn(4, 8),)),
    (dict(type='VisionTransformerClsHead', in_channels=8), lambda: (torch.randn(4, 8),)),
    (dict(type='VisionTransformerClsHead', in_channels=8, hidden_dim=6), lambda: (torch.randn(4, 8),)),
    (dict(type='ConformerHead', in_channels=[8, 6]), lambda: ([torch.randn(4, 8), torch.randn(4, 6)],)),
    (dict(type='LeViTClsHead', in_channels=8, distillation=False), lambda: (torch.randn(4, 8),)),
    (dict(type='EfficientFormerClsHead', in_channels=8, distillation=False), lambda: (torch.randn(4, 8),)),
    (dict(type='ArcFaceClsHead', in_channels=8), lambda: (torch.randn(4, 8),)),
    (dict(type='VigClsHead', in_channels=8, hidden_dim=6), lambda: (torch.randn(4, 8),)),
]


@pytest.mark.parametrize('head, feats', HEADS, ids=lambda part: str(part.get('type')) if isinstance(part, dict) else '')
def test_every_head_learns_from_both(head, feats):
    """Gradients reach the head's weights, and differ from those of its own loss."""
    loss = dict(type='olor_mm.DistillationLoss', loss=dict(type='CrossEntropyLoss'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(head, num_classes=NEW, loss=loss)).train()
    feats = feats()
    target = packed(torch.randn(4, OLD).softmax(1), [0, 4, 2, 3])
    samples = [DataSample().set_gt_label(label).set_gt_score(row) for label, row in zip([0, 4, 2, 3], target)]
    gradients = []
    for weight in (1.0, 0.0):
        model.loss_module.weight = weight
        torch.manual_seed(0)
        model.zero_grad()
        sum(value.sum() for value in model.loss(feats, samples).values()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].isfinite().all() and not torch.allclose(*gradients)


def test_mixup_mixes_probabilities_as_it_mixes_labels():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocessor = MODELS.build(
            dict(type='ClsDataPreprocessor', batch_augments=dict(augments=[dict(type='Mixup', alpha=1.0)]))
        )
    target = packed(torch.randn(4, OLD).softmax(1), [0, 4, 2, 3])
    samples = [DataSample().set_gt_label(label).set_gt_score(row) for label, row in zip([0, 4, 2, 3], target)]
    data = preprocessor(dict(inputs=torch.rand(4, 3, 8, 8), data_samples=samples), training=True)
    mixed = torch.stack([sample.gt_score for sample in data['data_samples']])
    assert torch.allclose(mixed[:, :OLD].sum(1), torch.ones(4)) and not torch.equal(mixed, target)
    assert loss_of()(torch.randn(4, NEW), mixed).isfinite()


@pytest.mark.parametrize('wrapped', ['plain', 'RepeatDataset', 'ConcatDataset', 'ClassBalancedDataset'])
def test_an_image_has_its_own_probabilities_whatever_the_order(wrapped, stored, tmp_path):
    folder, probabilities = stored
    step = dict(type='olor_mm.OldProbabilities', file=str(folder / 'old.npz'), num_classes=NEW)
    crop = dict(type='RandomResizedCrop', scale=16)
    pipeline = [dict(type='LoadImageFromFile'), crop, step, dict(type='PackInputs', meta_keys=('img_path',))]
    plain = dict(type='CustomDataset', data_root=str(folder / 'images'), pipeline=pipeline, serialize_data=False)
    cfg = dict(
        plain=plain,
        RepeatDataset=dict(type='RepeatDataset', times=2, dataset=plain),
        ConcatDataset=dict(type='ConcatDataset', datasets=[plain, plain]),
        ClassBalancedDataset=dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=plain),
    )[wrapped]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg)
    for number in np.random.default_rng(0).permutation(len(dataset)):
        sample = dataset[int(number)]['data_samples']
        name = os.path.relpath(sample.img_path, folder / 'images')
        assert np.allclose(sample.gt_score[:OLD], probabilities[name])
        assert sample.gt_score[OLD:].tolist() == [float(at == int(sample.gt_label)) for at in range(NEW)]


def test_images_are_found_where_they_are_now(stored, tmp_path):
    folder, probabilities = stored
    (folder / 'images').rename(folder / 'moved')
    (folder / 'link').symlink_to(folder / 'moved')
    file, results = str(folder / 'old.npz'), dict(gt_label=1, img_path=str(folder / 'moved/y/1.png'))
    with pytest.raises(ValueError, match='moved/y/1.png'):
        OldProbabilities(file, NEW)(dict(results))
    assert OldProbabilities(file, NEW, missing_ok=True)(dict(results))['gt_score'].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    for path in (folder / 'moved/y/1.png', folder / 'link/y/1.png'):
        found = OldProbabilities(file, NEW, root=str(folder / 'moved'))(dict(gt_label=1, img_path=str(path)))
        assert np.allclose(found['gt_score'][:OLD], probabilities['y/1.png'])


def test_a_label_beyond_all_classes_is_refused(stored):
    step = OldProbabilities(str(stored[0] / 'old.npz'), NEW)
    with pytest.raises(ValueError, match=f'num_classes={NEW}'):
        step(dict(gt_label=NEW, img_path=str(stored[0] / 'images/x/0.png')))


@pytest.mark.parametrize('options, key', [(dict(file='none.npz'), 'none.npz'), (dict(num_classes=2), 'num_classes=2')])
def test_options_that_cannot_be_are_refused(options, key, stored):
    with pytest.raises(ValueError, match=key):
        OldProbabilities(**{**dict(file=str(stored[0] / 'old.npz'), num_classes=NEW), **options})


def test_a_stock_config_takes_it_in_a_few_lines(data, tmp_path):
    """Ten classes of digits, five of them old; the file is written as label writes it."""
    root, rng = data / 'digits/train', np.random.default_rng(0)
    names = [file.relative_to(root).as_posix() for file in sorted(root.rglob('*.png'))]
    logs = np.log(rng.dirichlet(np.ones(5), len(names))).astype(np.float16)
    save_probabilities(tmp_path / 'old.npz', root, [f'digit {i}' for i in range(5)], dict(zip(names, logs)))
    losses = []
    for weight in (0.0, 1.0):
        cfg = config(tmp_path / f'run{weight}', data)
        cfg.model.head.loss = dict(type='olor_mm.DistillationLoss', loss=cfg.model.head.loss, weight=weight)
        step = dict(type='olor_mm.OldProbabilities', file=str(tmp_path / 'old.npz'), num_classes=10)
        cfg.train_dataloader.dataset.pipeline.insert(-1, step)
        runner, _ = train(cfg)
        losses.append(runner.message_hub.get_scalar('train/loss').current())
        assert next(iter(runner.train_dataloader))['data_samples'][0].gt_score.shape == (15,)
    assert losses[0] < losses[1]
