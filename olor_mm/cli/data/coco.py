"""Images for detection and instance segmentation, with annotation files of COCO."""

import json
import shlex
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from mmengine.registry import DATASETS, METRICS, DefaultScope

from ...inspect.libraries import quiet
from ...progress import waiting
from .annotations import Content, annotated_size
from .dataset import DECODED, SPLITS, Data, DataError, check_images, check_overlap, parted
from .reading import Reader


def read_coco(folder: Path, out: Path, classes: list[str] | None, with_masks: bool, reader: Reader) -> Data:
    """A data set for detection or, with masks, instance segmentation; see :func:`olor_mm.cli.data.examine`."""
    data, images, contents = Data(classes or []), {}, dict[str, Content]()
    for split, file in annotation_files(folder).items():
        with waiting(f'reading {file.name}'):
            content = contents[split] = Content(file)
            content.mend(with_masks)
        names = [category['name'] for category in content.categories]
        if split == 'train':
            # mmdet numbers classes as they come in the file, whatever the order in a config
            data.classes = [name for name in names if not classes or name in classes]
            data.classes += [name for name in classes or () if name not in names]
        check_names(file, names, data.classes)
        root = image_root(folder, file, split, [image['file_name'] for image in content.images])
        images[split] = [root / image['file_name'] for image in content.images]
        content.mend_sizes(check_images(data, reader, images[split], list(map(annotated_size, content.images))))
        content.check(data, with_masks)
        _note_unused(data, content, names)
        content.number()
        if [name for name in names if name in data.classes] != data.classes:
            content.changed('categories in the order of training', [names])
            content.categories.sort(key=lambda category: (data.classes + names).index(category['name']))
        prefix = '' if root == folder else f'{root.relative_to(folder)}/'
        setattr(data, split, dict(ann_file=str(file.relative_to(folder)), data_prefix=dict(img=prefix)))
        if content.changes:
            written = out.with_name(f'{out.stem}_{split}.json')
            data.written[written], getattr(data, split)['ann_file'] = json.dumps(content.all), str(written)
            data.notes.append(f'{written.name} is {file.name} with {"; ".join(content.changes)}')
    train = contents['train']
    if 'val' in images:
        data.images = len(images['train'])
        data.note_test(folder / data.val['ann_file'])
        check_overlap(data, images['train'], images['val'])
    else:
        seen = {annotation['image_id'] for annotation in train.annotations}
        with_objects = [image for image in train.images if image['id'] in seen]
        if len(with_objects) < 2:
            raise DataError(f'{str(train.file)!r} has too few images with annotations to split off some for validation')
        others = [image for image in train.images if image['id'] not in seen]
        data.split_off(parted(with_objects, others), lambda some: _part(train.all, some), out, '.json', **data.train)
    if not data.problems:
        with waiting('evaluating the annotations once'):
            _rehearse(data, folder, with_masks, reader)
    return data


def check_names(file: Path, names: list[str], classes: list[str]) -> None:
    """Refuse categories that lack one of the classes, or have a name twice."""
    absent = [name for name in classes if name not in names]
    if absent or len(set(names)) < len(names):
        what = f'{absent} of the classes are not there' if absent else 'some are there twice; rename them'
        raise DataError(f'{str(file)!r} has the categories {names}: {what}')


def annotation_files(folder: Path) -> dict[str, Path]:
    """Annotation files of 'train' and, if there is one, of 'val', by the names of file and folder."""
    files = sorted([*folder.glob('*.json'), *folder.glob('*/*.json')])
    if not files:
        raise DataError(f'{str(folder)!r} has no annotation file: no *.json in it or in the folders in it')
    if any(file.name.startswith('instances_') for file in files):
        files = [file for file in files if file.name.startswith('instances_')]  # others are captions, key points
    named: dict[str, list[Path]] = {}
    for file in files:
        where = str(file.relative_to(folder)).lower()
        named.setdefault(next((part for part in ('train', 'val', 'test') if part in where), 'train'), []).append(file)
    for found in named.values():
        if len(found) > 1:
            names = [str(file.relative_to(folder)) for file in found]
            raise DataError(f'{str(folder)!r} has several annotation files for one split: {names}; leave one of them')
    if 'train' not in named:
        raise DataError(f'{str(folder)!r} has annotations of no training set, only {[str(f) for f in files]}')
    val = named.get('val') or named.get('test') or []
    return dict(zip(('train', 'val'), [*named['train'], *val]))


