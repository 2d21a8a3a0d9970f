"""nnU-Net's functions, array to array; run in a process of their own, which alone loads torch and nnU-Net."""

import time
from typing import Any, cast

import numpy as np

from benchmarks.experiments.function_jobs import Array, Job, JobResult, patch_logits, smooth_logits, timed
from ctseg.compiled.cpus import usable_cpus


def run_job(job: Job) -> JobResult:
    """Run a function of nnU-Net."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(usable_cpus())
    manager = PlansManager(job.network.plans)
    run = {"prepare": _prepare, "blend": _blend, "export": _export}
    return run[job.function](job, manager, manager.get_configuration("3d_fullres"))


def _prepare(job: Job, manager: Any, configuration: Any) -> JobResult:
    reader = manager.image_reader_writer_class()
    voxels, properties = reader.read_images([job.scan])
    preprocessor = configuration.preprocessor_class(verbose=False)
    dataset = job.network.dataset_json

    def prepare(array: Array) -> tuple[float, Array]:
        data, *_ = preprocessor.run_case_npy(array, None, dict(properties), manager, configuration, dataset)
        return 0.0, data

    prepare(voxels[:, :8, :32, :32])
    return timed(lambda: prepare(voxels), job)


def _blend(job: Job, manager: Any, configuration: Any) -> JobResult:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    logits = torch.from_numpy(patch_logits(job)[None])
    answering_s = [0.0]

    class InstantPredictor(nnUNetPredictor):  # type: ignore[misc]  # nnU-Net has no types
        def _internal_maybe_mirror_and_predict(self, x: Any) -> Any:  # noqa: ARG002 - nnU-Net's signature
            started = time.perf_counter()
            answer = logits.clone()  # nnU-Net multiplies in place
            answering_s[0] += time.perf_counter() - started
            return answer

    predictor = InstantPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False
    )
    predictor.configuration_manager = configuration
    predictor.label_manager = manager.get_label_manager(job.network.dataset_json)
    data = torch.zeros((1, *job.source_shape))

    def blend() -> tuple[float, Array]:
        answering_s[0] = 0.0
        slicers = predictor._internal_get_sliding_window_slicers(data.shape[1:])
        with torch.inference_mode():
            blended = predictor._internal_predict_sliding_window_return_logits(data, slicers, False)
        return answering_s[0], cast(Array, blended[:, job.source_shape[0] // 2].float().numpy())

    return timed(blend, job)


def _export(job: Job, manager: Any, configuration: Any) -> JobResult:
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    logits = torch.from_numpy(smooth_logits(job))
    properties = {
        "spacing": list(job.spacing_mm),
        "shape_before_cropping": job.target_shape,
        "shape_after_cropping_and_before_resampling": job.target_shape,
        "bbox_used_for_cropping": [[0, size] for size in job.target_shape],
    }
    labels = manager.get_label_manager(job.network.dataset_json)
    threads = torch.get_num_threads()

    def export() -> tuple[float, Array]:
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, manager, configuration, labels, properties, False, threads
        )
        return 0.0, np.asarray(segmentation)

    return timed(export, job)
