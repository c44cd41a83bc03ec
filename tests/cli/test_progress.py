from olor_mm.progress import tracked, waiting


def test_progress_leaves_nothing_in_output_that_is_kept(capfd):
    with waiting('reading'):
        assert list(tracked([1, 2], 'images')) == [1, 2]
    assert capfd.readouterr() == ('', '')
