"""From nnU-Net's ``plans.json`` and ``dataset.json`` to a ModelSpec; no torch, no nnunetv2."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctseg.errors import SpecError
from ctseg.model_spec import ModelSpec

_LOGITS_ONLY_DEFAULTS = {"is_seg", "num_threads", "device", "memefficient_seg_resampling"}
"""Keyword arguments of nnU-Net's resamplers that change nothing for images and logits."""


def resolve_configuration(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration of the plans with all that it inherits.

    Raises:
        SpecError: The plans have no such configuration, or it inherits from itself.
    """
    configurations = plans.get("configurations", {})
    chain: list[str] = []
    resolved: dict[str, Any] = {}
    name: str | None = configuration
    while name is not None:
        if name in chain:
            raise SpecError(f"plans: configuration {configuration} inherits from itself: {' -> '.join([*chain, name])}")
        if name not in configurations:
            raise SpecError(f"plans: no configuration {name!r}, found {sorted(configurations)}")
        chain.append(name)
        resolved = {**configurations[name], **resolved}
        name = configurations[name].get("inherits_from")
    return resolved


def spec_from_plans(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str,
    *,
    name: str,
    mirror_axes: Sequence[int] | None,
    mirroring: str = "client",
    first_stage: ModelSpec | None = None,
    **extra: Any,
) -> ModelSpec:
    """Translate a trained nnU-Net's plans into a spec.

    Args:
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: Name of the configuration in the plans.
        name: Name of the model in the Triton repository.
        mirror_axes: The checkpoint's ``inference_allowed_mirroring_axes``; None and () both mean none.
        mirroring: Where mirroring happens: ``graph``, ``client`` or ``none``.
        first_stage: Whose labels the network gets, where the configuration is the second stage of a cascade.
        extra: Further fields of :class:`ModelSpec` (tensors, precision, postprocessing, provenance, …); requests
            have at most 4 patches unless ``max_batch_size`` is among them.

    Raises:
        SpecError: A field is missing, or names something that ctseg does not reproduce.
    """
    source = f"plans of {name}"
    try:
        resolved = resolve_configuration(plans, configuration)
        channel_names = dataset.get("channel_names") or dataset["modality"]
        raw = {
            "name": name,
            "configuration": configuration,
            "previous_stage": _previous_stage(resolved, dataset, first_stage, source),
            "channels": _channels(plans, channel_names, resolved),
            "reader": plans["image_reader_writer"],
            "file_ending": dataset["file_ending"],
            "transpose_forward": plans["transpose_forward"],
            "spacing_mm": resolved["spacing"],
            "patch_size": resolved["patch_size"],
            "resampling_data": _resampling(resolved, "data", source),
            "resampling_logits": _resampling(resolved, "probabilities", source),
            **_labels(dataset),
            "mirror_axes": sorted(mirror_axes or ()),
            "mirroring": mirroring if mirror_axes else "none",
            **{"max_batch_size": 4, **extra},
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise SpecError(f"{source}: {type(error).__name__}: {error}; is this a complete nnU-Net v2 model?") from error
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        raise SpecError(f"{source}: label manager {plans['label_manager']!r} is not nnU-Net's own, which ctseg follows")
    if resolved.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise SpecError(
            f"{source}: preprocessor {resolved['preprocessor_name']!r} is not nnU-Net's DefaultPreprocessor"
        )
    if len(raw["channels"]) != len(channel_names):
        raise SpecError(f"{source}: {len(raw['channels'])} normalisation schemes for {len(channel_names)} channels")
    return ModelSpec.validated(raw, source=source)


def _previous_stage(
    resolved: Mapping[str, Any], dataset: Mapping[str, Any], first_stage: ModelSpec | None, source: str
) -> dict[str, Any] | None:
    """Return what the second stage of a cascade gets from the first, as nnU-Net's preprocessor makes it."""
    name = resolved.get("previous_stage")
    if name is None:
        return None
    if first_stage is None or first_stage.configuration != name:
        found = "nothing" if first_stage is None else first_stage.configuration
        raise SpecError(f"{source}: the second stage of a cascade needs its first stage, {name}, found {found}")
    values = {value for values in _declared_labels(dataset).values() for value in values}
    return {
        "model": first_stage.name,
        "digest": first_stage.digest,
        "network_sha256": first_stage.network_sha256,
        "labels": sorted(values - {0, _ignore_label(dataset)}),
        "resampling": _seg_resampling(resolved, source),
    }


def _seg_resampling(resolved: Mapping[str, Any], source: str) -> dict[str, Any]:
    function = resolved["resampling_fn_seg"]
    kwargs = dict(resolved["resampling_fn_seg_kwargs"])
    if not kwargs.pop("is_seg", False) and function != "no_resampling_hack":
        raise SpecError(f"{source}: resampling_fn_seg has is_seg not set: it would mix label values")
    if kwargs.get("memefficient_seg_resampling"):
        raise SpecError(f"{source}: resampling_fn_seg has memefficient_seg_resampling set, which ctseg does not follow")
    kept = {key: value for key, value in kwargs.items() if key not in _LOGITS_ONLY_DEFAULTS}
    if function == "resample_data_or_seg_to_shape":
        # the defaults of nnU-Net's function, which apply where the plans are silent
        kept = {"order": 3, "order_z": 0, "force_separate_z": False, **kept}
    return {"function": function, **kept}


def _channels(plans: Mapping[str, Any], names: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[dict[str, Any]]:
    intensities = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    return [
        {
            "name": str(names[str(i)]),
            "normalization": scheme,
            "use_mask_for_norm": resolved["use_mask_for_norm"][i],
            "intensity": {
                key: intensities[str(i)][key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")
            },
        }
        for i, scheme in enumerate(resolved["normalization_schemes"])
    ]


def _resampling(resolved: Mapping[str, Any], what: str, source: str) -> dict[str, Any]:
    function = resolved[f"resampling_fn_{what}"]
    kwargs = dict(resolved[f"resampling_fn_{what}_kwargs"])
    if kwargs.get("is_seg"):
        raise SpecError(f"{source}: resampling_fn_{what} has is_seg set, which is meant for label maps only")
    kept = {key: value for key, value in kwargs.items() if key not in _LOGITS_ONLY_DEFAULTS}
    if function == "resample_data_or_seg_to_shape":
        # the defaults of nnU-Net's function, which apply where the plans are silent
        kept = {"order": 3, "order_z": 0, "force_separate_z": False, **kept}
    return {"function": function, **kept}


def _labels(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Labels or regions in the order of the network's heads, as nnU-Net's LabelManager has them."""
    declared = _declared_labels(dataset)
    declared.pop("ignore", None)
    result: dict[str, Any] = {"ignore_label": _ignore_label(dataset)}
    if any(len(values) > 1 for values in declared.values()):
        heads = [(name, values) for name, values in declared.items() if set(values) != {0}]
        result["regions_class_order"] = tuple(int(v) for v in dataset["regions_class_order"])
    else:
        heads = sorted(declared.items(), key=lambda item: item[1])
    result["labels"] = [{"name": name, "values": values} for name, values in heads]
    return result


def foreground_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of labels or regions in nnU-Net's order, without the background: that of its pseudo Dice.

    Args:
        dataset: ``dataset.json``.
    """
    return tuple(label["name"] for label in _labels(dataset)["labels"] if set(label["values"]) != {0})


def _declared_labels(dataset: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
        for name, value in dataset["labels"].items()
    }


def _ignore_label(dataset: Mapping[str, Any]) -> int | None:
    return _declared_labels(dataset).get("ignore", (None,))[0]
