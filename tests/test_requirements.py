"""What is installed is pinned, held against hashes, and audited."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

LOCK = ROOT / 'requirements/onedl/lock.txt'
KNOWN = ROOT / 'requirements/onedl/known_vulnerabilities.txt'


def pins(text: str) -> dict[str, set[str]]:
    """Versions of every package; one may have another for another Python."""
    found = {}
    for name, version in re.findall(r'^([\w.-]+)==([^\s;]+)', text, re.M):
        found.setdefault(re.sub('[-_.]+', '-', name).lower(), set()).add(version)
    return found


def test_the_lock_has_what_is_asked_for_and_hashes_of_all_of_it():
    locked = pins(LOCK.read_text())
    files = [*(ROOT / 'requirements/onedl').glob('[!lk]*.txt'), *(ROOT / 'requirements').glob('*.txt')]
    asked = pins('\n'.join(file.read_text() for file in files))
    assert len(files) == 6
    assert {name: v for name, v in asked.items() if name != 'onedl-mmcv' and not v <= locked.get(name, set())} == {}
    entries = re.split(r'^(?=\w)', LOCK.read_text(), flags=re.M)[1:]
    assert len(entries) >= len(locked) > 90
    assert [entry for entry in entries if '--hash=sha256:' not in entry] == []


@pytest.mark.slow
def test_no_pinned_package_has_a_vulnerability_that_is_not_accounted_for():
    command = [sys.executable, '-m', 'pip_audit', '-r', str(LOCK), '--no-deps', '--disable-pip', '-f', 'json']
    done = subprocess.run([*command, '--progress-spinner', 'off'], capture_output=True, text=True, timeout=600)
    if not done.stdout.startswith('{'):
        reason = (done.stderr.strip().splitlines() or ['nothing was said'])[-1]
        pytest.skip(f'no vulnerability service can be reached from here: {reason[-200:]}')
    packages = json.loads(done.stdout)['dependencies']
    audited = [package for package in packages if 'vulns' in package]
    if not audited:
        pytest.skip(
            f'the vulnerability service knows none of the {len(packages)} packages: {packages[0]["skip_reason"]}'
        )
    known = set(re.findall(r'^([\w-]+):', KNOWN.read_text(), re.M))
    assert {p['name']: [v['id'] for v in p['vulns']] for p in audited if p['vulns'] and p['name'] not in known} == {}
