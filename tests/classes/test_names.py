"""Which classes of two lists are the same, and what classes a checkpoint has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olor_mm.classes import checkpoint_classes, class_key, joined_classes, match_classes

NAMES = st.lists(st.text('abcXYZ -_', min_size=1, max_size=6), max_size=8, unique_by=class_key)


@pytest.mark.parametrize('name', ['traffic light', 'Traffic_Light', 'traffic-light', 'trafficlight', ' TRAFFIC  light'])
def test_case_hyphens_underscores_and_spaces_do_not_count(name):
    assert match_classes(['car', 'traffic light'], [name]) == [1]


@given(NAMES, NAMES)
def test_every_new_class_has_the_old_one_of_its_name(old, new):
    matches = match_classes(old, new)
    assert [None if at is None else class_key(old[at]) for at in matches] == [
        class_key(name) if class_key(name) in map(class_key, old) else None for name in new
    ]


@given(NAMES, NAMES)
def test_joined_classes_begin_with_the_old_ones_and_lack_none(old, new):
    joined = joined_classes(old, new)
    assert joined[: len(old)] == old
    assert {*map(class_key, joined)} == {*map(class_key, old), *map(class_key, new)}
    assert len({*map(class_key, joined)}) == len(joined)


def test_an_alias_names_the_old_class_of_a_new_one():
    old, new, aliases = ['person', 'car'], ['dog', 'Pedestrian'], {'pedestrian': 'Person'}
    assert match_classes(old, new, aliases) == [None, 0]
    assert joined_classes(old, new, aliases) == ['person', 'car', 'dog']


def test_an_alias_goes_before_a_class_of_the_same_name():
    assert match_classes(['bank', 'shore'], ['bank'], {'bank': 'shore'}) == [1]


@pytest.mark.parametrize(
    'old, new, aliases, named',
    [
        (['cat', 'Cat'], ['cat'], None, 'Cat'),
        (['dog'], ['t-shirt', 'T_Shirt'], None, 'T_Shirt'),
        (['dog', 'dog'], ['dog'], None, 'dog'),
        (['person'], ['pedestrian', 'person'], {'pedestrian': 'person'}, 'pedestrian'),
        (['person'], ['pedestrian'], {'rider': 'person'}, 'rider'),
        (['person'], ['pedestrian'], {'pedestrian': 'human'}, 'human'),
    ],
)
def test_collisions_and_aliases_of_nothing_are_refused(old, new, aliases, named):
    for function in (match_classes, joined_classes):
        with pytest.raises(ValueError, match=named):
            function(old, new, aliases)


def test_names_that_are_twice_in_both_lists_keep_their_order():
    """As ImageNet has two cranes."""
    assert match_classes(['crane', 'dog', 'crane'], ['cat', 'crane', 'crane', 'dog']) == [None, 0, 2, 1]
    assert joined_classes(['crane', 'crane'], ['dog']) == ['crane', 'crane', 'dog']


@pytest.mark.parametrize(
    'checkpoint, classes',
    [
        (dict(meta=dict(dataset_meta=dict(classes=('a', 'b')))), ['a', 'b']),
        (dict(meta=dict(dataset_meta=dict(CLASSES=['a', 'b']))), ['a', 'b']),
        (dict(meta=dict(CLASSES=('a', 'b'))), ['a', 'b']),
        (dict(meta=dict(dataset_meta=dict(classes='a'))), ['a']),
        (dict(meta=dict(dataset_meta=dict(palette=[]))), None),
        (dict(meta=dict(dataset_meta=None, CLASSES=None)), None),
        (dict(state_dict={}), None),
    ],
)
def test_classes_of_checkpoints_of_all_ages_are_found(checkpoint, classes):
    assert checkpoint_classes(checkpoint) == classes
