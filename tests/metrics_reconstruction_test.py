"""Metrics of reconstruction and regression against float64 NumPy, SciPy and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics
from references import normal

from modulekit import metrics


def images(*shape: int, noise: float = 0.1, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy images and the smooth ones that they are of."""
    smooth = scipy.ndimage.gaussian_filter(normal(*shape, seed=1), sigma=(0, 1, 1, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    noisy = smooth + noise * normal(*shape, seed=2)
    return (scale * noisy).astype(np.float32), (scale * smooth).astype(np.float32)


def test_mean_squared_error_is_scikit_learns() -> None:
    predictions, targets = normal(50, 3, seed=1).astype(np.float32), normal(50, 3, seed=2).astype(np.float32)
    expected = sklearn.metrics.mean_squared_error(targets.astype(np.float64), predictions.astype(np.float64))
    assert float(metrics.MeanSquaredError()(predictions, targets)) == pytest.approx(expected, rel=1e-6)
    assert float(metrics.MeanSquaredError()(predictions[:, 0], targets[:, 0])) == pytest.approx(
        np.square(predictions[:, 0].astype(np.float64) - targets[:, 0]).mean(), rel=1e-6
    )


@pytest.mark.parametrize("max_value", [1.0, 255.0])
def test_psnr_is_the_mean_over_images(max_value: float) -> None:
    noisy, smooth = images(4, 9, 8, 3, scale=max_value)
    errors = np.square(noisy.astype(np.float64) - smooth).mean(axis=(1, 2, 3))
    expected = (10 * np.log10(max_value**2 / errors)).mean()
    assert float(metrics.PSNR(max_value)(noisy, smooth)) == pytest.approx(expected, rel=1e-6)


def test_psnr_of_equal_images_is_infinite() -> None:
    _, smooth = images(2, 9, 8, 1)
    assert float(metrics.PSNR()(smooth, smooth)) == np.inf


def reference_ssim(x: np.ndarray, y: np.ndarray, max_value: float) -> float:
    """Returns SSIM of one channel, by SciPy's correlation with the whole window."""
    place = np.arange(11) - 5.0
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(a: np.ndarray) -> np.ndarray:
        return scipy.ndimage.correlate(a, window)[5:-5, 5:-5]

    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    m_x, m_y = mean(x), mean(y)
    s_x, s_y, s_xy = mean(x * x) - m_x**2, mean(y * y) - m_y**2, mean(x * y) - m_x * m_y
    ssim = (2 * m_x * m_y + c1) * (2 * s_xy + c2) / ((m_x**2 + m_y**2 + c1) * (s_x + s_y + c2))
    return float(ssim.mean())


@pytest.mark.parametrize("max_value", [1.0, 255.0])
@pytest.mark.parametrize("shape", [(3, 11, 11, 1), (2, 20, 17, 3)], ids=str)
def test_ssim_is_the_papers(shape: tuple[int, ...], max_value: float) -> None:
    noisy, smooth = images(*shape, scale=max_value)
    x, y = noisy.astype(np.float64), smooth.astype(np.float64)
    expected = [
        np.mean([reference_ssim(x[i, ..., c], y[i, ..., c], max_value) for c in range(shape[3])])
        for i in range(shape[0])
    ]
    metric = metrics.SSIM(max_value)
    np.testing.assert_allclose(metric.per_example(noisy, smooth), expected, rtol=2e-6)
    assert float(metric(noisy, smooth)) == pytest.approx(np.mean(expected), rel=2e-6)


def test_ssim_of_bright_images_does_not_lose_their_contrast() -> None:
    noisy, smooth = images(2, 16, 16, 1, noise=0.01)
    x, y = noisy / 50 + np.float32(200), smooth / 50 + np.float32(200)  # variances 10^-9 of the squared means
    expected = np.mean([reference_ssim(*(a[i, ..., 0].astype(np.float64) for a in (x, y)), 1.0) for i in range(2)])
    assert float(metrics.SSIM()(x, y)) == pytest.approx(expected, rel=1e-3)


def test_ssim_takes_bytes() -> None:
    _, smooth = images(2, 16, 16, 1, scale=255.0)
    assert float(metrics.SSIM(255.0)(smooth.astype(np.uint8), smooth.astype(np.uint8))) == pytest.approx(1.0, abs=1e-6)


def test_coverage_is_the_share_of_targets_inside() -> None:
    centers, targets = normal(40, 3, seed=1).astype(np.float32), normal(40, 3, seed=2).astype(np.float32)
    expected = ((centers - 1 <= targets) & (targets <= centers + 0.5)).mean()
    coverage = metrics.Coverage()
    assert float(coverage((centers - 1, centers + np.float32(0.5)), targets)) == pytest.approx(expected, rel=1e-6)


def test_the_ends_of_an_interval_belong_to_it_and_what_is_no_number_is_not_inside() -> None:
    lower, upper = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert float(metrics.Coverage()((lower, upper), np.array([0.0, 1.0, 1.1, np.nan]))) == 0.5


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: metrics.MeanSquaredError()(np.ones([2, 1]), np.ones(2)),
            "of one shape, got float32[2,1] and float32[2]",
        ),
        (lambda: metrics.PSNR()(np.float32(1), np.float32(1)), "of one shape, got float32[] and float32[]"),
        (lambda: metrics.SSIM()(np.ones([2, 10, 20, 1]), np.ones([2, 10, 20, 1])), "11 x 11, got float32[2,10,20,1]"),
        (lambda: metrics.SSIM()(np.ones([2, 20]), np.ones([2, 20])), "[batch, height, width, channels]"),
        (
            lambda: metrics.Coverage()(np.ones([2, 2]), np.ones(2)),
            "a pair (lower, upper) of [batch, ...], got float64[2,2]",
        ),
        (lambda: metrics.Coverage()((np.ones(3), np.ones(2)), np.ones(2)), "got float32[3] and float32[2]"),
        (lambda: metrics.PSNR(0.0), "max_value=0.0: expected the range of the targets"),
        (lambda: metrics.SSIM(-1.0), "max_value=-1.0: expected the range of the targets"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match="expect") as caught:
        call()
    assert text in str(caught.value)
