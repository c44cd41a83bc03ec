"""Put a fine-tuned model back into its pre-trained state, for the task it was pre-trained on.

    python tools/model_converters/restore_pretrained.py work_dirs/run/epoch_10.pth pretrained.pth restored.pth

The restored checkpoint is for the config of the pre-trained model. It has the fine-tuned weights where both models have
one of the same name and shape, the running statistics of norm layers from before fine-tuning, and the pre-trained
weights everywhere else, as in the old head. The statistics are in the state of the optimizer, so the fine-tuned
checkpoint must have been saved with it.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from olor_mm.cli.parser import Parser
from olor_mm.durable.loading import guard_loading, load_weights, save_weights
from olor_mm.measure import pretrained_state
from olor_mm.optim.state import statistics_in


def restore(finetuned: Path, pretrained: Path, out: Path, prefix: str = '') -> Counter:
    """Write the checkpoint, and count where its tensors are from.

    Args:
        finetuned (Path): Checkpoint of the fine-tuned model, with the state of its OLOR optimizer.
        pretrained (Path): What it was fine-tuned from.
        out (Path): The file to write.
        prefix (str): What the fine-tuned model puts before the names in ``pretrained``, e.g. ``'backbone.'``.

    Raises:
        ValueError: If a file is not there or cannot be read as plain data, the checkpoint has no statistics though the
            model needs some, or no name is in both.
    """
    (weights, checkpoint), (source, _) = load_weights(finetuned), load_weights(pretrained)
    optimizer = checkpoint.get('optimizer')
    statistics = statistics_in(optimizer) if isinstance(optimizer, dict) else {}
    state, origins = pretrained_state(weights, source, statistics, prefix)
    lost = [name for name, origin in origins.items() if 'running_' in name and origin == 'fine-tuned']
    if lost:
        raise ValueError(
            f'{str(finetuned)!r} does not have the pre-trained running statistics of {len(lost)} buffers, like '
            f'{lost[0]!r}: give a checkpoint of a run with OLOROptimWrapperConstructor, saved with its optimizer '
            '(CheckpointHook save_optimizer=True)'
        )
    save_weights(dict(state_dict=state), out, finetuned, pretrained)
    return Counter(origins.values())


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('finetuned', type=Path, help='checkpoint of the fine-tuned model')
    parser.add_argument('pretrained', type=Path, help='checkpoint it was fine-tuned from')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--prefix', default='', help="what the fine-tuned model puts before its names: 'backbone.'")
    parser.add_argument('--trust-checkpoints', action='store_true', help='open checkpoints even if they could run code')
    args = parser.parse_args()
    guard_loading(args.trust_checkpoints)
    try:
        counts = restore(args.finetuned, args.pretrained, args.out, args.prefix)
    except ValueError as error:
        sys.exit(f'restore_pretrained: {error}')
    print(f'{args.out}: ' + ', '.join(f'{count} tensors {origin}' for origin, count in counts.items()))


if __name__ == '__main__':
    main()
