"""Fine-tune a pre-trained model of timm, with timm's own data pipeline and schedule.

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

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR

NAME = 'mobilenetv2_100'


def weights_for_timm(file: str, converted: Path) -> Path:
    """Write torchvision's weights under timm's names; the architecture and its order are the same."""
    converted.parent.mkdir(parents=True, exist_ok=True)
    names = timm.create_model(NAME).state_dict()
    torch.save(dict(zip(names, torch.load(file, weights_only=True).values())), converted)
    return converted


def main(argv: list[str] | None = None) -> tuple[torch.nn.Module, AdamWOLOR]:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--converted', type=Path, default='work_dirs/mobilenet_v2_timm.pth')
    parser.add_argument('--epochs', type=int, default=3)
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    file = weights_for_timm(args.weights, args.converted)
    model = timm.create_model(NAME, pretrained=True, num_classes=10, pretrained_cfg_overlay=dict(file=str(file)))
    # timm leaves out the classifier, which has another number of classes
    head = set(model.get_classifier().parameters())
    pretrained = [name for name, p in model.named_parameters() if p not in head]

    def no_decay(name: str, p: torch.nn.Parameter) -> dict:
        return dict(weight_decay=0.0) if p.ndim < 2 else {}

    groups = rollback_groups(model, pretrained, max_level=1e-2, options=no_decay)
    optimizer = AdamWOLOR(groups, lr=1e-3, weight_decay=0.05)

    config = resolve_data_config(dict(input_size=(3, 64, 64), crop_pct=1.0), model=model)
    train, test = (
        create_dataset('', args.data, split=split, transform=create_transform(**config)) for split in ('train', 'test')
    )
    loader = DataLoader(train, batch_size=50, shuffle=True)
    schedule, _ = create_scheduler_v2(
        optimizer, 'cosine', args.epochs, warmup_epochs=1, warmup_lr=1e-4, updates_per_epoch=len(loader),
        step_on_epochs=False,
    )  # fmt: skip
    for epoch in range(args.epochs):
        model.train()
        for step, (images, labels) in enumerate(loader):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step_update(epoch * len(loader) + step + 1)
        model.eval()
        with torch.no_grad():
            right = [(model(x).argmax(1) == y).float().mean() for x, y in DataLoader(test, batch_size=200)]
        print(f'epoch {epoch + 1}: accuracy {torch.stack(right).mean():.3f}')
    return model, optimizer


if __name__ == '__main__':
    main()
