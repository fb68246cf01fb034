import pytest

from mmdscnet.evaluation.dataset_classes import read_classes


def test_classes_are_those_of_the_data_set():
    assert read_classes(dict(classes=('background', 'cat'))) == ('background', 'cat')


@pytest.mark.parametrize('meta', [None, {}, dict(palette=[])])
def test_missing_classes_name_the_mend(meta):
    with pytest.raises(ValueError, match=r'no classes: set metric\.dataset_meta.*metainfo=dict'):
        read_classes(meta)
