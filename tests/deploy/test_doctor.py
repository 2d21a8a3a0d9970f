"""The doctor names what is wrong and what to do."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctseg.cli.main import main
from ctseg.deploy import doctor
from ctseg.deploy.build import BuildOptions, build_entry
from ctseg.deploy.bundle import Bundle
from ctseg.deploy.doctor import Finding, examine
from ctseg.nnunet.variables import VARIABLES
from ctseg.recipe import Recipe
from ctseg.serving.recipe_entry import publish_recipe
from tests.support.onnx_as_plan import OnnxAsPlan
from tests.support.toy_models import toy_spec, write_toy_entry


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    build_entry(bundle.folder, folder, BuildOptions(runtime="onnxruntime"))
    return folder


def about(findings: list[Finding], subject: str) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


@pytest.fixture
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_folders")
def test_healthy_setup_has_one_problem_the_server_that_does_not_answer(repository: Path) -> None:
    findings = examine(repository=repository, urls=["127.0.0.1:1"])
    levels = {finding.subject: finding.level for finding in findings}
    assert len(levels) == len(findings)
    layers = {f"layer {name}": "ok" for name in ("client", "serve", "deploy", "train", "itk", "dicom")}
    assert {
        "ctseg": "ok", **layers, "CPU": "ok", "CPU runtimes": "ok", "shared memory": "ok", "tritonserver": "note",
        "model unet, version 1": "ok", "server 127.0.0.1:1": "problem",
    }.items() <= levels.items()  # fmt: skip
    assert [subject for subject, level in levels.items() if level == "problem"] == ["server 127.0.0.1:1"]
    server = about(findings, "server 127.0.0.1:1")
    assert server.advice == "start it, or correct the URL"
    for finding in findings:
        assert bool(finding.advice) == (finding.level != "ok"), finding


@pytest.mark.usefixtures("no_folders")
def test_missing_packages_are_a_problem_only_where_every_client_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("numba", "monai") else there(name))
    findings = examine()
    client, train = about(findings, "layer client"), about(findings, "layer train")
    assert (client.level, client.found) == ("problem", "not installed: numba")
    assert client.advice == "if you need it, install ctseg, as docs/install.md shows"
    assert (train.level, train.found) == ("note", "not installed: monai")
    assert train.advice == "if you need it, install ctseg with its extra 'train', as docs/install.md shows"
    layers = {found.subject.removeprefix("layer ") for found in findings if found.subject.startswith("layer ")}
    assert layers <= {"client", *metadata("ctseg").get_all("Provides-Extra")}


def test_little_shared_memory_and_a_full_disk_are_problems(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    findings = examine(repository=repository)
    memory, disk = about(findings, "shared memory"), about(findings, f"repository {repository}")
    assert (memory.level, disk.level) == ("problem", "problem")
    assert memory.found == "3 MiB free in /dev/shm; the python backend needs 256 MiB and more"
    assert disk.found == "3 MiB free on its disk"


def test_proven_entry_is_fine(repository: Path) -> None:
    finding = about(examine(repository=repository), "model unet, version 1")
    assert finding.level == "ok"
    assert "python, fp32, no votes of folds, digest" in finding.found
    assert finding.found.endswith("parity proven with scans and phantom")


def test_a_model_that_takes_no_whole_scans_is_told_and_a_build_mends_it(
    repository: Path, tmp_path: Path, bundle: Bundle
) -> None:
    assert about(examine(repository=repository), "whole scans unet_scan").level == "ok"
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    shutil.rmtree(copy / "unet_scan")
    finding = about(examine(repository=copy), "whole scans of unet")
    assert (finding.level, finding.found) == ("note", "none are taken: there is no unet_scan")
    build_entry(bundle.folder, copy, BuildOptions(runtime="onnxruntime", if_needed=True))
    assert about(examine(repository=copy), "whole scans unet_scan").found == "by version 1 of the model"


def test_changed_network_and_unproven_version_are_problems(repository: Path, tmp_path: Path, bundle: Bundle) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    with (copy / "unet" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    findings = examine(repository=copy)
    assert about(findings, "model unet, version 1, network").level == "problem"
    build = copy / "unet" / "1" / "build.json"
    content = json.loads(build.read_text())
    build.write_text(json.dumps({**content, "runtime": "onnxruntime 0.1"}))
    finding = about(examine(repository=copy), "model unet, version 1, runtime")
    assert "proven with onnxruntime 0.1; here is onnxruntime" in finding.found
    config = copy / "unet" / "config.pbtxt"
    config.write_text(config.read_text().replace('\\"proven\\"', '\\"unproven\\"'))
    assert about(examine(repository=copy), "model unet, version 1").level == "problem"


def test_repository_without_flock_is_told_and_what_killed_writers_leave(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "r"))
    assert not [finding for finding in examine(repository=copy) if finding.subject.endswith("locks")]
    (copy / ".ctseg.no-flock").touch()
    found = about(examine(repository=copy), f"repository {copy}, locks")
    assert found.level == "note"
    assert found.found == "flock does not serve there (a note in it says so): writers take turns by files"
    assert "remove the file that its error names" in found.advice


def test_broken_entry_is_named(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    (copy / "unet" / "1" / "model.onnx").unlink()
    finding = about(examine(repository=copy), "model unet")
    assert finding.level == "problem"
    assert finding.advice == "build the entry again, or remove it"


def test_plan_built_elsewhere_cannot_be_judged_without_a_gpu(repository: Path, tmp_path: Path, bundle: Bundle) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    options = replace(BuildOptions(), backend="tensorrt", precision="fp16")
    build_entry(bundle.folder, tmp_path, options, compiler=OnnxAsPlan())  # type: ignore[arg-type]
    finding = about(examine(repository=tmp_path), "model unet, version 1, plan")
    assert finding.level == "note"
    assert "built with TensorRT 11.2.1.2 on Test GPU 8.9 (8.9)" in finding.found


def test_missing_folder_of_nnunet_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "missing"))
    assert about(examine(), "nnUNet_raw").level == "problem"


def test_command_prints_json_and_says_by_its_code_whether_all_is_well(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_folders: None
) -> None:
    assert main(["doctor", "--repository", str(repository), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"subject", "level", "found", "advice", "settings"} == set(findings[0])
    assert main(["doctor", "--repository", str(tmp_path)]) == 1
    assert "-> `ctseg build` writes a repository" in capsys.readouterr().out


@pytest.mark.live
def test_entry_is_compared_with_its_bundle_by_a_server_of_its_own(
    repository: Path, bundle: Bundle, tmp_path: Path
) -> None:
    (finding,) = [item for item in examine(repository=repository, bundle=bundle.folder) if "parity" in item.subject]
    assert finding.level == "ok"
    assert "live server, unet, case: relative L2" in finding.found


def test_doctor_says_what_an_image_may_carry_of_a_bundle(
    bundle: Bundle, phantom_bundle: Bundle, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(bundle.folder, tmp_path / "b", ignore=shutil.ignore_patterns("parity_phantom")))
    for folder, level, words in (
        (bundle.folder, "ok", "parity/ holds patient data and stays here"),
        (phantom_bundle.folder, "ok", "no voxels of patients"),
        (older, "note", "an older ctseg wrote this bundle"),
    ):
        finding = about(examine(bundle=folder), f"bundle {folder}, images")
        assert finding.level == level
        assert words in finding.found


def test_bundle_without_anything_to_compare_is_a_problem(repository: Path, bundle: Bundle, tmp_path: Path) -> None:
    subject = f"bundle {bundle.folder}"
    finding = about(examine(bundle=bundle.folder), subject)
    assert (finding.found, finding.settings) == (
        "no server and no entry of its network to compare", ("urls", "repository"),
    )  # fmt: skip
    assert about(examine(repository=repository, bundle=tmp_path), f"bundle {tmp_path}").level == "problem"


def test_recipes_are_looked_at_with_their_members(tmp_path: Path) -> None:
    root = tmp_path / "models"
    spec = write_toy_entry(root, toy_spec("m"))
    step = {"kind": "model", "model": "m"}
    recipe = Recipe.model_validate({"name": "r", "members": [{"model": "m", "digest": spec.digest}], "step": step})
    publish_recipe(root, recipe)
    found = about(examine(repository=root), "recipe r, version 1")
    assert (found.level, found.found) == ("ok", f"model of m, digest {recipe.digest[:12]}")
    shutil.rmtree(root / "m")
    write_toy_entry(root, toy_spec("m", max_batch_size=3))
    found = about(examine(repository=root), "recipe r")
    assert found.level == "problem"
    assert "r: expected the member m with the spec" in found.found
    assert found.advice.startswith("write it again, with `ctseg recipe`")
