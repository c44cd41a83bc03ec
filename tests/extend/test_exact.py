"""A model whose old outputs stay the same bits while a branch of its own learns new classes."""

import copy

import pytest
import torch
from exactness import (
    NEW,
    batch,
    build,
    exact,
    images,
    is_same,
    old_classes,
    outputs,
    part,
    predictions,
    read,
    stock,
    trained,
)
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import load_checkpoint
from torch import nn

from olor_mm.extend.exact import ExactModel, exact_config

MODELS = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
]
OTHERS = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-769x769.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
]


def teach(model: nn.Module, samples: list[dict], steps: int = 3) -> dict:
    """Train; the last losses."""
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
    model.train()
    for _ in range(steps):
        losses = model.train_step(batch(copy.deepcopy(samples)), wrapper)
    return losses


@pytest.mark.parametrize(
    'name, number',
    [*((name, 5) for name in MODELS), *(pytest.param(name, 50, marks=pytest.mark.slow) for name in MODELS + OTHERS)],
)
def test_old_outputs_are_the_same_bits_before_and_after_training_and_after_export(name, number, tmp_path):
    cfg, file = stock(name), tmp_path / 'old.pth'
    old, classes = trained(cfg, file), len(old_classes(cfg))
    samples = images(cfg, number)
    before = outputs(old, samples, classes)
    assert any(len(found['labels' if 'labels' in found else 'logits']) for found in before)

    model = exact(cfg, file)
    assert is_same(outputs(model, samples[:5], classes), before[:5])
    start = copy.deepcopy(model.new_branches.state_dict())
    assert any(float(loss) for loss in teach(model, samples[:2]).values())
    found = predictions(model, samples)
    assert is_same(part(found, classes), before)
    values = model.state_dict()
    assert all(torch.equal(values[key], value) for key, value in old.state_dict().items())
    assert not all(torch.equal(value, start[key]) for key, value in model.new_branches.state_dict().items())

    exported = tmp_path / 'state_dict.pth'
    torch.save(values, exported)
    again = build(exact_config(cfg, old_classes(cfg), NEW))
    again.load_state_dict(torch.load(exported))
    assert is_same(predictions(again, samples), found)


def test_parameters_are_what_they_were_while_the_old_model_predicts(tmp_path):
    """By ``requires_grad`` torch chooses how to multiply, and so how it rounds."""
    cfg, file = stock(MODELS[0]), tmp_path / 'old.pth'
    old, model = trained(cfg, file), exact(cfg, file)
    expected, seen = {name: p.requires_grad for name, p in old.named_parameters()}, []
    assert {*expected.values()} == {True, False}, 'the first stage of the stock model is frozen'
    named = dict(model.named_parameters())
    model.neck.register_forward_hook(lambda *_: seen.append({name: named[name].requires_grad for name in expected}))
    outputs(model, images(cfg, 1), 1)
    model.eval()(torch.zeros(1, 3, 96, 96), mode='tensor')
    assert seen == [expected, expected] and not any(named[name].requires_grad for name in expected)


@pytest.mark.slow
def test_attention_rounds_as_in_the_old_model(tmp_path):
    cfg, file = (
        stock('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', is_wide=True),
        tmp_path / 'old.pth',
    )
    cfg.model.backbone.depth, cfg.model.neck.in_channels = 18, [128, 256, 512]
    cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 1
    old, samples = trained(cfg, file), images(cfg, 50)
    assert is_same(outputs(exact(cfg, file), samples, 80), outputs(old, samples, 80))


@pytest.mark.parametrize('name', [*MODELS[:4]], ids=['RetinaNet', 'Mask R-CNN', 'RTMDet', 'SegFormer'])
def test_images_without_new_objects_are_trained_on(name, tmp_path):
    cfg, file = stock(name), tmp_path / 'old.pth'
    trained(cfg, file)
    losses = teach(exact(cfg, file), images(cfg, 2, first=10), 1)
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.fixture(params=MODELS[:1] + MODELS[3:4], ids=['RetinaNet', 'SegFormer'])
def kept(request, tmp_path):
    """A stock config, its checkpoint, and the model that keeps it."""
    cfg, file = stock(request.param), tmp_path / 'old.pth'
    trained(cfg, file)
    return cfg, file, exact(cfg, file)


def parts_of_old(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name and not name.startswith('new_branches')]


