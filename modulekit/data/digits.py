"""The handwritten digits that come with scikit-learn: a small MNIST that needs neither network nor files."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Split: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


def digits() -> tuple[Split, Split]:
    """Loads scikit-learn's 1,797 handwritten digits, in the form of `mnist`: 1,437 for training and 360 for testing.

    The split is fixed and stratified: of the examples sorted by label (and, within a label, in scikit-learn's order),
    the first and every fifth after it are for testing. Both parts keep scikit-learn's order.

    Returns:
      `((train_images, train_labels), (test_images, test_labels))`: float32 images in [0, 1] (gray levels divided by 16)
      of shape `[n, 8, 8, 1]` and int32 labels in 0 .. 9 of shape `[n]`.

    Raises:
      ImportError: if scikit-learn, which the extra `examples` installs, is missing.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository,
    1998; test part, as distributed by `sklearn.datasets.load_digits`.

    >>> from modulekit.data import digits
    >>> (train_images, train_labels), (test_images, test_labels) = digits()
    >>> train_images.shape, test_images.shape, test_labels.dtype.name
    ((1437, 8, 8, 1), (360, 8, 8, 1), 'int32')
    """
    try:
        from sklearn.datasets import load_digits  # optional, and slow to import
    except ImportError as error:
        raise ImportError(
            f"digits() needs scikit-learn, which did not import ({error}); "
            f'install it with: pip install "modulekit[examples]"'
        ) from error
    source = load_digits()
    images = np.divide(source.images, 16).astype(np.float32)[..., np.newaxis]
    labels = source.target.astype(np.int32)
    is_test = np.zeros(labels.shape, np.bool_)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
