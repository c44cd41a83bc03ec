"""The tool that gives every stock model other classes."""

import csv
import json
import os
import sys

import pytest
from conftest import ROOT, run

pytest.importorskip('mmdet')
TOOL = 'tools/analysis_tools/class_heads.py'


def rows(*options, folder) -> dict[str, dict]:
    """Rows of the table that the tool writes, by config."""
    run(sys.executable, ROOT / TOOL, *options, '--work-dir', folder, '--out', folder, PYTHONPATH=str(ROOT))
    with open(folder / 'class_heads.csv') as file:
        return {row['config']: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_heads_of_all_libraries_are_compared_once(tmp_path):
    match = (
        r'retinanet_r18_fpn_1x8_1x|yolov3_mobilenetv2_8xb24-320|fcn_r50-d8_4xb2-40k_citys|ocrnet_hr18_4xb2-40k|lenet5'
    )
    found = rows('--match', match, folder=tmp_path)
    results = {row['heads']: row['result'] for row in found.values()}
    assert results.pop('FCNHead, OCRHead') == 'not equal: a pixel attends to all classes'
    assert {'RetinaHead', 'YOLOV3Head', 'FCNHead', 'LeNet5'} <= results.keys()
    assert set(results.values()) == {'ok'}
    text = (tmp_path / 'rows.jsonl').read_text()
    assert rows('--match', match, folder=tmp_path) == found and (tmp_path / 'rows.jsonl').read_text() == text
    assert all(json.loads(line)['compared'] for line in text.splitlines())
    report = (tmp_path / 'class_heads.md').read_text()
    assert '## Known' in report and '## Not known' in report


@pytest.mark.slow
@pytest.mark.skipif('OLOR_ALL_HEADS' not in os.environ, reason='an hour; OLOR_ALL_HEADS=1 runs it')
def test_every_stock_model_with_classes_is_known_or_listed(tmp_path):
    check(rows(folder=tmp_path))


def test_the_table_in_the_docs_has_hardly_a_model_that_is_not_known():
    with open(ROOT / 'docs/en/class_heads.csv') as file:
        check({row['config']: row for row in csv.DictReader(file)})


def check(found: dict[str, dict]) -> None:
    """At least 95 % are known, and the others are told with a reason."""
    of_classes = [row for row in found.values() if not row['result'].startswith(('has no weights', 'not built'))]
    known = sum(int(row['configs']) for row in of_classes if row['result'] == 'ok')
    assert len(of_classes) > 100 and known >= 0.95 * sum(int(row['configs']) for row in of_classes)
    assert all(row['result'].startswith(('ok', 'not known: ', 'not equal: ')) for row in of_classes)
