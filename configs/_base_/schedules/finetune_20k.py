# 20,000 iterations: the rate rises over the first 500 and falls in proportion to 0.
finetune_train_cfg = dict(type='IterBasedTrainLoop', max_iters=20000, val_interval=2000)
finetune_param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=500, end=20000),
]
finetune_checkpoint = dict(interval=2000, max_keep_ckpts=2, save_best='mIoU')
