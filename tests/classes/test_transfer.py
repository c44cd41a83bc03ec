"""A head of other classes says of those it shares with the old one what the old one said."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')

from head_cases import CASES, Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import LinearClsHead
from torch import nn

from olor_mm.classes import transfer_classes

OLD = ['a', 'b', 'c', 'd', 'e']


def check(case: Case, old: list[str], new: list[str], seed: int = 0) -> None:
    """Transfer from a head of the old classes to one of the new ones, and compare what they say."""
    before, after = case.build(len(old), seed), case.build(len(new), seed + 1)
    state, report = transfer_classes(after, before.state_dict(), old, new)
    after.load_state_dict(state)
    shared = [name for name in old if name in new]
    inputs = list(case.inputs(len(old)))
    there = [*inputs]
    if case.scores_at is not None:
        scores = torch.rand(len(inputs[1]), len(new), *inputs[1].shape[2:])
        for name in shared:
            scores[:, new.index(name)] = inputs[1][:, old.index(name)]
        for name in set(old) - set(new):
            inputs[1][:, old.index(name)] = 0  # whose columns are gone
        there[1] = scores
    with torch.no_grad():
        first, others = case.read(before['head'](*copy.deepcopy(inputs)), len(old))
        second, new_others = case.read(after['head'](*copy.deepcopy(there)), len(new))
    assert len(first) == len(second) and first
    for a, b in zip([*first, *others], [*second, *new_others], strict=True):
        if a.shape[-1] == len(old) and any(a is value for value in first):
            a, b = a[..., [old.index(name) for name in shared]], b[..., [new.index(name) for name in shared]]
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [head.name for head in report.heads] == ['head'] and not report.unknown
    assert sorted(report.heads[0].kept) == sorted(shared) and not report.heads[0].reason
    assert [name for name in new if name not in old] == report.heads[0].new


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    'new',
    [
        pytest.param(['x', 'e', 'b', 'y', 'a', 'd', 'c', 'z'], id='more, in another order'),
        pytest.param(['c', 'a', 'e', 'b', 'd'], id='in another order'),
        pytest.param(['d', 'b', 'x'], id='fewer'),
        pytest.param(['x', 'e', 'y', 'b', 'z'], id='as many, some of them'),
        pytest.param(['x', 'e', 'y', 'b', 'z', 'c', 'v', 'w'], id='as many as channels'),
    ],
)
def test_shared_classes_keep_their_outputs(case, new):
    check(case, OLD, new)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_one_old_class_is_kept_among_several(case):
    check(case, ['a'], ['x', 'a', 'y'])


def predictions(head, inputs, classes, rows=None):
    """What the library itself makes of a head's outputs: every box with its class and its score."""
    if rows is not None:  # new classes are out of the question
        with torch.no_grad():
            for name, is_old in rows.items():
                head.get_parameter(name.removeprefix('head.')).masked_fill_(~is_old, 0 if 'weight' in name else -100)
    with torch.no_grad():
        outputs = head(*copy.deepcopy(inputs))
    cfg = ConfigDict(
        score_thr=1e-6, conf_thr=-1, nms_pre=10**6, min_bbox_size=0, max_per_img=10**6, nms=dict(iou_threshold=1.0)
    )
    if hasattr(head, 'fc_reg'):
        rois = torch.tensor([[0.0, 2 + i, 3, 20, 30 + i] for i in range(3)])
        (found,) = head.predict_by_feat(
            [rois], [outputs[0]], [outputs[1]], [dict(img_shape=(64, 64))], rcnn_test_cfg=None
        )
        boxes = found.bboxes.view(3, -1, 4)
        rows = [(classes[c], boxes[i, c], found.scores[i, c]) for i in range(3) for c in range(len(classes))]
    else:
        meta = [dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))] * 2
        found = head.predict_by_feat(*outputs, batch_img_metas=meta, cfg=cfg, with_nms=False)[0]
        rows = [(classes[c], box, s) for c, box, s in zip(found.labels, found.bboxes, found.scores) if s > 1e-6]
    return torch.tensor(sorted([*map(float, box), float(score), ord(name)] for name, box, score in rows))


