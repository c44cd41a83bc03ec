"""Trains the classifier of worker.py under a drift budget, with DriftHook: budgets MODE WORK_DIR CHECKPOINT."""

import sys

from worker import build, config


def main(arguments: list[str]) -> None:
    mode, work_dir, checkpoint = arguments
    cfg = config(mode, work_dir, checkpoint, epochs=3, resume=False)
    cfg.optim_wrapper.paramwise_cfg.rollback = dict(max_drift=(0.02, 0.05), pretrained=['backbone'])
    cfg.custom_hooks += [dict(type='DriftHook', interval=1)]
    cfg.log_level = 'INFO'
    build(mode, cfg).train()


if __name__ == '__main__':
    main(sys.argv[1:])
