"""Turn torchvision's MobileNetV2 checkpoint into those that mmdet, mmseg and mmpretrain load.

    python tools/model_converters/torchvision_mobilenet_v2.py mobilenet_v2-b0353104.pth data/weights

The layers are the same everywhere; names and nesting differ. A block of torchvision is
``features.K.conv.[0.0 0.1 | 1.0 1.1 | 2 3]`` (expand | depthwise | linear, each a convolution and its norm; the first
block has no expand). mmdet calls them ``layerS.B.{expand,depthwise,linear}_conv.{conv,bn}``, mmseg and mmpretrain
``layerS.B.conv.{0,1,2}.{conv,bn}``. mmseg's has no last 1x1 convolution.
"""

import argparse
import sys
from pathlib import Path

import torch

from olor_mm.cli.parser import Parser
from olor_mm.durable.loading import guard_loading, load_weights, save_weights

BLOCKS_PER_STAGE = (1, 2, 3, 4, 3, 3, 1)
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


def layer_names(library: str) -> dict[str, str]:
    """Names of MobileNetV2's layers in torchvision, each with its name in the backbone of an OpenMMLab library.

    Args:
        library (str): 'mmdet', 'mmseg' or 'mmpretrain'.

    Returns:
        dict[str, str]: Prefix of a convolution or norm in torchvision to that in the library; the linear classifier is
        not among them.
    """
    names = {'features.0.0': 'conv1.conv', 'features.0.1': 'conv1.bn'}
    block = 1
    for stage, blocks in enumerate(BLOCKS_PER_STAGE, 1):
        for i in range(blocks):
            convs = ['expand', 'depthwise', 'linear'][block == 1 :]
            for k, conv in enumerate(convs):
                inner = f'{conv}_conv' if library == 'mmdet' else f'conv.{k}'
                pair = (f'{k}.0', f'{k}.1') if conv != 'linear' else (f'{k}', f'{k + 1}')
                for ours, theirs in zip(('conv', 'bn'), pair):
                    names[f'features.{block}.conv.{theirs}'] = f'layer{stage}.{i}.{inner}.{ours}'
            block += 1
    if library != 'mmseg':
        names.update({f'features.{block}.0': 'conv2.conv', f'features.{block}.1': 'conv2.bn'})
    return names


def convert(state_dict: dict[str, torch.Tensor], library: str) -> dict[str, torch.Tensor]:
    """Rename a torchvision MobileNetV2 state dict.

    Args:
        state_dict (dict[str, Tensor]): As torchvision saves it.
        library (str): 'mmdet' or 'mmseg' for the bare backbone, 'mmpretrain' for the ImageNet classifier
            (``backbone.*`` and ``head.fc.*``).

    Returns:
        dict[str, Tensor]: The same tensors under the names of the library.
    """
    prefix = 'backbone.' if library == 'mmpretrain' else ''
    names = {theirs: prefix + ours for theirs, ours in layer_names(library).items()}
    if library == 'mmpretrain':
        names['classifier.1'] = 'head.fc'
    converted = {}
    for key, value in state_dict.items():
        layer, _, kind = key.rpartition('.')
        if layer in names:
            converted[f'{names[layer]}.{kind}'] = value
    return converted


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help="torchvision's mobilenet_v2-*.pth")
    parser.add_argument('out_dir', type=Path, help='where mobilenet_v2_{mmdet,mmseg,mmpretrain}.pth are written')
    parser.add_argument('--trust-checkpoints', action='store_true', help='open checkpoints even if they could run code')
    args = parser.parse_args()
    guard_loading(args.trust_checkpoints)
    try:
        state_dict, _ = load_weights(args.checkpoint)
        if (first := next(iter(layer_names('mmdet')))) and f'{first}.weight' not in state_dict:
            raise ValueError(
                f"{str(args.checkpoint)!r} is not torchvision's MobileNetV2, with names like {first!r}: its names are "
                f'like {next(iter(state_dict))!r}; give mobilenet_v2-*.pth of torchvision'
            )
        for library in LIBRARIES:
            out = args.out_dir / f'mobilenet_v2_{library}.pth'
            save_weights(dict(state_dict=convert(state_dict, library)), out)
            print(f'wrote {out}')
    except ValueError as error:
        sys.exit(f'torchvision_mobilenet_v2: {error}')


if __name__ == '__main__':
    main()
