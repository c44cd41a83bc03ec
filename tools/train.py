"""Train any config of mmdet, mmseg or mmpretrain: python tools/train.py CONFIG [options]"""

from olor_mm.cli.train import main

if __name__ == '__main__':
    main()
