"""Fine-tune torchvision's ImageNet MobileNetV2 on a folder of images, in a plain PyTorch loop.

    python examples/plain_pytorch.py [--epochs 3] [--resume]

`make data` writes the images and the weights. `--resume` goes on after the last epoch that was finished.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR

TRANSFORM = transforms.Compose(
    [transforms.Resize(64), transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)


@torch.no_grad()
def accuracy(model: torch.nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in loader)
    return right / len(loader.dataset)


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--checkpoint', type=Path, default='work_dirs/plain_pytorch.pth')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--resume', action='store_true')
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    train, test = (datasets.ImageFolder(f'{args.data}/{split}', TRANSFORM) for split in ('train', 'test'))
    loader = DataLoader(train, batch_size=50, shuffle=True)

    model = models.mobilenet_v2(num_classes=len(train.classes))
    weights = torch.load(args.weights, weights_only=True)
    weights = {name: value for name, value in weights.items() if not name.startswith('classifier.')}  # a new head
    model.load_state_dict(weights, strict=False)
    optimizer = AdamWOLOR(rollback_groups(model, pretrained=weights, max_level=1e-2), lr=1e-3, weight_decay=0.05)
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
        print(f'epoch {epoch + 1}: accuracy {accuracy(model, DataLoader(test, batch_size=200)):.3f}')
    return accuracy(model, DataLoader(test, batch_size=200))


if __name__ == '__main__':
    main()
