# Your own images in a folder for each class: this dict is the place to say where they are and what the classes are
# called.
custom = dict(
    data_root='data/custom/',
    classes=('class_1', 'class_2'),  # one for each folder, in the alphabetical order of the folders
    train='train',  # data/custom/train/class_1/*.jpg, ...
    val='val',
)

# the rest follows from it, and the configs take it from here
custom_common = dict(type='CustomDataset', data_root=custom['data_root'], classes=custom['classes'])
custom_train_set = dict(**custom_common, data_prefix=custom['train'])
custom_val_set = dict(**custom_common, data_prefix=custom['val'])