@pytest.mark.parametrize(
    'name',
    [
        'an anchor after another',
        'after box and objectness',
        'without anchors',
        'of several levels',
        'boxes class by class',
    ],
)
def test_the_library_itself_finds_the_same_boxes_of_the_same_classes(name):
    case, new = CASES[name], ['x', 'e', 'b', 'y', 'a', 'd', 'c', 'z']
    before, after = case.build(len(OLD), 0), case.build(len(new), 1)
    state, report = transfer_classes(after, before.state_dict(), OLD, new)
    after.load_state_dict(state)
    inputs = case.inputs(len(OLD))
    first = predictions(before['head'], inputs, OLD)
    second = predictions(after['head'], inputs, new, report.rows)
    second = second[torch.isin(second[:, -1], torch.tensor([*map(ord, OLD)], dtype=second.dtype))]
    assert len(first) >= 15
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_order_of_any_names_keeps_the_outputs(data):
    names = list('abcdefgh')
    old, new = (data.draw(st.permutations(names)) for _ in range(2))
    old, new = old[: data.draw(st.integers(1, 8))], new[: data.draw(st.integers(1, 8))]
    if not set(old) & set(new):
        return
    case = CASES[
        data.draw(st.sampled_from(['an anchor after another', 'boxes class by class', 'after box and objectness']))
    ]
    check(case, old, new, data.draw(st.integers(0, 3)))


def model_of(head) -> nn.Module:
    return nn.ModuleDict({'head': head})


def transferred(head, other, old, new):
    """The state of a model of one head, after a transfer from that of another."""
    return transfer_classes(model_of(head), model_of(other).state_dict(), old, new)


class Backwards(LinearClsHead):
    """Classes from the last to the first."""

    def forward(self, feats):
        return super().forward(feats).flip(1)


class OtherLoss(LinearClsHead):
    """As its base, but for the loss."""

    def loss(self, feats, data_samples, **kwargs):
        return {}


class OfAFork(LinearClsHead):
    """As if it were in mmpretrain, where nobody has looked at it."""

    __module__ = 'mmpretrain.models.heads.new'

    def forward(self, feats):
        return super().forward(feats).flip(1)


