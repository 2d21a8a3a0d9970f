"""The doctor names what is wrong and what to do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ctseg.cli.main import main
from ctseg.deploy.build import BuildOptions, build_entry
from ctseg.deploy.bundle import Bundle
from ctseg.deploy.doctor import Finding, examine


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    build_entry(bundle.folder, folder, BuildOptions(runtime="onnxruntime"))
    return folder


def about(findings: list[Finding], subject: str) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def test_every_problem_and_note_comes_with_advice(repository: Path) -> None:
    findings = examine(repository=repository, urls=["127.0.0.1:1"])
    assert len(findings) > 8
    assert all(finding.advice for finding in findings if finding.level == "problem")
    assert about(findings, "server 127.0.0.1:1").level == "problem"


def test_proven_entry_is_fine(repository: Path) -> None:
    finding = about(examine(repository=repository), "model unet, version 1")
    assert finding.level == "ok"
    assert "python, fp32, digest" in finding.found
    assert "parity proven" in finding.found


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


def test_broken_entry_is_named(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    (copy / "unet" / "1" / "model.onnx").unlink()
    finding = about(examine(repository=copy), "model unet")
    assert finding.level == "problem"
    assert finding.advice == "build the entry again, or remove it"


def test_plan_built_elsewhere_cannot_be_judged_without_a_gpu(repository: Path, tmp_path: Path, bundle: Bundle) -> None:
    from tests.deploy.test_build import OnnxAsPlan

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
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    assert main(["doctor", "--repository", str(repository), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"subject", "level", "found", "advice"} == set(findings[0])
    assert main(["doctor", "--repository", str(tmp_path)]) == 1
    assert "-> ctseg build BUNDLE --repository DIR" in capsys.readouterr().out


@pytest.mark.live
def test_entry_is_compared_with_its_bundle_by_a_server_of_its_own(
    repository: Path, bundle: Bundle, tmp_path: Path
) -> None:
    (finding,) = [item for item in examine(repository=repository, bundle=bundle.folder) if "parity" in item.subject]
    assert finding.level == "ok"
    assert "live server, unet, case: relative L2" in finding.found


def test_bundle_without_anything_to_compare_is_a_problem(repository: Path, bundle: Bundle, tmp_path: Path) -> None:
    subject = f"bundle {bundle.folder}"
    assert "no server (--url) and no entry" in about(examine(bundle=bundle.folder), subject).found
    assert about(examine(repository=repository, bundle=tmp_path), f"bundle {tmp_path}").level == "problem"
