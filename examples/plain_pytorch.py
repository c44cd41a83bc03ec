"""Fine-tune torchvision's ImageNet MobileNetV2 on a folder of images, in a plain PyTorch loop; then see what it kept.

    python examples/plain_pytorch.py [--epochs 3] [--resume]

`make data` writes the images and the weights. `--resume` goes on after the last epoch that was finished.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from olor_mm.layers import layer_index, rollback_groups
from olor_mm.measure import layer_drift, prediction_agreement, pretrained_state
from olor_mm.optim import AdamWOLOR

NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRANSFORM = transforms.Compose([transforms.Resize(64), transforms.ToTensor(), NORMALIZE])
BUDGET = (0.04, 0.16)  # how far weights may move: 4 % of their norm in the first layer, up to 16 % in the last


@torch.no_grad()
def scores(model: torch.nn.Module, weights: dict, loader: DataLoader) -> torch.Tensor:
    model.load_state_dict(weights)
    return torch.cat([model.eval()(images) for images, _ in loader])


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--checkpoint', type=Path, default='work_dirs/plain_pytorch.pth')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--resume', action='store_true')
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    train, test = (datasets.ImageFolder(f'{args.data}/{split}', TRANSFORM) for split in ('train', 'test'))
    loader, unseen = DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=200)

    model = models.mobilenet_v2(num_classes=len(train.classes))
    imagenet = torch.load(args.weights, weights_only=True)
    weights = {name: value for name, value in imagenet.items() if not name.startswith('classifier.')}  # a new head
    model.load_state_dict(weights, strict=False)
    optimizer = AdamWOLOR(rollback_groups(model, pretrained=weights, max_drift=BUDGET), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))

    first = 0
    if args.resume:  # the anchors are in the state of the optimizer, so what is in the model by now does not matter
        saved = torch.load(args.checkpoint, weights_only=True)
        first = saved.pop('epoch')
        for name, part in dict(model=model, optimizer=optimizer, schedule=schedule).items():
            part.load_state_dict(saved[name])
    for epoch in range(first, args.epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        parts = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), schedule=schedule.state_dict())
        args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**parts, 'epoch': epoch + 1}, args.checkpoint)

    right = scores(model, model.state_dict(), unseen).argmax(1) == torch.tensor(test.targets)
    found = dict(accuracy=right.float().mean().item())
    found['drift'] = max(layer_drift(model.state_dict(), weights, layer_index(model)).values())
    # what the old classifier says now: its own head and norm statistics, around the fine-tuned weights
    statistics = {name: value for name, value in imagenet.items() if 'running' in name}
    old, _ = pretrained_state(model.state_dict(), imagenet, statistics)
    found['agreement'] = prediction_agreement(*(scores(models.mobilenet_v2(), w, unseen) for w in (old, imagenet)))
    print(', '.join(f'{name} {value:.3f}' for name, value in found.items()))
    return found


if __name__ == '__main__':
    main()