class Foreign(nn.Module):
    """A head of nobody's."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Linear(in_channels, num_classes)


@pytest.mark.parametrize('kind', [Backwards, OfAFork, Foreign])
@pytest.mark.parametrize('new', [['c', 'b', 'a'], ['c', 'b', 'a', 'x'], ['b']])
def test_a_head_whose_order_is_not_known_stays_new_and_is_told(kind, new):
    head = kind(len(new), 5)
    state, report = transferred(head, kind(3, 5), ['a', 'b', 'c'], new)
    assert not state and not report.rows
    (told,) = report.heads
    assert (told.name, told.kept, told.new) == ('head', [], new) and kind.__name__ in told.reason


class Whole(nn.Module):
    """A model that says how many classes it has, as those of mmseg do."""

    def __init__(self, head):
        super().__init__()
        self.num_classes = head.num_classes
        self.backbone, self.head = nn.Linear(5, 5), head


@pytest.mark.parametrize('kind', [LinearClsHead, Backwards, Foreign])
def test_a_model_around_a_head_is_no_head(kind):
    given = Whole(kind(2, 5)).state_dict()
    state, report = transfer_classes(Whole(kind(2, 5)), given, ['a', 'b'], ['b', 'a'])
    assert [head.name for head in report.heads] == ['head']
    assert torch.equal(state['backbone.weight'], given['backbone.weight'])


def test_a_head_that_computes_as_its_base_is_known_as_that():
    state, report = transferred(OtherLoss(2, 5), OtherLoss(2, 5), ['a', 'b'], ['b', 'a'])
    assert report.heads[0].kept == ['b', 'a'] and len(report.rows) == 2


def test_one_output_for_two_classes_is_not_known():
    def binary(classes, outputs):
        with DefaultScope.overwrite_default_scope('mmseg'):
            loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
            cfg = dict(type='FCNHead', in_channels=8, channels=8, threshold=0.3, loss_decode=loss)
            return MODELS.build(dict(cfg, num_classes=classes, out_channels=outputs))

    for old, new, there in ((['a', 'b'], ['b', 'a'], binary(2, 1)), (['a', 'x', 'y'], ['a', 'b'], binary(3, 3))):
        state, report = transferred(binary(2, 1), there, old, new)
        assert 'head.conv_seg.weight' not in state and 'one output' in report.heads[0].reason


def test_a_method_put_into_a_head_makes_it_unknown():
    head = LinearClsHead(2, 5)
    head.forward = lambda feats: feats
    assert 'forward' in transferred(head, LinearClsHead(2, 5), ['a', 'b'], ['b', 'a'])[1].heads[0].reason


def test_a_head_of_the_same_classes_is_loaded_whole_known_or_not():
    state, report = transferred(Backwards(2, 5), Backwards(2, 5), ['a', 'b'], ['A', 'B'])
    assert len(state) == 2 and not report.heads


def test_rows_say_what_came_out_of_the_checkpoint():
    case = CASES['points that read the classes of a coarse mask']
    _, report = transfer_classes(case.build(3, 0), case.build(2, 1).state_dict(), ['a', 'b'], ['b', 'x', 'a'])
    rows = report.rows['head.fc_logits.weight'].squeeze(-1)
    assert rows[:, :7].any(1).tolist() == [True, False, True]
    assert rows[0].tolist() == [True] * 7 + [True, False, True]
    assert set(report.rows) == {
        f'head.{name}' for name in ('fc_logits.weight', 'fc_logits.bias', 'fcs.0.conv.weight', 'fcs.1.conv.weight')
    }


def test_new_rows_keep_their_start_and_the_given_state_is_not_changed():
    head, other = LinearClsHead(3, 5), LinearClsHead(2, 5)
    found = model_of(other).state_dict()
    before = copy.deepcopy(found)
    state, _ = transfer_classes(model_of(head), found, ['a', 'b'], ['x', 'a', 'y'])
    assert torch.equal(state['head.fc.weight'][[0, 2]], head.fc.weight[[0, 2]])
    assert torch.equal(state['head.fc.weight'][1], other.fc.weight[0])
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_a_head_that_the_checkpoint_lacks_or_has_in_another_width_is_told():
    for other, said in ((nn.Linear(2, 2), 'not in the checkpoint'), (LinearClsHead(2, 4), '(2, 4)')):
        state, report = transferred(LinearClsHead(3, 5), other, ['a', 'b'], ['x', 'a', 'b'])
        assert report.heads[0].kept == [] and said in report.heads[0].reason
        assert 'head.fc.weight' not in state


def test_one_of_several_tasks_is_not_known():
    from mmpretrain.models import MultiTaskHead

    def tasks(classes):
        heads = {name: dict(type='LinearClsHead', num_classes=classes) for name in ('one', 'two')}
        return MultiTaskHead(heads, in_channels=5)

    state, report = transferred(tasks(3), tasks(2), ['a', 'b'], ['x', 'a', 'b'])
    assert [head.kept for head in report.heads] == [[], []] and all('tasks' in head.reason for head in report.heads)


def test_things_and_stuff_of_a_panoptic_model_are_apart():
    from mmdet.models import PanopticFPNHead

    def panoptic(things, stuff):
        boxes = CASES['boxes class by class'].build(things, things)['head']
        pixels = PanopticFPNHead(things, stuff, in_channels=8, inner_channels=32, start_level=0, end_level=1)
        return nn.ModuleDict({'boxes': boxes, 'pixels': pixels})

    before, after = panoptic(3, 2), panoptic(4, 3)
    old, new = ['a', 'b', 'c', 'sky', 'sea'], ['c', 'x', 'b', 'a', 'sea', 'fog', 'sky']
    state, report = transfer_classes(after, before.state_dict(), old, new)
    assert torch.equal(state['boxes.fc_cls.bias'][[3, 2, 0, 4]], before['boxes'].fc_cls.bias)
    assert torch.equal(state['pixels.conv_logits.bias'][[2, 0, 3]], before['pixels'].conv_logits.bias)
    assert [head.new for head in report.heads] == [['x'], ['fog']]


def test_names_of_data_parallel_and_of_a_plain_detector_are_found():
    head, other = LinearClsHead(3, 5), LinearClsHead(2, 5)
    plain = {f'head.{name}': value for name, value in other.state_dict().items()}
    parallel = {f'module.{name}': value for name, value in plain.items()}
    both = nn.ModuleDict({'student': model_of(head), 'teacher': model_of(copy.deepcopy(head))})
    wrapped = nn.ModuleDict({'module': model_of(head)})
    for model, found in ((model_of(head), parallel), (both, plain), (wrapped, plain)):
        state, report = transfer_classes(model, found, ['a', 'b'], ['b', 'x', 'a'])
        assert state.keys() == found.keys() and all(len(value) == 3 for value in state.values())
        assert report.rows.keys() == dict(model.named_parameters()).keys()


def test_versions_of_modules_come_along():
    found = model_of(LinearClsHead(2, 5)).state_dict()
    state, _ = transfer_classes(model_of(LinearClsHead(3, 5)), found, ['a', 'b'], ['b', 'x', 'a'])
    assert state._metadata == found._metadata
