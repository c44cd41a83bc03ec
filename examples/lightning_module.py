"""Fine-tune torchvision's ImageNet MobileNetV2 with Lightning.

    python examples/lightning_module.py [--epochs 3] [--resume]

`make data` writes the images and the weights. `--resume` goes on from the last checkpoint.
"""

import argparse

import lightning
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR


class Classifier(lightning.LightningModule):
    def __init__(self, weights: str, num_classes: int):
        super().__init__()
        self.model = models.mobilenet_v2(num_classes=num_classes)
        loaded = torch.load(weights, weights_only=True)
        loaded = {name: value for name, value in loaded.items() if not name.startswith('classifier.')}  # a new head
        self.model.load_state_dict(loaded, strict=False)
        self.pretrained = list(loaded)

    def configure_optimizers(self) -> dict:
        groups = rollback_groups(self.model, self.pretrained, max_level=1e-2)
        optimizer = AdamWOLOR(groups, lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return dict(optimizer=optimizer, lr_scheduler=dict(scheduler=schedule, interval='step'))

    def training_step(self, batch, index: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch, index: int) -> None:
        images, labels = batch
        self.log('accuracy', (self.model(images).argmax(1) == labels).float().mean())


def main(argv: list[str] | None = None) -> lightning.Trainer:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--work-dir', default='work_dirs/lightning_module')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--resume', action='store_true')
    args = parser.parse_args(argv)
    lightning.seed_everything(0)

    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = transforms.Compose([transforms.Resize(64), transforms.ToTensor(), normalize])
    train, test = (datasets.ImageFolder(f'{args.data}/{split}', transform) for split in ('train', 'test'))
    last = lightning.pytorch.callbacks.ModelCheckpoint(args.work_dir, filename='last', enable_version_counter=False)
    trainer = lightning.Trainer(
        accelerator='cpu', max_epochs=args.epochs, callbacks=[last], logger=False, enable_progress_bar=False,
        log_every_n_steps=10,
    )  # fmt: skip
    trainer.fit(
        Classifier(args.weights, len(train.classes)),
        DataLoader(train, batch_size=50, shuffle=True),
        DataLoader(test, batch_size=200),
        ckpt_path=f'{args.work_dir}/last.ckpt' if args.resume else None,
    )
    print(f'accuracy {trainer.callback_metrics["accuracy"]:.3f}')
    return trainer


if __name__ == '__main__':
    main()
