"""Fine-tune a model of HuggingFace's transformers with its Trainer.

    python examples/huggingface_trainer.py [--epochs 3] [--resume]

`make data` writes the images and ImageNet weights. `save_pretrained` puts them into a folder, which stands in for a
name on the hub.
"""

import argparse

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import datasets, transforms
from transformers import AutoModelForImageClassification, MobileNetV2Config, Trainer, TrainingArguments

from olor_mm.layers import rollback_groups
from olor_mm.optim import AdamWOLOR


class Images(Dataset):
    def __init__(self, folder: str):
        normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        transform = transforms.Compose([transforms.Resize(64), transforms.ToTensor(), normalize])
        self.images = datasets.ImageFolder(folder, transform)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        image, label = self.images[i]
        return dict(pixel_values=image, labels=label)


def save_pretrained(file: str, folder: str) -> None:
    """Put torchvision's weights into HuggingFace's model of the same architecture; their order is the same."""
    config = MobileNetV2Config(num_labels=1000, tf_padding=False, layer_norm_eps=1e-5)
    model = AutoModelForImageClassification.from_config(config)
    model.load_state_dict(dict(zip(model.state_dict(), torch.load(file, weights_only=True).values())))
    model.save_pretrained(folder)


def main(argv: list[str] | None = None) -> Trainer:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', default='data/digits', help='folder with train/CLASS/*.png and test/CLASS/*.png')
    parser.add_argument('--weights', default='data/weights/mobilenet_v2_torchvision.pth')
    parser.add_argument('--work-dir', default='work_dirs/huggingface_trainer')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--resume', action='store_true')
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    save_pretrained(args.weights, f'{args.work_dir}/pretrained')
    model, info = AutoModelForImageClassification.from_pretrained(
        f'{args.work_dir}/pretrained', num_labels=10, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = {*info['missing_keys'], *(key for key, *_ in info['mismatched_keys'])}
    groups = rollback_groups(model, pretrained=model.state_dict().keys() - new, max_level=1e-2)
    optimizer = AdamWOLOR(groups, lr=1e-3, weight_decay=0.05)

    arguments = TrainingArguments(
        args.work_dir, num_train_epochs=args.epochs, per_device_train_batch_size=50, per_device_eval_batch_size=200,
        lr_scheduler_type='cosine', eval_strategy='epoch', save_strategy='epoch', report_to=[], use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Images(f'{args.data}/train'),
        eval_dataset=Images(f'{args.data}/test'),
        compute_metrics=lambda given: dict(accuracy=(given.predictions.argmax(1) == given.label_ids).mean()),
        optimizers=(optimizer, None),  # the Trainer makes the schedule
    )
    if args.resume and hasattr(torch.serialization, 'add_safe_globals'):
        # the Trainer saves numpy's random state, which torch does not open by itself from version 2.6 on
        numpy_state = [np.random.mtrand.RandomState().get_state()[1].__reduce__()[0], np.ndarray, np.dtype]
        torch.serialization.add_safe_globals([*numpy_state, type(np.dtype('uint32'))])
    trainer.train(resume_from_checkpoint=args.resume)
    return trainer


if __name__ == '__main__':
    main()
