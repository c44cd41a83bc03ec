"""WiSE-FT (arXiv 2109.01903): a checkpoint between the pre-trained and the fine-tuned one, weight by weight.

    python tools/model_converters/wise_ft.py pretrained.pth work_dirs/run/epoch_10.pth between.pth --alpha 0.5

Written is (1 - alpha) pre-trained + alpha fine-tuned, running statistics of norm layers included, to be used with the
config of the fine-tuned model. What only that one has, first of all a new head, is taken from it and named.
"""

import argparse
import sys
from pathlib import Path

import torch

from olor_mm.cli.parser import Parser
from olor_mm.durable.loading import guard_loading, load_weights, save_weights
from olor_mm.measure import interpolate


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pretrained', type=Path, help='checkpoint that was fine-tuned from')
    parser.add_argument('finetuned', type=Path, help='checkpoint of the fine-tuned model')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--alpha', type=float, default=0.5, help='0 is pre-trained, 1 fine-tuned (default: 0.5)')
    parser.add_argument('--prefix', default='', help="what the fine-tuned model puts before the names: 'backbone.'")
    parser.add_argument('--trust-checkpoints', action='store_true', help='open checkpoints even if they could run code')
    args = parser.parse_args()
    if not 0 <= args.alpha <= 1:
        parser.error(
            f'--alpha {args.alpha!r} is not in [0, 1]; give 0 for the pre-trained model, 1 for the fine-tuned one'
        )
    guard_loading(args.trust_checkpoints)
    try:
        source, (weights, checkpoint) = load_weights(args.pretrained)[0], load_weights(args.finetuned)
        state, kept = interpolate(source, weights, args.alpha, args.prefix)
        meta = checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}
        save_weights(dict(meta=meta, state_dict=state), args.out, args.pretrained, args.finetuned)
    except ValueError as error:
        sys.exit(f'wise_ft: {error}')
    floating = [v for v in state.values() if isinstance(v, torch.Tensor) and torch.is_floating_point(v)]
    print(f'{args.out}: {len(floating) - len(kept)} tensors interpolated, {len(kept)} taken from the fine-tuned model')
    for name, why in kept.items():
        print(f'  {name}: {why}')


if __name__ == '__main__':
    main()
