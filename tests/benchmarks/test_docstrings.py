"""Text from the standard library: lines of codes, and the characters after each."""

import numpy as np

from benchmarks import _docstrings


def test_windows_follow_one_another():
    text = _docstrings.load(20_000, 32)
    for x, y in ((text.x_train, text.y_train), (text.x_test, text.y_test)):
        assert x.shape == y.shape == (len(x), 32)
        assert x.dtype == np.int32
        np.testing.assert_array_equal(x.ravel()[1:], y.ravel()[:-1])
        assert 0 <= y.min() <= y.max() < len(_docstrings.CHARACTERS)
    assert 19_000 < 32 * (len(text.x_train) + len(text.x_test)) < 40_000


def test_the_text_is_prose_and_always_the_same():
    one, two = (_docstrings.load(5_000, 64) for _ in range(2))
    np.testing.assert_array_equal(one.x_train, two.x_train)
    read = "".join(_docstrings.CHARACTERS[code] for code in one.x_train.ravel())
    assert read.count(" the ") > 5
