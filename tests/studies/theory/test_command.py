from studies.theory.__main__ import main

from studies.theory import FIGURES


def test_figures_are_listed_and_drawn(tmp_path, capsys):
    main([])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(FIGURES)
    assert all(len(line.split()) > 4 for line in listed)
    main(["minority-collapse", "--out", str(tmp_path / "f.svg")])
    assert 0 < (tmp_path / "f.svg").stat().st_size < 200_000