def test_the_old_part_is_in_eval_mode_and_has_no_gradients(kept):
    cfg, _, model = kept
    for mode in (True, False, True):
        model.train(mode)
        assert model.training is mode and not any(module.training for module in parts_of_old(model))
        assert all(module.training is mode for module in model.new_branches[-1].modules())
    losses = model(**model.data_preprocessor(batch(images(cfg, 2)), True), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert not any(module.training for module in parts_of_old(model))
    for name, p in model.named_parameters():
        assert p.requires_grad is name.startswith('new_branches') and p.requires_grad is (p.grad is not None), name


def test_what_is_not_of_classes_starts_from_the_old_weights(kept):
    _, _, model = kept
    values, branch = model.state_dict(), model.new_branches[0].state_dict()
    same = {
        key for key, value in branch.items() if value.shape == values[key].shape and torch.equal(value, values[key])
    }
    assert 0 < len(branch) - len(same) <= 2 and all('cls' in key or 'conv_seg' in key for key in branch.keys() - same)


def test_a_checkpoint_of_the_model_itself_is_loaded_as_it_is(kept, tmp_path):
    cfg, _, model = kept
    teach(model, images(cfg, 2), 1)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'new.pth')
    again = exact(cfg, tmp_path / 'new.pth').state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize('lost', ['all', 'one weight', 'statistics', 'one of another shape'])
def test_a_model_without_all_old_weights_neither_trains_nor_predicts(kept, lost, tmp_path):
    cfg, file, _ = kept
    content = torch.load(file)
    state = content['state_dict']
    name = [key for key in state if key.endswith('running_var' if lost == 'statistics' else 'conv.weight')][-1]
    if lost == 'one of another shape':
        state[name] = state[name][1:]
    else:
        del state[name]
    torch.save(content, tmp_path / 'cut.pth')
    model = exact(cfg, None if lost == 'all' else tmp_path / 'cut.pth')
    named = r'load_from' if lost == 'all' else rf'1 of \d+ .*{name}'
    with pytest.raises(ValueError, match=named):
        teach(model, images(cfg, 2), 1)
    with pytest.raises(ValueError, match=named):
        outputs(model, images(cfg, 1), 1)


def test_a_copy_is_a_model_of_its_own(kept):
    cfg, _, model = kept
    other = copy.deepcopy(model)
    before = outputs(other, images(cfg, 1), 1, of_new=True)
    for p in model.parameters():
        p.data.zero_()
    assert isinstance(other, ExactModel) and other.backbone is not model.backbone
    assert is_same(outputs(other, images(cfg, 1), 1, of_new=True), before)


@pytest.mark.parametrize('name', [MODELS[0], MODELS[1], MODELS[3]], ids=['RetinaNet', 'Mask R-CNN', 'SegFormer'])
def test_several_steps_of_new_classes_keep_all_before_them(name, tmp_path):
    cfg, file = stock(name), tmp_path / '0.pth'
    trained(cfg, file)
    names = old_classes(cfg)
    samples = images(cfg, 2)
    for step in range(1, 4):
        added = [f'{step}a', f'{step}b']
        before = outputs(build_and_load(cfg, file), samples, len(names))
        cfg, names = exact_config(cfg, names, added), names + added
        model = build_and_load(cfg, file)
        of_first = len(names) - len(added)
        teach(model, images(cfg, 2, of_first), 2)
        assert is_same(outputs(model, samples, of_first), before)
        file = tmp_path / f'{step}.pth'
        torch.save(dict(state_dict=model.state_dict()), file)
    assert cfg.model.branches[1:] == [2, 2, 2]


def build_and_load(cfg: Config, file) -> nn.Module:
    model = build(cfg)
    model.init_weights()
    load_checkpoint(model, str(file), logger='silent')
    return model


SLIDE = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'windows'])
def test_features_are_computed_once_for_an_image_or_window(test_cfg, tmp_path):
    cfg, file = stock(MODELS[3]), tmp_path / 'old.pth'
    cfg.model.test_cfg = test_cfg
    old, classes = trained(cfg, file), len(old_classes(cfg))
    calls = []
    old.backbone.register_forward_hook(lambda *_: calls.append('old'))
    model = exact(cfg, file)
    model.backbone.register_forward_hook(lambda *_: calls.append('exact'))
    samples = images(cfg, 1)
    assert is_same(outputs(old, samples, classes), outputs(model, samples, classes))
    assert calls.count('old') == calls.count('exact') == (1 if test_cfg is not SLIDE else 4)
    assert model._features is None, 'nothing is kept from one call to the next'


def test_a_pixel_is_of_the_new_class_that_its_branch_chooses_and_else_of_the_old_one(tmp_path):
    cfg, file = stock(MODELS[3]), tmp_path / 'old.pth'
    old, classes = trained(cfg, file), len(old_classes(cfg))
    model, samples = exact(cfg, file), images(cfg, 2)
    (bias,) = [p for name, p in model.new_branches.named_parameters() if name.endswith('conv_seg.bias')]
    bias.data.copy_(torch.tensor([0.0, 0.0, 0.01]))  # of two new classes and none
    chosen = []
    hook = model.new_branches[0].decode_head.register_forward_hook(lambda *a: chosen.append(a[-1]))
    found = predictions(model, samples)
    hook.remove()
    stock_labels = [result['label'] for result in predictions(old, samples)]
    for result, old_label, logits in zip(found, stock_labels, chosen):
        size = result['label'].shape[-2:]
        own = nn.functional.interpolate(logits, size, mode='bilinear', align_corners=False).argmax(1)
        assert 0 < (own < 2).sum() < own.numel()
        assert torch.equal(result['label'], torch.where(own < 2, own + classes, old_label))
        assert torch.equal(result['logits'].argmax(0, keepdim=True), result['label'])


