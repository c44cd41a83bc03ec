"""However a model is filled: what is anchored is what came out of a file and has that value still."""

import copy
import re

import pytest

pytest.importorskip('mmengine')

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper

import olor_mm  # noqa: F401
from olor_mm.layers import clean_name
from olor_mm.pretrained import LoadRecord


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), norms[0], nn.Sequential(nn.Conv2d(4, 4, 1), norms[1]))
        self.head = nn.Linear(4, 2)

    def forward(self, x, mode='loss'):
        return self.head(self.backbone(x).mean((2, 3)))

    def init_weights(self):
        for name, value in tensors(self).items():
            if 'backbone.1.' not in name:
                nn.init.normal_(value)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and running means by name."""
    means = {name: value for name, value in model.named_buffers() if name.endswith('running_mean')}
    return {clean_name(name): value for name, value in (*model.named_parameters(), *means.items())}


NAMES = sorted(tensors(Net()))
TELLING = 'head.weight'  # a new value that is not constant, by which a clone of the model's own weights is recognised


class Filled:
    """A model with a record, and the names of what is in it of a file, by what was done to it."""

    def __init__(self, folder):
        self.folder, self.model = folder, Net()
        self.true: set[str] = set()
        self.last: dict[str, torch.Tensor] = {}

    def file(self, names) -> dict[str, torch.Tensor]:
        """New values for these names."""
        self.last = {name: torch.randn(tensors(self.model)[name].shape) for name in names}
        self.true |= set(self.last)
        return self.last

    def load_some(self, names):
        self.model.load_state_dict(self.file(names), strict=False)

    def load_all(self, names):
        rest = {name: value + 1 for name, value in self.model.state_dict().items()}
        self.model.load_state_dict({**rest, **self.file(NAMES)})

    def load_some_by_mmengine(self, names):
        load_state_dict(self.model, self.file(names))

    def load_a_file_of_ddp(self, names):
        torch.save(dict(state_dict={f'module.{n}': v for n, v in self.file(names).items()}), self.folder / 'ddp.pth')
        load_checkpoint(self.model, str(self.folder / 'ddp.pth'))

    def load_a_fresh_model(self, names):
        """Its norm layers have the ones and zeros that are here already."""
        fresh = tensors(Net())
        self.file(names)
        self.last = {name: fresh[name].detach() for name in names}
        self.model.load_state_dict(self.last, strict=False)

    def load_a_part(self, names):
        part = self.file(name for name in NAMES if name.startswith('backbone.2.'))
        part = {name.removeprefix('backbone.2.'): value for name, value in part.items()}
        self.model.backbone[2].load_state_dict(part, strict=False)

    def load_again(self, names):
        self.true |= set(self.last)
        self.model.load_state_dict(self.last, strict=False)

    def load_other_shapes(self, names):
        load_state_dict(self.model, {name: torch.randn(7) for name in names})

    def load_other_names(self, names):
        load_state_dict(self.model, {f'model.{name}': torch.randn(tensors(self.model)[name].shape) for name in names})

    def load_what_fits_into_the_own_state(self, names):
        own = self.model.state_dict()
        own.update(self.file(names))
        self.model.load_state_dict(own)

    def load_what_fits_into_a_clone_of_the_own_state(self, names):
        own = copy.deepcopy(self.model.state_dict())
        own.update(self.file(set(names) - {TELLING}))
        self.model.load_state_dict(own)

    def load_the_own_state(self, names):
        self.model.load_state_dict(self.model.state_dict())

    def load_a_clone_of_the_own_state(self, names):
        load_state_dict(self.model, {name: value.clone() for name, value in self.model.state_dict().items()})

    def copy_in_place_from_a_file(self, names):
        for name in names:
            own = tensors(self.model)[name].data
            own.copy_(torch.randn(own.shape))
        self.true -= set(names)

    def initialise_again(self, names):
        for name in names:
            nn.init.normal_(tensors(self.model)[name])
        self.true -= set(names)

    def cast(self, names):
        self.model.to(torch.bfloat16)

    def cast_up(self, names):
        self.model.double()

    def cast_there_and_back(self, names):
        self.model.to(torch.bfloat16).float()

    def rebuild_norms(self, names):
        for parent in (self.model.backbone, self.model.backbone[2]):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    new = nn.BatchNorm2d(4, affine=child.affine)
                    new.__dict__['_parameters'], new.__dict__['_buffers'] = child._parameters, child._buffers
                    setattr(parent, name, new)

    def convert_norms(self, names):
        self.model.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(self.model.backbone)

    def wrap(self, names):
        if not isinstance(self.model.backbone[2], CheckpointWrapper):
            self.model.backbone[2] = checkpoint_wrapper(self.model.backbone[2])


WAYS = [name for name, value in vars(Filled).items() if callable(value) and name not in ('__init__', 'file')]
steps = st.lists(st.tuples(st.sampled_from(WAYS), st.sets(st.sampled_from(NAMES), min_size=1)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None, database=None)
@given(steps)
def test_the_record_knows_what_came_out_of_a_file(tmp_path_factory, steps):
    filled = Filled(tmp_path_factory.getbasetemp())
    record = LoadRecord(filled.model)
    filled.model.init_weights()
    for way, names in steps:
        getattr(filled, way)(names)
    names = {p: name for name, p in tensors(filled.model).items()}
    found = {names[p] for p in record.unchanged(filled.model.parameters())}
    means = {f'{clean_name(f"{layer}.")}running_mean' for layer in record.unchanged_statistics(filled.model)}
    assert found | means == filled.true


@settings(max_examples=100, deadline=None, database=None)
@given(steps, st.sampled_from(['auto', ['backbone'], ['backbone.2', 'head']]))
def test_anchors_are_what_came_out_of_a_file_and_a_run_with_none_is_refused(tmp_path_factory, steps, pretrained):
    filled = Filled(tmp_path_factory.getbasetemp())
    rollback = dict(max_level=0.1, min_level=0.01, pretrained=pretrained)
    cfg = dict(optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(rollback=rollback))
    wrapper = build_optim_wrapper(filled.model, dict(cfg, constructor='OLOROptimWrapperConstructor'))
    filled.model.init_weights()
    for way, names in steps:
        getattr(filled, way)(names)
    values = {name: value.detach().clone() for name, value in tensors(filled.model).items()}
    prefixes = ('',) if pretrained == 'auto' else tuple(f'{prefix}.' for prefix in pretrained)
    expected = {name for name in filled.true if name.startswith(prefixes) and not name.endswith('running_mean')}

    def step():
        wrapper.update_params(sum(p.square().sum() for p in filled.model.parameters()))

    if not expected:
        with pytest.raises(ValueError, match=re.escape(f'pretrained={pretrained!r}: ')):
            step()
        return
    step()
    groups, state = wrapper.optimizer.param_groups, wrapper.optimizer.state
    names = {p: name for group in groups for name, p in zip(group['names'], group['params'])}
    anchors = {names[p]: kept['anchor'] for p, kept in state.items() if kept.get('anchor') is not None}
    assert anchors.keys() == expected
    assert all(torch.equal(anchors[name], values[name]) for name in expected)
