"""Parameter groups for models that are not built from a config."""

import pytest
import torch
from torch import nn

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR

torchvision = pytest.importorskip('torchvision')


def levels(groups: list[dict]) -> dict[str, float]:
    return {name: group['rollback'] for group in groups for name in group['names']}


def test_levels_fall_along_the_blocks_and_new_weights_have_none():
    model = torchvision.models.resnet18(num_classes=3)
    pretrained = [name for name, _ in model.named_parameters() if not name.startswith(('fc.', 'layer2.0'))]
    groups = rollback_groups(model, pretrained, max_level=0.09, min_level=0.018, power=2.0)
    found = levels(groups)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, i in {'conv1.weight': 0, 'layer1.0.conv2.weight': 1, 'layer4.1.bn1.bias': 8}.items():
        assert found[name] == pytest.approx(0.018 + (1 - i / 9) ** 2 * 0.072, rel=1e-12), name
    assert {level for name, level in found.items() if name not in pretrained} == {0.0}
    assert len(groups) == 9  # the stem, seven blocks with a level, and what is new
    assert levels(rollback_groups(model, min_level=0.005))['fc.weight'] == 0.005


def wider_input(model):
    model.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    return {'conv1.weight'}


def fewer_classes(model):
    model.fc = nn.Linear(512, 3)
    return {'fc.weight', 'fc.bias'}


def another_layer(model):
    model.layer4[1].conv2 = nn.Conv2d(512, 512, 1, bias=False)
    return {'layer4.1.conv2.weight'}


@pytest.mark.parametrize('change', [wider_input, fewer_classes, another_layer])
def test_a_tensor_of_another_shape_than_in_the_weights_is_new(change):
    weights = torchvision.models.resnet18().state_dict()
    model = torchvision.models.resnet18()
    new = change(model)
    found = levels(rollback_groups(model, weights, max_level=0.1, min_level=0.01))
    assert {name for name, level in found.items() if level == 0} == new
    found = levels(rollback_groups(model, list(weights), max_level=0.1, min_level=0.01))
    assert all(found.values())  # names alone are believed


def test_weights_of_another_width_are_refused():
    weights = {name: torch.ones(1) for name, _ in torchvision.models.resnet18().named_parameters()}
    with pytest.raises(ValueError, match=r"pretrained=\['conv1\.weight', .*: the model has them in other shapes"):
        rollback_groups(torchvision.models.resnet18(), weights)


def test_options_split_groups_and_params_go_with_their_names():
    model = torchvision.models.resnet18()
    groups = rollback_groups(model, options=lambda name, p: dict(weight_decay=0.0) if p.ndim < 2 else {})
    parameters = dict(model.named_parameters())
    for group in groups:
        assert [parameters[name] for name in group['names']] == group['params']
        assert ({p.ndim > 1 for p in group['params']}) == {'weight_decay' not in group}
    assert sum(len(group['params']) for group in groups) == len(parameters)


def test_a_resume_with_other_groups_names_the_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    saved = AdamWOLOR(rollback_groups(model, max_level=0.1))
    model(torch.ones(1, 2)).sum().backward()
    saved.step()
    with pytest.raises(ValueError, match=r'1\.weight \(group'):
        AdamWOLOR(rollback_groups(model, max_level=0.1, power=0.0)).load_state_dict(saved.state_dict())


def test_names_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"pretrained=\['backbone\.conv1\.weight'\].*names are like 'conv1\.weight'"):
        rollback_groups(torchvision.models.resnet18(), ['backbone.conv1.weight'])


@pytest.mark.parametrize('lacks, head', [((), 0.027), (('fc.weight',), 0.027), (('fc.weight', 'fc.bias'), 0.0)])
def test_a_pretrained_head_has_03_of_the_highest_level_by_default(lacks, head):
    model = torchvision.models.resnet18(num_classes=3)
    pretrained = [name for name, _ in model.named_parameters() if name not in lacks]
    found = levels(rollback_groups(model, pretrained, max_level=0.09))
    assert [found['conv1.weight'], found['fc.bias']] == [0.09, pytest.approx(head)]
    assert found['layer1.0.conv2.weight'] == pytest.approx(head + 8 / 9 * (0.09 - head))  # i = 1 of 9
    assert ('fc.weight' in lacks) == (found['fc.weight'] == 0)