def test_a_model_of_one_output_for_two_classes_gets_a_branch(tmp_path):
    cfg, file = stock(MODELS[3]), tmp_path / 'old.pth'
    cfg.model.decode_head.update(num_classes=2, out_channels=1, threshold=0.5)
    cfg.model.decode_head.loss_decode.use_sigmoid = True
    old, samples = trained(cfg, file), images(cfg, 2)
    model, before = exact(cfg, file), predictions(old, samples)
    teach(model, samples)
    found = predictions(model, samples)
    assert is_same(part(found, 1), part(before, 1)) and {len(one['logits']) for one in found} == {1 + len(NEW)}
    for one, was in zip(found, before):
        is_new = one['label'] >= 2
        assert is_new.any() and torch.equal(one['label'][~is_new], was['label'][~is_new])


@pytest.mark.parametrize('name', [MODELS[0], MODELS[1], MODELS[3]], ids=['RetinaNet', 'Mask R-CNN', 'SegFormer'])
def test_a_branch_learns_from_the_labels_of_its_classes_alone(name, tmp_path, monkeypatch):
    cfg, file = stock(name), tmp_path / 'old.pth'
    trained(cfg, file)
    model, first = exact(cfg, file), len(old_classes(cfg))
    seen, kind = [], type(model.new_branches[0])
    loss = kind.loss
    monkeypatch.setattr(kind, 'loss', lambda self, x, samples, *a: seen.extend(samples) or loss(self, x, samples, *a))
    samples = images(cfg, 2)
    teach(model, samples, 1)
    assert len(seen) == 2
    for own, sample in zip(seen, samples):
        if cfg.default_scope == 'mmseg':
            label, given = own.gt_sem_seg.data, sample['data_samples'].gt_sem_seg.data
            for new, old in ((0, given == first), (1, given == first + 1), (2, given < first), (255, given == 255)):
                assert torch.equal(label == new, old) and old.any()
        else:
            gt, given = own.gt_instances, sample['data_samples'].gt_instances
            assert gt.labels.tolist() == [0, 1] and torch.equal(gt.bboxes, given.bboxes.tensor[2:])
            assert given.labels.tolist() == [0, first - 1, first, first + 1], 'samples stay as they are'


@pytest.mark.parametrize(
    'name, reason',
    [
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 'panoptic'),
        ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py', 'text'),
        ('mmseg::san/san-vit-b16_coco-stuff164k-640x640.py', 'backbone'),
        ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', 'backbone'),
        ('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py', 'teacher'),
    ],
)
def test_a_model_that_allows_no_branch_is_refused_with_its_reason(name, reason):
    cfg = read(name)
    with pytest.raises(ValueError, match=reason):
        exact_config(cfg, ['a', 'b'], NEW)
    model = dict(cfg.model, old_type=cfg.model.type, type='olor_mm.ExactModel', branches=[80, 2])
    with pytest.raises(ValueError, match=reason):
        build(Config(dict(model=model, default_scope=cfg.default_scope)))


def test_a_wrong_number_of_old_classes_or_no_new_one_is_refused():
    cfg = stock(MODELS[0])
    with pytest.raises(ValueError, match='branches begins with 79'):
        build(exact_config(cfg, old_classes(cfg)[1:], NEW))
    with pytest.raises(ValueError, match='82 classes, not 80'):
        exact_config(exact_config(cfg, old_classes(cfg), NEW), old_classes(cfg), ['newest'])
    with pytest.raises(ValueError, match='is new'):
        exact_config(cfg, old_classes(cfg), ['Old_3', 'old-4'])
    with pytest.raises(ValueError, match="old_type='Retina'"):
        build(
            Config(
                dict(default_scope='mmdet', model=dict(type='olor_mm.ExactModel', old_type='Retina', branches=[1, 1]))
            )
        )


def test_hooks_that_would_change_or_refuse_the_old_part_are_left_out():
    cfg = stock(MODELS[2])
    assert [hook.ema_type for hook in cfg.custom_hooks if hook.type == 'EMAHook'] == ['ExpMomentumEMA']
    cfg.custom_hooks.append(dict(type='NumClassCheckHook'))
    hooks = exact_config(cfg, old_classes(cfg), NEW).custom_hooks
    assert [hook.type for hook in hooks] == [hook.type for hook in cfg.custom_hooks[:-1]]
    assert [hook.ema_type for hook in hooks if hook.type == 'EMAHook'] == ['MomentumAnnealingEMA']
    assert 'custom_hooks' not in exact_config(stock(MODELS[0]), old_classes(cfg), NEW)
