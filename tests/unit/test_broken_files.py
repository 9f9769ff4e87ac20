"""What ``loomq validate`` says about each kind of mistake, word for word."""

from pathlib import Path

import pytest

from loomq.catalog import load_catalog
from loomq.problems import EXPLANATIONS
from loomq.settings import Settings

PROJECT = Path(__file__).parents[1] / "broken_project"
GOLDEN = sorted(file.relative_to(PROJECT) for file in PROJECT.glob("*/*.txt"))


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        _, problems = load_catalog(Settings(project=PROJECT))
    found: dict[str, list[str]] = {}
    for problem in problems:
        assert problem.id in EXPLANATIONS
        found.setdefault(problem.file, []).append(problem.render())
    return found


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_a_broken_file_is_described_word_for_word(golden, told):
    text = "\n".join(told.get(str(golden.with_suffix(".yaml")), [])) + "\n"
    assert text == (PROJECT / golden).read_text()


def test_every_file_with_problems_has_its_words_written_down(told):
    assert {Path(file) for file in told} == {golden.with_suffix(".yaml") for golden in GOLDEN}
    assert len(GOLDEN) >= 20


def test_the_good_workers_beside_the_broken_files_are_loaded():
    catalog, _ = load_catalog(Settings(project=PROJECT))
    assert set(catalog.workers) == {"reader", "counter", "knowing"}
    assert not catalog.pipelines
