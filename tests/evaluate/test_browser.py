"""Pages in a real browser: from the disk, without a network, with the right colour in the right place."""

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctseg.evaluate.folder import evaluate_folder
from ctseg.evaluate.pages.rendering import number
from ctseg.evaluate.pages.run import write_run_pages
from ctseg.evaluate.pages.viewer import MISSING, viewer_script
from tests.support.browser import Visit, required_chromium, visiting
from tests.support.run_pages import OBLIQUE, RunFolder, phantom

HOSTILE = "<script>document.title='ran'</script><img src=x onerror=alert(1)>\u2028</script>"
COLOURS = {"liver": (250, 60, 60), "spleen": (60, 250, 60), HOSTILE: (70, 90, 250)}
LABELS = {"liver": (1,), "spleen": (2,), HOSTILE: (3,)}


@pytest.fixture(scope="module", autouse=True)
def needed() -> None:
    required_chromium()
    if viewer_script() is None:
        (pytest.fail if os.environ.get("CTSEG_REQUIRE_BROWSER") else pytest.skip)(MISSING)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of rising volume, one of which is named after markup, a failed one, and references of one."""
    folder = RunFolder(tmp_path_factory.mktemp("pages"), labels=LABELS, colours=COLOURS)
    hu, labels = phantom()
    folder.add("case10", hu, labels, warnings=(f"odd: {HOSTILE}",))
    folder.add("case9", hu, np.where(labels == 1, 0, labels).astype(np.uint8))
    folder.add("a<b>&'c", hu, labels.astype(np.uint8), affine=OBLIQUE @ np.diag([2, 1, 1, 1]))
    folder.add_failed("zfailed", f"case zfailed: expected a CT, found {HOSTILE}")
    references = folder.root / "references"
    references.mkdir()
    nib.save(nib.Nifti1Image(np.roll(labels, 4, axis=2).T, OBLIQUE), references / "case10.nii.gz")
    write_run_pages(
        folder.output, folder.report, cases=folder.cases, references=references, left=[("gone", HOSTILE)],
        evaluation=evaluate_folder(folder.output, references),
    )  # fmt: skip
    return folder.output / "report"


@pytest.fixture(scope="module")
def visit() -> Iterator[Visit]:
    with visiting() as visit:
        yield visit


@pytest.fixture(scope="module")
def case_page(visit: Visit, pages: Path) -> Visit:
    visit.open(pages / "cases" / "case10.html", viewer=True)
    return visit


def rows(visit: Visit) -> list[str]:
    return visit.page.eval_on_selector_all(
        "#cases table.sortable > tbody > tr", "rows => rows.map(row => row.cells[0].innerText.trim())"
    )


def screen(visit: Visit) -> np.ndarray:
    """The canvas as it is seen, (y, x, 3)."""
    visit.page.wait_for_timeout(150)
    shot = visit.page.locator("#canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def place_of(picture: np.ndarray, channel: int) -> tuple[float, float] | None:
    """Where one colour is seen: the middle of its pixels (y, x), as parts of the picture; None: nowhere."""
    others = np.delete(picture, channel, axis=2).max(axis=2)
    found = np.argwhere(picture[:, :, channel] - others > 50)
    return None if len(found) < 4 else tuple((found.mean(axis=0) / picture.shape[:2]).tolist())


def expected_place(visit: Visit, mm: np.ndarray, columns: int, rows: int) -> tuple[float, float]:
    """Where a point has to be seen in a plane that fills the canvas with the box round the phantom's voxels."""
    ends = [(-0.5, size - 0.5) for size in reversed(phantom()[0].shape)]
    corners = np.array([OBLIQUE[:3] @ (*corner, 1) for corner in itertools.product(*ends)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    width, height = visit.page.evaluate("[canvas.clientWidth, canvas.clientHeight]")
    size = high - low
    scale = min(width / size[columns], height / size[rows])
    across = high[columns] - mm[columns]  # the right, or the front, comes first
    down = high[rows] - mm[rows]
    left, top = (width - scale * size[columns]) / 2, (height - scale * size[rows]) / 2
    return (top + scale * down) / height, (left + scale * across) / width


def test_the_index_opens_from_the_disk_and_asks_nothing_of_a_network(visit, pages):
    visit.open(pages / "index.html")
    assert visit.beyond_the_disk == []
    assert visit.complaints == []
    assert visit.page.title() == "output: 5 cases", "no script of a name, a label or a message ran"
    assert "<script>document.title='ran'</script>" in visit.page.inner_text("#cases")
    assert rows(visit) == ["a<b>&'c", "case10", "case9", "gone", "zfailed"]


def test_the_table_sorts_by_names_as_people_count_and_by_numbers(visit, pages):
    visit.open(pages / "index.html")
    visit.page.click("#cases th:has-text('Case')")
    assert rows(visit) == ["a<b>&'c", "case9", "case10", "gone", "zfailed"]
    visit.page.click("#cases th:has-text('Case')")
    assert rows(visit)[0] == "zfailed"
    visit.page.click("#cases th:has-text('liver, ml')")
    assert rows(visit) == ["case9", "case10", "a<b>&'c", "zfailed", "gone"], "what has no volume comes last"
    visit.page.click("#cases th:has-text('liver, ml')")
    assert rows(visit)[:3] == ["a<b>&'c", "case10", "case9"]
    assert visit.page.get_attribute("#cases th:has-text('liver, ml')", "aria-sort") == "descending"


def test_a_link_of_a_case_whatever_its_name_leads_to_its_page(visit, pages):
    visit.open(pages / "index.html")
    address = visit.page.evaluate(
        "[...document.querySelectorAll('#cases a')].find(a => a.innerText === \"a<b>&'c\").href"
    )
    page = Path(url2pathname(urlsplit(address).path))
    assert page.parent == pages / "cases"
    assert "<h1>a&lt;b&gt;&amp;&#39;c</h1>" in page.read_text(encoding="utf-8")
    assert 'href="../index.html"' in page.read_text(encoding="utf-8")


def test_a_case_asks_nothing_of_a_network_and_runs_no_script_of_others(case_page):
    assert case_page.beyond_the_disk == []
    assert case_page.complaints == []
    assert case_page.page.title() == "case10"
    assert case_page.page.inner_text("#trouble") == ""
    assert case_page.page.locator("img[src=x]").count() == 0
    blocked = case_page.page.evaluate("fetch('http://localhost:9/').then(() => 'let out', error => error.name)")
    assert blocked == "TypeError"
    assert any("Content Security Policy" in said for said in case_page.complaints)
    case_page.complaints.clear()


@pytest.mark.parametrize(
    ("view", "columns", "rows"), [("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)]
)  # fmt: skip
def test_each_label_has_its_colour_at_its_place_in_the_patient(case_page, view, columns, rows):
    """Landmarks of an oblique grid of LPS axes; the patient's right, or front, is on the left of the screen."""
    _, labels = phantom()
    case_page.page.evaluate("overlay => document.getElementById('opacity').value = overlay", 100)
    case_page.page.dispatch_event("#opacity", "input")
    case_page.page.uncheck("#outline")
    case_page.page.evaluate("viewer.opts.crosshairWidth = 0")
    case_page.page.click(f"#views button[value={view}]")
    for channel, (name, values) in enumerate(LABELS.items()):
        mm = OBLIQUE[:3, :3] @ np.argwhere(values[0] == labels.T).mean(axis=0) + OBLIQUE[:3, 3]
        case_page.page.evaluate(
            "mm => { viewer.scene.crosshairPos = viewer.mm2frac(mm); viewer.drawScene(); }", mm.tolist()
        )
        found = place_of(screen(case_page), channel)
        assert found is not None, name
        assert found == pytest.approx(expected_place(case_page, mm, columns, rows), abs=0.02), name


def test_a_label_that_is_unchecked_is_not_seen_and_opacity_lets_the_scan_through(case_page):
    _, labels = phantom()
    mm = OBLIQUE[:3, :3] @ np.argwhere(labels.T == 1).mean(axis=0) + OBLIQUE[:3, 3]
    case_page.page.click("#views button[value=axial]")
    case_page.page.evaluate(
        "mm => { viewer.scene.crosshairPos = viewer.mm2frac(mm); viewer.drawScene(); }", mm.tolist()
    )
    case_page.page.fill("#opacity", "100")
    strong = screen(case_page)
    case_page.page.fill("#opacity", "40")
    weak = screen(case_page)
    assert (strong[:, :, 0] - strong[:, :, 1]).max() > (weak[:, :, 0] - weak[:, :, 1]).max() + 60
    box = case_page.page.locator("label:has-text('liver') input.shown")
    box.uncheck()
    assert place_of(screen(case_page), 0) is None
    box.check()
    assert place_of(screen(case_page), 0) is not None


def test_the_references_outline_can_be_seen_and_hidden(case_page):
    case_page.page.fill("#opacity", "0")
    case_page.page.check("#outline")
    with_outline = screen(case_page)
    case_page.page.uncheck("#outline")
    without = screen(case_page)
    assert np.count_nonzero(np.abs(with_outline - without).max(axis=2) > 60) > 100
    assert (np.ptp(without, axis=2) < 12).mean() > 0.99, "nothing but grey is left"


def test_in_3d_labels_are_seen_without_the_references_outline(case_page):
    case_page.page.fill("#opacity", "100")
    case_page.page.check("#outline")
    for view in ("render", "all"):
        case_page.page.click(f"#views button[value={view}]")
        picture = screen(case_page)
        height, width = picture.shape[:2]
        solid = picture if view == "render" else picture[height // 2 :, width // 2 :]
        assert place_of(solid, 0) is not None, view
        case_page.page.uncheck("#outline")
        without = screen(case_page)
        case_page.page.check("#outline")
        alike = without if view == "render" else without[height // 2 :, width // 2 :]
        assert np.abs(solid - alike).max() < 20, view
    assert np.abs(picture - without).max() > 60, "but in the planes beside it"
    case_page.page.click("#views button[value=axial]")


@pytest.mark.full
def test_a_single_page_holds_all_it_needs(visit, tmp_path):
    folder = RunFolder(tmp_path, labels=LABELS)
    folder.add("case1", *phantom())
    written = write_run_pages(folder.output, folder.report, cases=folder.cases, single="case1")
    alone = tmp_path / "alone.html"
    written.first.rename(alone)
    visit.requests.clear()
    visit.open(alone, viewer=True)
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:"))] == [alone.as_uri()]
    assert visit.complaints == []
    assert np.ptp(screen(visit), axis=2).max() > 60


@pytest.mark.full
def test_three_hundred_labels_are_told_apart(visit, tmp_path):
    labels = {f"l{value}": (value,) for value in range(1, 301)}
    folder = RunFolder(tmp_path, labels=labels, colours={"l300": (255, 0, 0)})
    hu, _ = phantom()
    values = np.zeros(hu.shape, dtype=np.uint16)
    values[15, 10, :] = np.arange(1, 61)
    values[10:20, 25:35, 30:40] = 300
    values[2:4] = np.arange(1, 2 * 44 * 60 + 1).reshape(2, 44, 60) % 300
    folder.add("many", hu, values)
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    visit.open(folder.output / "report" / "cases" / "many.html", viewer=True)
    mm = OBLIQUE @ (34.5, 29.5, 14, 1)
    visit.page.click("#views button[value=axial]")
    visit.page.fill("#opacity", "100")
    visit.page.evaluate(
        "mm => { viewer.scene.crosshairPos = viewer.mm2frac(mm); viewer.drawScene(); }", mm[:3].tolist()
    )
    assert place_of(screen(visit), 0) == pytest.approx(expected_place(visit, mm[:3], 0, 1), abs=0.03)


def test_of_many_labels_the_first_and_last_have_their_colours_and_no_label_has_none(visit, tmp_path):
    count = 200  # NiiVue lifts low values among many to one that is higher: background and the first labels
    labels = {f"l{value}": (value,) for value in range(1, count + 1)}
    folder = RunFolder(
        tmp_path, labels=labels, colours={"l1": (255, 0, 0), "l2": (0, 255, 0), f"l{count}": (0, 0, 255)}
    )
    values = np.zeros((20, 40, 60), dtype=np.uint8)
    values[2].reshape(-1)[:count] = np.arange(1, count + 1)
    for place, value in enumerate((1, 2, count)):
        values[8:16, 14:26, 6 + 20 * place : 14 + 20 * place] = value
    folder.add("many", np.full(values.shape, 40), values, np.diag([-1.0, -1.0, 1.0, 1.0]))
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    visit.open(folder.output / "report" / "cases" / "many.html", viewer=True)
    visit.page.evaluate("viewer.opts.crosshairWidth = 0")
    visit.page.click("#views button[value=axial]")
    visit.page.fill("#opacity", "100")
    visit.page.evaluate("viewer.scene.crosshairPos = viewer.mm2frac([-30, -20, 12]); viewer.drawScene()")
    picture = screen(visit)
    middle, (height, width) = picture.shape[0] // 2, picture.shape[:2]
    step = min(width / 60, height / 40)
    found = [picture[middle, round(width / 2 + (across - 30) * step)].tolist() for across in (3, 10, 20, 30, 40, 50)]
    assert found[1::2] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert found[0::2] == [found[0]] * 3
    assert found[0][0] == found[0][1] == found[0][2] == pytest.approx(128, abs=2), "40 HU in a window of -160 to 240"


def test_the_index_lists_many_labels_of_a_case_when_asked(visit, tmp_path):
    labels = {f"l{value}": (value,) for value in range(1, 8)} | {HOSTILE: (8,)}
    folder = RunFolder(tmp_path, labels=labels, colours={"l3": (1, 2, 3)})
    hu, found = phantom()
    folder.add("a", hu, np.where(found == 1, 8, 0).astype(np.uint8))
    folder.add("b", hu, found)
    folder.add_failed("c", "not read")
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    visit.open(folder.output / "report" / "index.html")
    visit.page.click("#cases th:has-text('Case')")
    visit.page.click("#cases th:has-text('Case')")
    voxel_ml = abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000
    of_b = [(f"l{value}", np.count_nonzero(found == value)) for value in (1, 2, 3)]
    for case, listed in (("a", [(HOSTILE, of_b[0][1])]), ("b", of_b)):
        row = visit.page.locator(f"#cases tbody > tr:has(td.case a:text-is('{case}'))")
        row.locator("summary").click()
        row.locator("details table").wait_for()
        cells = [text.split("\t") for text in row.locator("details tr").all_inner_texts()]
        assert [(name.replace("\n", "\u2028"), volume) for name, volume in cells] == [
            (name, f"{number(voxels * voxel_ml)} ml") for name, voxels in listed
        ]
    assert visit.complaints == []


def test_pictures_of_few_slices_leave_room_for_the_table(visit, tmp_path):
    folder = RunFolder(tmp_path)
    hu, labels = phantom()
    folder.add("one", hu[18:19], labels[18:19], np.diag([2.0, 2.0, 1.0, 1.0]))
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    for page in ("index.html", "cases/one.html"):
        visit.open(folder.output / "report" / page)
        widths = visit.page.eval_on_selector_all(
            "img.thumbnail", "images => images.map(image => image.getBoundingClientRect().width)"
        )
        assert max(widths) <= 320
        assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_voxel_of_several_regions_has_the_colour_of_the_smallest_that_is_switched_on(visit, tmp_path):
    folder = RunFolder(
        tmp_path, labels={"core": (2,), "whole": (1, 2)}, colours={"core": (9, 20, 30), "whole": (90, 80, 70)}
    )
    hu, labels = phantom()
    folder.add("one", hu, np.where(labels == 3, 0, labels).astype(np.uint8))
    write_run_pages(folder.output, folder.report, cases=folder.cases)
    visit.open(folder.output / "report" / "cases" / "one.html", viewer=True)
    colour_of_2 = (
        "(({ lut, min }) => [...lut.slice((2 - min) * 4, (2 - min) * 4 + 3)])(viewer.volumes[1].colormapLabel)"
    )
    assert visit.page.evaluate(colour_of_2) == [9, 20, 30]
    visit.page.uncheck("label:has-text('core') input.shown")
    assert visit.page.evaluate(colour_of_2) == [90, 80, 70]
