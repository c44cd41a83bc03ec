import re
from pathlib import Path

import torch
import torchvision
from conftest import CLASSIFICATION
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from launch import config_file

README = (Path(__file__).parents[1] / 'README.md').read_text()


def python_blocks() -> list[str]:
    return re.findall(r'```python\n(.*?)```', README, re.S)


def test_the_plain_pytorch_example_does_what_it_says():
    [code] = [block for block in python_blocks() if 'LoadRecord' in block]
    model = torchvision.models.resnet18(num_classes=3)
    pretrained = torchvision.models.resnet18().state_dict()
    pretrained_weights = {name: value for name, value in pretrained.items() if not name.startswith('fc.')}
    scope = dict(model=model, pretrained_weights=pretrained_weights)
    exec(code, scope)
    optimizer = scope['optimizer']
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert ('anchor' in optimizer.state[p]) == (not name.startswith('fc.')), name
        if not name.startswith('fc.'):
            assert torch.equal(optimizer.state[p]['anchor'], pretrained[name])


def test_the_config_example_builds_the_optimizer_it_names(tmp_path):
    [code] = [block for block in python_blocks() if 'rpn_head' in block]
    file = tmp_path / 'config.py'
    file.write_text(code)
    cfg = Config.fromfile(file)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == 'AdamWOLOR'
    rates = {p: group['lr'] for group in optimizer.param_groups for p in group['params']}
    assert rates[model.rpn_head.rpn_conv.weight] == 2e-4
    assert rates[model.backbone.layer4[0].conv1.weight] == 1e-4
    assert max(group['rollback'] for group in optimizer.param_groups) <= 1e-2


def test_the_fragments_for_other_ways_are_taken_as_the_example_says(tmp_path):
    from mmengine.config import Config

    [code] = [block for block in python_blocks() if 'finetune' in block]
    file = tmp_path / 'config.py'
    fragments = sorted((Path(__file__).parents[1] / 'configs/_base_/finetune').glob('*.py'))
    for fragment in fragments:
        file.write_text(code.replace('../_base_/finetune/l2sp.py', str(fragment)))
        cfg = Config.fromfile(file)
        assert cfg.optim_wrapper == cfg.finetune_optim_wrapper and cfg.custom_hooks == cfg.finetune_hooks
        assert f'| `{fragment.name}` |' in README
        # a base with hooks and imports of its own keeps them
        own = str(Path(__file__).parents[1] / CLASSIFICATION)
        file.write_text(file.read_text().replace('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', own))
        cfg = Config.fromfile(file)
        assert [*Config.fromfile(own).custom_hooks, *cfg.finetune_hooks] == cfg.custom_hooks
    assert len(fragments) == 7


def test_the_shortest_form_keeps_the_optimizer_of_a_stock_config():
    [code] = [block for block in python_blocks() if '_base_' not in block and 'optim_wrapper' in block]
    scope = {}
    exec(code, scope)
    cfg = Config.fromfile(config_file('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'))
    cfg.merge_from_dict(dict(optim_wrapper=scope['optim_wrapper']))
    with DefaultScope.overwrite_default_scope('mmdet'):
        optimizer = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == 'SGDOLOR'
    assert {(group['lr'], group['momentum']) for group in optimizer.param_groups} == {(0.01, 0.9)}
    assert max(group['rollback'] for group in optimizer.param_groups) > 0


def test_every_command_names_files_that_exist():
    paths = re.findall(r'(?:configs|tools|demo)/[\w/.-]+\.(?:py|sh)', README)
    assert len(paths) > 8
    for path in paths:
        assert (Path(__file__).parents[1] / path).is_file(), path
