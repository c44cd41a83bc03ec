"""Fine-tune a pre-trained model of timm, with timm's own data pipeline and schedule; then see what it kept.

    python examples/timm_model.py [--epochs 3]

`make data` writes the images and ImageNet weights. timm loads them from a file here; without `file` it
downloads its own.
"""

import argparse
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.scheduler import create_scheduler_v2
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from olor_mm.layers import layer_index, rollback_groups
from olor_mm.measure import layer_drift, prediction_agreement, pretrained_state
from olor_mm.optim import AdamWOLOR

NAME = 'mobilenetv2_100'


def weights_for_timm(file: str, converted: Path) -> dict:
    """Where torchvision's weights are under timm's names; the architecture and its order are the same."""
    converted.parent.mkdir(parents=True, exist_ok=True)
    names = timm.create_model(NAME).state_dict()
    torch.save(dict(zip(names, torch.load(file, weights_only=True).values())), converted)
    return dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(converted)))


def main(argv: list[str] | None = None) -> tuple[torch.nn.Module, AdamWOLOR, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--converted', type=Path, default='work_dirs/mobilenet_v2_timm.pth')
    parser.add_argument('--epochs', type=int, default=3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    file = weights_for_timm(args.weights, args.converted)
    old, model = timm.create_model(NAME, **file), timm.create_model(NAME, **file, num_classes=10)
    # timm leaves out the classifier, which has another number of classes
    pretrained = {name: p for name, p in old.state_dict().items() if not name.startswith('classifier.')}
    options = lambda name, p: dict(weight_decay=0.0) if p.ndim < 2 else {}  # noqa: E731
    groups = rollback_groups(model, pretrained, max_drift=(0.04, 0.16), options=options)
    optimizer = AdamWOLOR(groups, lr=1e-3, weight_decay=0.05)

    config = resolve_data_config(dict(input_size=(3, 64, 64), crop_pct=1.0), model=model)
    transform = create_transform(**config)
    train, test = (create_dataset('', args.data, split=split, transform=transform) for split in ('train', 'test'))
    loader, unseen = DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=200)
    timing = dict(warmup_epochs=1, warmup_lr=1e-4, updates_per_epoch=len(loader), step_on_epochs=False)
    schedule, _ = create_scheduler_v2(optimizer, 'cosine', args.epochs, **timing)
    for step, (images, labels) in enumerate(batch for _ in range(args.epochs) for batch in loader):
        optimizer.zero_grad()
        cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        schedule.step_update(step + 1)

    found = dict(drift=max(layer_drift(model.state_dict(), pretrained, layer_index(model)).values()))
    imagenet = {name: value.clone() for name, value in old.state_dict().items()}
    statistics = {name: value for name, value in imagenet.items() if 'running' in name}
    with torch.no_grad():
        found['accuracy'] = torch.cat([model.eval()(x).argmax(1) == y for x, y in unseen]).float().mean().item()
        before = torch.cat([old.eval()(x) for x, _ in unseen])
        # the old classifier now: its own head and norm statistics, around the fine-tuned weights
        old.load_state_dict(pretrained_state(model.state_dict(), imagenet, statistics)[0])
        found['agreement'] = prediction_agreement(torch.cat([old(x) for x, _ in unseen]), before)
    print(', '.join(f'{name} {value:.3f}' for name, value in found.items()))
    return model, optimizer, found


if __name__ == '__main__':
    main()
