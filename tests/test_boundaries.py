from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from convswap.border_errors import border_errors
from examples import boundaries
from examples.boundaries import OTHERS, blurred, inner, lead, read_photo
from examples.boundary_pictures import picture
from examples.samples import photo


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    found = boundaries.main([str(folder), "--photos", "cat", "--height", "160", "--corner", "16"])
    printed = " ".join(capsys.readouterr().out.split())

    smooth, raw = found["smooth"]["cat"], found["raw"]["cat"]
    for borders, better in ((smooth, True), (raw, False)):
        for each in borders.filters:
            times, best = lead(each)
            others = {method: each.error(method) for method in OTHERS}
            assert (times, best) == (others[best] / each.error("padding_free"), best)
            assert others[best] == min(others.values())
            assert (times > 1) is better
            words = f"{times:.1f} times less" if better else f"{1 / times:.1f} times more"
            assert f"×{each.kernel}: padding-free of order k−1 errs {words} than {best}, the best above it" in printed
    rows = re.findall(r"(?<= )(0|0.5|1|1.5|2|3) ([\d.]+) \((\w+)\) ([\d.]+) \((\w+)\)", printed)
    assert [float(row[0]) for row in rows] == [*boundaries.BLURS]
    assert float(rows[0][1]) < 1 < float(rows[-1][1])

    with Image.open(folder / "boundaries.png") as drawn:
        assert drawn.size == (190 + 12 * (16 * 4 + 6) + 6, 58 + 11 * (16 * 4 + 6))
    page = (folder / "report.html").read_text()
    assert "Errors at the border of a photo of 216×216 pixels" in page
    assert "padding-free (order 1) ← this conversion" in page
    assert "18 of 52 convolutions converted (18 to padding_free)" in page
    assert sorted(path.name for path in folder.iterdir()) == ["boundaries.png", "report.html"]


def test_blur_takes_no_pixels_from_outside() -> None:
    image = torch.rand(2, 40, 44, dtype=torch.float64)
    found = blurred(image, 1.5, 6)
    assert found.shape == (2, 28, 32)
    assert torch.equal(blurred(image, 1.5, 8), found[:, 2:-2, 2:-2])
    at = torch.arange(-6, 7, dtype=torch.float64)
    kernel = (-(at[:, None] ** 2 + at**2) / (2 * 1.5**2)).exp()
    expected = F.conv2d(image[:, None], (kernel / kernel.sum())[None, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(blurred(image, 0, 3), image[:, 3:-3, 3:-3])


def test_picture_has_the_filtered_corner_and_its_errors() -> None:
    image = inner(read_photo(photo("cat"), 160))
    drawn = picture({"a": image}, 8)
    names = border_errors(image).methods
    assert drawn.size == (190 + 6 * 38 + 6, 58 + (1 + len(names)) * 38)

    def panel(row: int, column: int) -> torch.Tensor:
        """(8, 8, 3): pixels from the middles of a panel's squares."""
        x, y = 190 + 38 * column, 58 + 38 * row
        colours = [[drawn.getpixel((x + 4 * i + 2, y + 4 * j + 2)) for i in range(8)] for j in range(8)]
        return torch.tensor(colours)

    white = torch.full((8, 8, 3), 255)
    assert torch.equal(panel(0, 1), white)
    truth = panel(0, 0)
    assert (truth.amin().item(), truth.amax().item()) == (0, 255)
    zeros = 1 + names.index("zeros")
    errors = panel(zeros, 1)
    assert torch.equal(errors[2:, 2:], white[2:, 2:])  # the window of an inner pixel does not cross the border
    assert (errors[..., 2] > errors[..., 0])[:2].all()  # zeros make it darker, which is blue
    assert torch.equal(panel(zeros, 0)[2:, 2:], truth[2:, 2:])
    assert (panel(zeros, 0)[0] < truth[0]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--height", "79"], "--height must be from 80, for this blur and this corner, to 300, got 79"),
        (["--height", "301"], "to 300, got 301"),
        (["--blur", "31"], "--blur 31 and --corner 24 take 304 rows, and photos have 300: lower them"),
        (["--corner", "200"], "--blur 2 and --corner 200 take 432 rows, and photos have 300: lower them"),
        (["--corner", "3"], "--corner must be at least 4, to show more than the border, got 3"),
        ([__file__], "test_boundaries.py is a file: give a folder to write into"),
        (["--corner", "0"], "must be a whole number of at least 1, got 0"),
        (["--photos", "dog"], "invalid choice: 'dog'"),
        (["nowhere/out"], "there is no folder nowhere to make out in"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        boundaries.main(arguments)
    assert message in capsys.readouterr().err
