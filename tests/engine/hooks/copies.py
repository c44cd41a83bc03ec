"""A classifier with a second network of the same weights that is not trained: each way that projects have it."""

import copy

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from torch import nn


class TwoNetworks(BaseModel):
    """The student learns to classify, and to be like its teacher, which is registered before it.

    Args:
        frozen (str): How the teacher is kept from being trained: 'requires_grad', in 'train()', or by 'no_grad' alone.
    """

    def __init__(self, net: dict, head: dict, frozen: str, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.frozen = frozen
        self.teacher, self.student = (MODELS.build(copy.deepcopy(net)) for _ in range(2))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), MODELS.build(head)
        if frozen == 'requires_grad':
            self.teacher.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.eval()
        if self.frozen == 'train()':
            self.teacher.requires_grad_(False)
        return self

    def forward(self, inputs, data_samples=None, mode='tensor'):
        student = self.pool(self.student(inputs)[-1]).flatten(1)
        if mode == 'predict':
            return self.head.predict((student,), data_samples)
        with torch.set_grad_enabled(self.frozen == 'lr_mult'):
            teacher = self.pool(self.teacher(inputs)[-1]).flatten(1)
        return dict(self.head.loss((student,), data_samples), loss_kd=(student - teacher).square().mean())


class Average(Hook):
    """Moves the teacher towards the student, as mean teachers do."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with torch.no_grad():
            for ours, theirs in zip(runner.model.teacher.parameters(), runner.model.student.parameters()):
                ours.lerp_(theirs, 0.5)


MODELS.register_module(module=TwoNetworks)
WAYS = ('requires_grad', 'train()', 'no_grad', 'lr_mult', 'average')


def beside_a_copy(cfg, way: str):
    """A config of the digits with a teacher that is frozen in one of the ``WAYS``."""
    model, preprocessor = cfg.model, dict(cfg.pop('data_preprocessor'))
    preprocessor.setdefault('type', 'ClsDataPreprocessor')
    frozen = 'requires_grad' if way == 'average' else way
    parts = dict(net=model.backbone, head=model.head, frozen=frozen)
    cfg.model = dict(type='TwoNetworks', data_preprocessor=preprocessor, **parts)
    if way == 'lr_mult':
        options = cfg.optim_wrapper.get('paramwise_cfg', {})
        cfg.optim_wrapper.paramwise_cfg = dict(options, custom_keys=dict(teacher=dict(lr_mult=0.0)))
    return cfg
