import numpy as np
import pytest

from tightframe.errors import ConfigError, OutputError
from tightframe.report.charts import Chart, HeatMap, Line, draw_charts, write_charts

x = np.linspace(1, 10, 5)
CHARTS = [
    Chart(
        "cosine $R$",
        "R",
        "cosine",
        [
            Line("measured", x, x, group="a", points=True),
            Line("bound", x, 2 * x, group="a", dashed=True),
            Line("", x, -x),
        ],
        log_x=True,
        marks={"threshold R0": 3.0},
    ),
    HeatMap("Gram matrix", np.eye(3)),
    Chart("decay", "t", "loss", [Line("loss", x, np.exp(-x))], log_y=True),
    HeatMap("nothing", np.zeros((2, 2))),
]


def test_an_svg_has_the_words_and_is_the_same_again(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_charts(tmp_path / "new" / name, CHARTS)
    text = (tmp_path / "new" / "a.svg").read_text()
    for word in ("measured", "bound", "threshold R0", "Gram matrix", "decay", "cosine $R$"):
        assert word in text
    assert text == (tmp_path / "new" / "b.svg").read_text()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.svg", "b.svg"]


def test_a_png_of_one_chart(tmp_path):
    write_charts(tmp_path / "one.png", CHARTS[:1])
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_points_of_a_group_have_its_colour(tmp_path):
    (axis,) = draw_charts(CHARTS[:1]).axes
    measured, bound, other, mark = axis.lines
    assert measured.get_color() == bound.get_color() != other.get_color()
    assert (measured.get_linestyle(), measured.get_marker(), bound.get_linestyle()) == ("None", "o", "--")
    assert list(mark.get_xdata()) == [3.0, 3.0]
    assert axis.get_xscale() == "log"


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\*.png or \*.svg, got .*x.pdf"):
        write_charts(tmp_path / "x.pdf", CHARTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_charts(tmp_path / "file" / "x.svg", CHARTS[:1])
