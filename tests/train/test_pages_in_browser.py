"""The page of a data set in a real browser, from the disk, without a network."""

from pathlib import Path

from ctseg.train.overview import look_at_dataset, write_overview
from tests.support.browser import visiting
from tests.support.planted_dataset import ODD, USUAL, write_planted


def test_the_page_of_a_data_set_opens_offline_sorts_and_runs_nothing_from_outside(tmp_path: Path) -> None:
    write_planted(tmp_path / "Dataset302_Planted")
    page_file = write_overview(look_at_dataset(tmp_path / "Dataset302_Planted"), tmp_path / "o")
    with visiting(1300, 900) as visit:
        visit.open(page_file)
        page = visit.page
        table = page.locator("table").last
        names = table.locator("td.case")
        assert names.count() == len(USUAL) + len(ODD) + 1
        table.locator("th", has_text="liver, ml").click()
        table.locator("th", has_text="liver, ml").click()
        assert names.nth(0).inner_text() == "thick"  # 1.3 ml, the most
        assert names.nth(1).inner_text() == "big"
        pictures = page.locator("img.thumbnail")
        assert pictures.count() == len(USUAL) + len(ODD)
        pictures.last.scroll_into_view_if_needed()
        assert pictures.last.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        assert visit.beyond_the_disk == []
        assert visit.complaints == []
