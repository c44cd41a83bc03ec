"""The part of the listing of stock configs that says what each of several networks got."""

from collections import Counter

import torchvision
from torch import nn

from olor_mm.layers import layer_index
from tools.analysis_tools.stock_configs import networks_of, several_networks


class Distilled(nn.Module):
    """As in mmdet, where the teacher is kept apart."""

    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        self.neck = nn.ModuleDict(dict(backbone_2=torchvision.models.vgg11()))
        self.__dict__['teacher'] = torchvision.models.resnet18()


def test_each_network_is_listed_with_its_layers_and_levels():
    model = Distilled()
    found = [*networks_of(model, layer_index(model))]
    assert found == [
        ('backbone.', 'ResNet', 62, 9, '0.0100', '0.0011'),
        ('neck.backbone_2.', 'VGG', 22, 11, '0.0100', '0.0009'),
        ('(teacher)', 'ResNet', 0, 0, '', ''),
    ]


def test_only_models_with_several_networks_are_in_the_table():
    several = dict(library='mmdet', model='RFP', config='rfp.py', key='a', networks=[('backbone.', 3), ('neck.', 4)])
    one = dict(library='mmdet', model='RetinaNet', config='retina.py', key='b', networks=[('backbone.', 3)])
    text = '\n'.join(several_networks([several, one, dict(several, key='c')], Counter(a=2, b=5, c=1)))
    assert '| mmdet | RFP | 3 | rfp.py | backbone. | 3 |\n|  |  |  |  | neck. | 4 |' in text
    assert 'RetinaNet' not in text
    assert several_networks([one], Counter(b=1)) == []
