"""Train any config of mmdet, mmseg or mmpretrain: python tools/train.py CONFIG [options]"""

from olor_mm.__main__ import run

if __name__ == '__main__':
    run('train')
