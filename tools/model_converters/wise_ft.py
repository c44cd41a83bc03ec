"""WiSE-FT (arXiv 2109.01903): a checkpoint between the pre-trained and the fine-tuned one, weight by weight.

    python tools/model_converters/wise_ft.py pretrained.pth work_dirs/run/epoch_10.pth between.pth --alpha 0.5

Written is (1 - alpha) pre-trained + alpha fine-tuned, running statistics of norm layers included, to be used with the
config of the fine-tuned model. What only that one has, first of all a new head, is taken from it and named.
"""

import argparse
import sys
from pathlib import Path

import torch

from olor_mm.analysis import interpolate
from olor_mm.engine.loading import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pretrained', type=Path, help='checkpoint that was fine-tuned from')
    parser.add_argument('finetuned', type=Path, help='checkpoint of the fine-tuned model')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--alpha', type=float, default=0.5, help='0 is pre-trained, 1 fine-tuned (default: 0.5)')
    parser.add_argument('--prefix', default='', help="what the fine-tuned model puts before the names: 'backbone.'")
    args = parser.parse_args()
    try:
        source, checkpoint = load(args.pretrained, 'cpu'), load(args.finetuned, 'cpu')
        weights = (content.get('state_dict', content) for content in (source, checkpoint))
        state, kept = interpolate(*weights, args.alpha, args.prefix)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f'wise_ft: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    meta = checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}
    torch.save(dict(meta=meta, state_dict=state), args.out)
    floating = [v for v in state.values() if isinstance(v, torch.Tensor) and torch.is_floating_point(v)]
    print(f'{args.out}: {len(floating) - len(kept)} tensors interpolated, {len(kept)} taken from the fine-tuned model')
    for name, why in kept.items():
        print(f'  {name}: {why}')


if __name__ == '__main__':
    main()
