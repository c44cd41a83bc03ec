"""Fine-tune a model of HuggingFace's transformers with its Trainer; then see what it kept.

    python examples/huggingface_trainer.py [--epochs 3] [--resume]

`make data` writes images and ImageNet weights. `save_pretrained` makes a folder of them, as a name on the hub would be.
"""

import argparse

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from transformers import AutoModelForImageClassification, MobileNetV2Config, Trainer, TrainingArguments

from olor_mm.layers import layer_index, rollback_groups
from olor_mm.measure import layer_drift, prediction_agreement, pretrained_state
from olor_mm.optim import AdamWOLOR


def collate(batch: list) -> dict:
    images, labels = zip(*batch)
    return dict(pixel_values=torch.stack(images), labels=torch.tensor(labels))


def save_pretrained(file: str, folder: str) -> None:
    """Put torchvision's weights into HuggingFace's model of the same architecture; their order is the same."""
    config = MobileNetV2Config(num_labels=1000, tf_padding=False, layer_norm_eps=1e-5)
    model = AutoModelForImageClassification.from_config(config)
    model.load_state_dict(dict(zip(model.state_dict(), torch.load(file, weights_only=True).values())))
    model.save_pretrained(folder)


def main(argv: list[str] | None = None) -> tuple[Trainer, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--work-dir', default='work_dirs/huggingface_trainer')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--resume', action='store_true')
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    save_pretrained(args.weights, f'{args.work_dir}/pretrained')
    load, folder = AutoModelForImageClassification.from_pretrained, f'{args.work_dir}/pretrained'

    model, info = load(folder, num_labels=10, ignore_mismatched_sizes=True, output_loading_info=True)
    new = {*info['missing_keys'], *(key for key, *_ in info['mismatched_keys'])}
    pretrained = {name: value.clone() for name, value in model.state_dict().items() if name not in new}
    optimizer = AdamWOLOR(rollback_groups(model, pretrained, max_drift=(0.04, 0.16)), lr=1e-3, weight_decay=0.05)
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = transforms.Compose([transforms.Resize(64), transforms.ToTensor(), normalize])
    train, test = (datasets.ImageFolder(f'{args.data}/{split}', transform) for split in ('train', 'test'))
    arguments = TrainingArguments(
        args.work_dir, num_train_epochs=args.epochs, per_device_train_batch_size=50, lr_scheduler_type='cosine',
        save_strategy='epoch', report_to=[], use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, collate, train, optimizers=(optimizer, None))  # it makes the schedule
    if args.resume and hasattr(torch.serialization, 'add_safe_globals'):
        # the Trainer saves numpy's random state, which torch does not open by itself from version 2.6 on
        numpy_state = [np.random.mtrand.RandomState().get_state()[1].__reduce__()[0], np.ndarray, np.dtype]
        torch.serialization.add_safe_globals([*numpy_state, type(np.dtype('uint32'))])
    trainer.train(resume_from_checkpoint=args.resume)

    found = dict(drift=max(layer_drift(model.state_dict(), pretrained, layer_index(model)).values()))
    old, unseen = load(folder), DataLoader(test, batch_size=200)
    imagenet = {name: value.clone() for name, value in old.state_dict().items()}
    statistics = {name: value for name, value in imagenet.items() if 'running' in name}
    with torch.no_grad():
        scores, before = (torch.cat([m.eval()(x).logits for x, _ in unseen]) for m in (model, old))
        # the old classifier now: its own head and norm statistics, around the fine-tuned weights
        old.load_state_dict(pretrained_state(model.state_dict(), imagenet, statistics)[0])
        found['agreement'] = prediction_agreement(torch.cat([old(x).logits for x, _ in unseen]), before)
    found['accuracy'] = (scores.argmax(1) == torch.tensor(test.targets)).float().mean().item()
    print(', '.join(f'{name} {value:.3f}' for name, value in found.items()))
    return trainer, found


if __name__ == '__main__':
    main()
