# Your own images, and masks of the same names with a class number in every pixel (255 is ignored): this dict is the
# place to say where they are and what the classes are called.
custom = dict(
    data_root='data/custom/',
    classes=('background', 'class_1'),  # numbers 0, 1, ... in the masks
    img_suffix='.jpg',
    seg_map_suffix='.png',
    train=dict(img_path='images/train', seg_map_path='masks/train'),
    val=dict(img_path='images/val', seg_map_path='masks/val'),
)

# the rest follows from it, and the configs take it from here; the pipelines are those of ADE20K in mmseg, whose number
# 0 is not a class
custom_common = dict(
    type='BaseSegDataset',
    data_root=custom['data_root'],
    metainfo=dict(classes=custom['classes']),
    img_suffix=custom['img_suffix'],
    seg_map_suffix=custom['seg_map_suffix'],
)
custom_train_set = dict(
    **custom_common,
    data_prefix=custom['train'],
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ],
)
custom_val_set = dict(
    **custom_common,
    data_prefix=custom['val'],
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(2048, 512), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ],
)