def image_root(folder: Path, file: Path, split: str, names: list[str]) -> Path:
    """The folder that has most of the images; of several, the one with the name of the split."""
    parts = [folder, file.parent, *(p for p in sorted(folder.rglob('*')) if p.is_dir())]
    counts = {part: sum((part / name).is_file() for name in islice(names, 20)) for part in dict.fromkeys(parts)}
    named = {part for part in counts if set(SPLITS[split]).intersection(part.relative_to(folder).parts)}
    best = max(counts, key=lambda part: (counts[part], part in named))
    if not counts[best]:
        raise DataError(f'images of {str(file)!r} are nowhere in {str(folder)!r}, e.g. {names[0]!r}')
    return best


def _part(content: dict, images: list[dict]) -> str:
    ids = {image['id'] for image in images}
    own = [annotation for annotation in content['annotations'] if annotation['image_id'] in ids]
    return json.dumps(dict(content, images=images, annotations=own))


def _note_unused(data: Data, content: Content, names: list[str]) -> None:
    """Note classes that no annotation has."""
    used = {annotation['category_id'] for annotation in content.annotations}
    used_names = {category['name'] for category in content.categories if category['id'] in used}
    unused = [name for name in data.classes if name not in used_names]
    if len(unused) == len(data.classes):
        data.problems.append(f'{content.file.name} has no annotation of the classes {data.classes}')
    elif unused:
        rest = shlex.join(name for name in data.classes if name in used_names)
        what = f'{content.file.name}: {len(unused)} classes without an annotation, first {unused[0]}'
        data.notes.append(f'{what}; leave them out by --classes {rest}')


def _rehearse(data: Data, folder: Path, with_masks: bool, reader: Reader) -> None:
    """Build the data sets as training does, load annotations, and evaluate those of validation as if predicted."""
    metrics = ['bbox', 'segm'] if with_masks else ['bbox']
    with tempfile.TemporaryDirectory() as place, quiet(), DefaultScope.overwrite_default_scope(reader.scope):
        for split in ('train', 'val'):
            fields = getattr(data, split)
            file = folder / fields['ann_file']
            if file in data.written:
                file = Path(place, file.name)
                file.write_text(data.written[folder / fields['ann_file']])
            try:
                options = dict(data_prefix=dict(img=''), metainfo=dict(classes=data.classes), serialize_data=False)
                dataset = DATASETS.build(
                    dict(type='CocoDataset', ann_file=str(file), test_mode=split == 'val', pipeline=[], **options)
                )
                samples = list(_samples(dataset, reader.annotations(**data.loading), with_masks))
                if split == 'val':
                    metric = METRICS.build(dict(type='CocoMetric', ann_file=str(file), metric=metrics))
                    metric.dataset_meta = dataset.metainfo
                    metric.process({}, samples)
                    metric.evaluate(len(samples))
            except Exception as error:  # of mmdet, pycocotools or numpy, about entries of any kind
                what = f'{type(error).__name__}: {error}'
                data.problems.append(f'{fields["ann_file"]}: mmdet cannot use its entries for {split}: {what}')


def _samples(dataset, load: Callable[[dict], dict], with_masks: bool) -> Iterable[dict]:
    """Annotations as the predictions of a detector that makes no mistake; of 1,000 images at most."""
    for number in range(0, len(dataset), -(-len(dataset) // DECODED)):
        info = dataset.get_data_info(number)
        found = load(dict(info, ori_shape=(info['height'], info['width'])))
        labels = torch.from_numpy(found['gt_bboxes_labels'])
        predicted = dict(bboxes=found['gt_bboxes'].tensor, labels=labels, scores=torch.ones(len(labels)))
        if with_masks:
            predicted['masks'] = torch.from_numpy(found['gt_masks'].to_ndarray())
        yield dict(img_id=info['img_id'], ori_shape=(info['height'], info['width']), pred_instances=predicted)
