# 12 epochs: the rate rises over the first one, however short it is, and falls along a cosine to 0.
finetune_train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
finetune_param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=12, T_max=11, convert_to_iter_based=True),
]
finetune_checkpoint = dict(interval=1, max_keep_ckpts=2, save_best='auto')
