"""What runs in an environment of an older nnU-Net, with that nnU-Net's own code: plan, train, predict, zip.

``python inside.py JOB.json``. Nothing of ctseg is imported. What is finished is not done again, so a job that was
stopped goes on. Two things are made to suit a short run on a CPU: processes are forked, since a new Python for each
of nnU-Net's pools would take most of the time, and what torch and numpy have dropped since its day is put back.
"""

import inspect
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORKED = multiprocessing.get_context("fork")
ITERATIONS = 15
EPOCHS = 2
BASE_FEATURES = 8
LOWRES_THRESHOLD = 0.7
"""Share of a scan that a patch has to cover, else there is a 3d_lowres."""
SPACING_MM = [3.0, 1.3, 1.3]


def main() -> None:
    """Do what a job asks for."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    multiprocessing.get_context = lambda method=None: FORKED  # noqa: ARG005 (nnU-Net asks for "spawn")
    mend()
    dataset = job["dataset"]
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112 (planners of 2.4 and later give it to torch as a number of threads)
    for planner in job["planners"]:
        plan(dataset, planner, memory_gb=job["memory_gb"])
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
    for training in job["trainings"]:
        train(dataset, **training)
    find_best(dataset, **job["ensemble"])
    for archive, models in job["archives"].items():
        write_archive(dataset, Path(archive), **models)
    for prediction in job["predictions"]:
        predict(Path(job["scan"]), **prediction)


def told(words: str) -> None:
    """Tell what is done."""
    print(f"        {words}", flush=True)


def mend() -> None:
    """Put back what old nnU-Nets need to train here.

    Up to 2.5 they give torch's schedulers a third argument and call numpy's ``in1d``; some stop an augmenter that has
    no processes.
    """
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from torch.optim.lr_scheduler import LRScheduler

    if not hasattr(np, "in1d"):
        np.in1d = lambda values, wanted: np.isin(np.ravel(values), wanted)  # noqa: NPY201
    SingleThreadedAugmenter._finish = lambda self: None  # noqa: ARG005
    initialise = LRScheduler.__init__

    def accepting(self: Any, optimizer: Any, last_epoch: int = -1, *_verbose: bool) -> None:
        initialise(self, optimizer, last_epoch)

    LRScheduler.__init__ = accepting


def plan(dataset: str, planner_name: str, *, memory_gb: float) -> None:
    """Plan and preprocess with one of nnU-Net's planners.

    Little graphics memory and few features make small patches; a 3d_lowres is planned although scans are small too.
    """
    import nnunetv2
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder, number = Path(nnUNet_preprocessed) / dataset, number_of(dataset)
    done = folder / f"{planner_name}.done"
    if done.exists():
        return
    if not (folder / "dataset_fingerprint.json").exists():
        api.extract_fingerprint_dataset(number, num_processes=1, check_dataset_integrity=True, verbose=False)
    root = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    kind = recursive_find_python_class(root, planner_name, current_module="nnunetv2.experiment_planning")
    planner = kind(number, gpu_memory_target_in_gb=memory_gb, overwrite_target_spacing=SPACING_MM)
    planner.UNet_base_num_features = BASE_FEATURES
    planner.lowres_creation_threshold = LOWRES_THRESHOLD
    planner.plan_experiment()
    api.preprocess_dataset(number, planner.plans_identifier, ["2d", "3d_fullres", "3d_lowres"], [1, 1, 1])
    done.touch()
    told(f"planned {planner.plans_identifier}")


def number_of(dataset: str) -> int:
    """Return the number in ``DatasetXXX_Name``."""
    return int(dataset.partition("_")[0].removeprefix("Dataset"))


def train(dataset: str, *, trainer: str, plans: str, configuration: str, folds: list[int], validated: bool) -> None:
    """Train folds for a few iterations; validate them where asked."""
    from nnunetv2.run.run_training import get_trainer_from_args

    for fold in folds:
        torch.manual_seed(fold)
        np.random.seed(fold)  # noqa: NPY002 (nnU-Net's augmentation draws from it)
        its_trainer = get_trainer_from_args(dataset, configuration, fold, trainer, plans, device=torch.device("cpu"))
        folder = Path(its_trainer.output_folder)
        final, summary = folder / "checkpoint_final.pth", folder / "validation" / "summary.json"
        if final.exists() and (summary.exists() or not validated):
            continue
        its_trainer.num_iterations_per_epoch, its_trainer.num_val_iterations_per_epoch = ITERATIONS, 1
        its_trainer.num_epochs = EPOCHS
        if final.exists():
            its_trainer.initialize()
            its_trainer.load_checkpoint(str(final))
        else:
            its_trainer.run_training()
        if validated:
            its_trainer.inference_allowed_mirroring_axes = None  # an eighth of the time; the checkpoint has them
            its_trainer.perform_actual_validation(save_probabilities=True)
        told(f"trained {folder.parent.name} fold {fold}")


def find_best(dataset: str, *, trainer: str, plans: str, configurations: list[str], folds: list[int]) -> None:
    """Let nnU-Net compare configurations and their ensembles, which leaves their post-processing."""
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration
    from nnunetv2.paths import nnUNet_results

    if (Path(nnUNet_results) / dataset / "inference_information.json").exists():
        return
    models = [{"plans": plans, "configuration": name, "trainer": trainer} for name in configurations]
    find_best_configuration(dataset, models, num_processes=1, overwrite=False, folds=tuple(folds))
    told(f"compared {', '.join(configurations)} and their ensembles")


def write_archive(
    dataset: str, archive: Path, *, trainer: str, plans: str, configurations: list[str], folds: list[int]
) -> None:
    """Write what ``nnUNetv2_export_model_to_zip`` writes."""
    from nnunetv2.model_sharing.model_export import export_pretrained_model

    if archive.exists():
        return
    partial = archive.with_suffix(".partial")
    export_pretrained_model(dataset, str(partial), tuple(configurations), trainer, plans, tuple(folds))
    partial.rename(archive)
    told(f"zipped {', '.join(configurations)}")


def predict(
    scan: Path,
    *,
    output: str,
    members: list[list[dict[str, Any]]],
    postprocessing: str | None = None,
    predictor_kind: type | None = None,
) -> None:
    """Write the label map of a scan (z, y, x as the reader yields them) as ``.npy``.

    Args:
        scan: The CT.
        output: The file, left alone where it exists.
        members: Of an ensemble, one for a single model; each is its stages, two for a cascade: folder and folds.
        postprocessing: Where nnU-Net's ``postprocessing.pkl`` lies, if it found one.
        predictor_kind: nnU-Net's stock predictor where None.
    """
    if Path(output).exists():
        return
    kind = predictor_kind or stock_predictor()
    last = predictor(kind, **members[0][-1])
    if len(members) == 1:
        labels = predicted(kind, scan, members[0], probabilities=False)
    else:
        each = [predicted(kind, scan, member, probabilities=True)[1] for member in members]
        labels = last.label_manager.convert_probabilities_to_segmentation(np.mean(each, axis=0))
    labels = np.asarray(labels, np.uint8)
    if postprocessing is not None and Path(postprocessing).exists():
        from batchgenerators.utilities.file_and_folder_operations import load_pickle
        from nnunetv2.postprocessing.remove_connected_components import apply_postprocessing

        labels = apply_postprocessing(labels, *load_pickle(postprocessing))
    partial = Path(output).with_suffix(".partial")
    with partial.open("wb") as stream:
        np.save(stream, labels)
    partial.rename(output)


def predicted(kind: type, scan: Path, stages: list[dict[str, Any]], *, probabilities: bool) -> Any:
    """Return what nnU-Net's predictor gives for a case; the second stage of a cascade gets the labels of the first."""
    previous = predicted(kind, scan, stages[:-1], probabilities=False) if len(stages) > 1 else None
    its_predictor = predictor(kind, **stages[-1])
    images, properties = its_predictor.plans_manager.image_reader_writer_class().read_images([str(scan)])
    labels = None if previous is None else np.asarray(previous)[None].astype(np.float32)
    with torch.inference_mode():  # 2.4 adds up folds outside of it
        return its_predictor.predict_single_npy_array(images, properties, labels, None, probabilities)


def predictor(kind: type, *, folder: str, folds: list[int]) -> Any:
    """Return a predictor of a trained folder, on the CPU."""
    everything = inspect.signature(kind).parameters  # the word changed with nnU-Net 2.3
    on_device = next(name for name in everything if name.startswith("perform_everything_on_"))
    found = kind(device=torch.device("cpu"), allow_tqdm=False, **{on_device: False})
    found.initialize_from_trained_model_folder(folder, use_folds=tuple(folds))
    return found


def stock_predictor() -> type:
    """Return nnU-Net's own predictor."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    return nnUNetPredictor  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
