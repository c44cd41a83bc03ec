# Your own boxes or masks in COCO format: this dict is the place to say where they are and what the classes are called.
custom = dict(
    data_root='data/custom/',
    classes=('class_1', 'class_2'),  # names as in the annotation files; others there are left out
    train=dict(ann_file='annotations/train.json', data_prefix=dict(img='train/')),
    val=dict(ann_file='annotations/val.json', data_prefix=dict(img='val/')),
)

# the rest follows from it, and the configs take it from here
custom_common = dict(data_root=custom['data_root'], metainfo=dict(classes=custom['classes']))
custom_train_set = dict(**custom_common, **custom['train'])
custom_val_set = dict(**custom_common, **custom['val'])
custom_evaluator = dict(ann_file=custom['data_root'] + custom['val']['ann_file'])
