"""Measures of drift and retention, against arithmetic in plain Python and models of the libraries."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from olor_mm.measure import (
    layer_drift,
    linear_cka,
    match_and_ties,
    match_by_value,
    prediction_agreement,
    prediction_divergence,
    pretrained_state,
)


def test_drift_is_the_relative_norm_of_each_layers_change():
    pretrained = {'a.weight': torch.tensor([3.0, 0.0]), 'a.bias': torch.tensor([4.0]), 'b.weight': torch.tensor([2.0])}
    weights = {
        'a.weight': torch.tensor([3.0, 0.6]),
        'a.bias': torch.tensor([4.8]),
        'b.weight': torch.tensor([2.0]),
        'head.weight': torch.tensor([9.0]),
    }
    index = {'a.weight': (0, 2), 'a.bias': (0, 2), 'b.weight': (1, 2), 'head.weight': (2, 2)}
    assert layer_drift(weights, pretrained, index) == pytest.approx({0: 1 / 5, 1: 0.0})
    with pytest.raises(ValueError, match='no parameter is in both'):
        layer_drift(weights, {'c': torch.ones(1)}, index)


def test_agreement_is_the_share_of_equal_first_classes():
    original = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    scores = torch.tensor([[5.0, 1.0], [0.0, 1.0], [0.0, 3.0], [2.0, 3.0]])
    assert prediction_agreement(scores, original) == 0.75
    assert prediction_agreement(torch.full_like(scores, float('nan')), original) == 0  # argmax says class 0
    with pytest.raises(ValueError, match='one shape'):
        prediction_agreement(scores[:2], original)
    with pytest.raises(ValueError, match='at least one image'):
        prediction_agreement(scores[:0], original[:0])


def test_a_model_that_was_not_fine_tuned_from_is_refused():
    finetuned = {'a': torch.ones(2), 'b': torch.ones(3), 'head': torch.ones(4)}
    state, origins = pretrained_state(finetuned, {'a': torch.zeros(2), 'b': torch.zeros(3), 'head': torch.zeros(9)}, {})
    assert origins == {'a': 'fine-tuned', 'b': 'fine-tuned', 'head': 'pre-trained'}
    other = {'a': torch.zeros(2), 'b': torch.zeros(9), 'c': torch.zeros(1)}
    with pytest.raises(ValueError, match="prefix='': only 1 of the 3 tensors"):
        pretrained_state(finetuned, other, {})


def test_divergence_is_the_sum_over_classes_in_nats():
    generator = torch.Generator().manual_seed(0)
    current, original = (torch.randn(5, 7, generator=generator) for _ in range(2))
    expected = 0.0
    for q_logits, p_logits in zip(current.double().tolist(), original.double().tolist()):
        p, q = ([math.exp(v) / sum(map(math.exp, logits)) for v in logits] for logits in (p_logits, q_logits))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q)) / 5
    assert prediction_divergence(current, original) == pytest.approx(expected, rel=1e-9)
    assert prediction_divergence(original, original) == 0
    with pytest.raises(ValueError, match='one shape'):
        prediction_divergence(current[:2], original)


def test_cka_is_that_of_centred_gram_matrices():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 4, generator=generator).double(), torch.randn(9, 6, generator=generator).double()
    centre = torch.eye(9, dtype=torch.float64) - 1 / 9
    k, h = (centre @ f @ f.T @ centre for f in (x, y))
    expected = (k * h).sum() / ((k * k).sum() * (h * h).sum()).sqrt()
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    assert linear_cka(3 * x @ rotation + 1, x) == pytest.approx(1.0)
    assert linear_cka(torch.ones(9, 4), x) == 0
    with pytest.raises(ValueError, match=r'features \(1, 4\) and original \(1, 6\)'):
        linear_cka(x[:1], y[:1])


def block(*widths) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b)) for a, b in pairwise(widths)))


def test_tensors_are_matched_by_value_and_ties_by_module_then_name_then_order():
    torch.manual_seed(0)
    pretrained = nn.ModuleDict(dict(backbone=block(3, 4, 4, 4), head=nn.Linear(4, 2)))
    model = nn.ModuleDict(dict(new=block(3, 4, 4), body=block(3, 4, 4, 4), head=nn.Linear(4, 2)))
    for i in range(3):  # norm layers are 1 and 0 everywhere, as those of `new` are
        model['body'][i][0].load_state_dict(pretrained['backbone'][i][0].state_dict())
    nn.init.zeros_(pretrained['backbone'][1][0].bias)
    nn.init.zeros_(model['body'][1][0].bias)
    model['head'].load_state_dict(pretrained['head'].state_dict())
    found = match_by_value(pretrained, model, prefix='body.', keep=['head'])
    expected = {n: n.replace('backbone', 'body') for n in pretrained.state_dict() if n.startswith('backbone')}
    assert found == expected
    assert match_by_value(pretrained, model, prefix='body.')['backbone.1.0.bias'] == 'body.1.0.bias'
    assert match_by_value(pretrained, model)['head.weight'] == 'head.weight'
    assert match_by_value(pretrained, nn.Linear(4, 2)) == {}


def test_a_trained_network_goes_before_a_frozen_one_and_a_whole_one_before_a_part():
    def copies(**given) -> nn.ModuleDict:
        return nn.ModuleDict({name: copy.deepcopy(net) for name, net in given.items()})

    torch.manual_seed(0)
    net = block(3, 4, 4, 4)
    expected = {'first': 'first.', 'second': 'second.'}
    model = copies(first=net, second=net)
    assert match_and_ties(net, model, '', (), [*model.parameters()]).ties == {'first.': ['second.']}
    for frozen, taken in dict(first='second', second='first').items():
        model = copies(first=net, second=net)
        model[frozen].requires_grad_(False)
        names, ties = match_and_ties(net, model, '', (), [p for p in model.parameters() if p.requires_grad])
        assert names == {name: f'{taken}.{name}' for name in net.state_dict()}
        assert ties == {expected[taken]: [expected[frozen]]}
        assert match_by_value(net, model) == names
    model = copies(first=net[:1], second=net)
    assert match_by_value(net, model) == {name: f'second.{name}' for name in net.state_dict()}
    assert match_by_value(net, copies(first=net, second=net), prefix='second.') == match_by_value(net, model)
    model = copies(first=net, other=block(3, 4, 4, 4))
    assert match_and_ties(net, model, '', (), [*model.parameters()]).ties == {}


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_a_backbone_is_found_under_other_names_in_other_libraries(data, library):
    """MobileNetV2, with the names that the converter of torchvision's checkpoint has."""
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.runner import load_checkpoint

    from tools.model_converters.torchvision_mobilenet_v2 import layer_names

    kinds = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    checkpoint = dict(type='Pretrained', checkpoint=str(data / f'weights/mobilenet_v2_{library}.pth'))
    backbone = dict(type='MobileNetV2', out_indices=(6,), init_cfg=checkpoint)
    with DefaultScope.overwrite_default_scope(library):
        model = nn.ModuleDict(dict(backbone=MODELS.build(backbone)))
    model['backbone'].init_weights()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pretrained = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type='MobileNetV2'),
                head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280),
            )
        )
    load_checkpoint(pretrained, str(data / 'weights/mobilenet_v2_mmpretrain.pth'), map_location='cpu')
    ours, theirs = layer_names('mmpretrain'), layer_names(library)
    expected = {
        f'backbone.{ours[layer]}.{kind}': f'backbone.{theirs[layer]}.{kind}'
        for layer in theirs
        for kind in kinds
        if f'backbone.{ours[layer]}.{kind}' in pretrained.state_dict()
    }
    assert match_by_value(pretrained, model) == expected
    assert len(expected) == (6 * 52 if library == 'mmdet' else 6 * 51)
