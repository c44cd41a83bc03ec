"""Parameter groups for models that are not built from a config."""

import pytest
import torch
import torchvision
from torch import nn

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR


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
