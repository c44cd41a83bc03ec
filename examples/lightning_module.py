"""Fine-tune torchvision's ImageNet MobileNetV2 with Lightning; then see what it kept.

    python examples/lightning_module.py [--epochs 3] [--resume]

`make data` writes the images and the weights. `--resume` goes on from the last checkpoint.
"""

import argparse

import lightning
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from olor_mm.layers import layer_index, rollback_groups
from olor_mm.measure import layer_drift, prediction_agreement, pretrained_state
from olor_mm.optim import AdamWOLOR


class Classifier(lightning.LightningModule):
    def __init__(self, weights: str, num_classes: int):
        super().__init__()
        self.model = models.mobilenet_v2(num_classes=num_classes)
        self.imagenet = torch.load(weights, weights_only=True)
        loaded = {name: value for name, value in self.imagenet.items() if not name.startswith('classifier.')}
        self.model.load_state_dict(loaded, strict=False)
        self.pretrained = loaded  # the head is new

    def configure_optimizers(self) -> dict:
        groups = rollback_groups(self.model, self.pretrained, max_drift=(0.04, 0.16))  # of the first and the last layer
        optimizer = AdamWOLOR(groups, lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return dict(optimizer=optimizer, lr_scheduler=dict(scheduler=schedule, interval='step'))

    def training_step(self, batch, index: int) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch, index: int) -> None:
        images, labels = batch
        self.log('accuracy', (self.model(images).argmax(1) == labels).float().mean())
        # the old classifier: its own head and norm statistics, around the fine-tuned weights
        statistics = {name: value for name, value in self.imagenet.items() if 'running' in name}
        old, scores = models.mobilenet_v2(), []
        for weights in (pretrained_state(self.model.state_dict(), self.imagenet, statistics)[0], self.imagenet):
            old.load_state_dict(weights)
            scores.append(old.eval()(images))
        self.log('agreement', prediction_agreement(*scores))
        self.log('drift', max(layer_drift(self.model.state_dict(), self.pretrained, layer_index(self.model)).values()))


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
    options = dict(logger=False, enable_progress_bar=False, log_every_n_steps=10, num_sanity_val_steps=0)
    trainer = lightning.Trainer(accelerator='cpu', max_epochs=args.epochs, callbacks=[last], **options)
    loaders = DataLoader(train, batch_size=50, shuffle=True), DataLoader(test, batch_size=200)
    checkpoint = f'{args.work_dir}/last.ckpt' if args.resume else None
    trainer.fit(Classifier(args.weights, len(train.classes)), *loaders, ckpt_path=checkpoint)
    print(', '.join(f'{name} {float(value):.3f}' for name, value in trainer.callback_metrics.items()))
    return trainer


if __name__ == '__main__':
    main()
