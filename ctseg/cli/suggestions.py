"""What somebody may have meant by a flag, a command or a value that there is not."""

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

_SYNONYMS: Mapping[str, Sequence[str]] = {
    "--learning_rate": ("--lr",),
    "--initial_lr": ("--lr",),
    "--max_epochs": ("--epochs",),
    "--num_epochs": ("--epochs",),
    "--continue": ("--c",),
    "--continue_training": ("--c", "--if_needed"),
    "--resume": ("--c",),
    "--force": ("--overwrite",),
    "--bs": ("--batch_size",),
    "--gpus": ("--distributed", "-device"),
    "--disable_mirroring": ("--disable_tta",),
    "--no_tta": ("--disable_tta",),
    "--no_mirroring": ("--disable_tta",),
    "--save_softmax": ("--save_probabilities", "--npz"),
    "--input": ("-i", "--images"),
    "--output": ("-o",),
    "--reference": ("-r",),
    "--references": ("-r",),
    "--gt": ("-r", "--labels"),
    "--model": ("-m",),
    "--folds": ("-f",),
    "--fold": ("-f",),
    "--host": ("--url",),
    "--server": ("--url",),
    "--step_size": ("--tile_step_size",),
    "--overlap": ("--tile_step_size",),
    "--threads": ("-np", "--workers", "--jobs"),
    "--num_processes": ("-np", "--workers", "--jobs"),
}
"""What other programs, and nnU-Net's code, call it; the first of the flags that the command has is meant."""

_WORDS = {
    "gpu": "cuda",
    "evaluate_folder": "evaluate",
    "evaluate_simple": "evaluate",
    "predict_from_modelfolder": "predict",
    "plan_experiment": "plan",
    "preprocess": "plan",
    "extract_fingerprint": "plan",
    "convert_msd_dataset": "dataset",
    "export_model_to_zip": "export",
    "determine_postprocessing": "find-best",
}

_WORD = re.compile(r"[A-Za-z_]+")
_NUMBER = re.compile(r"-\d|-\.\d")


def unknown_flags(words: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the words that look like flags and are none of those that are known, in the order given.

    Args:
        words: After the name of the command.
        known: The flags that the command has.
    """
    flags, unknown = frozenset(known), []
    for word in words:
        if word == "--":
            break
        name = word.partition("=")[0]
        if len(name) < 2 or name[0] != "-" or " " in word or _NUMBER.match(word) or name in flags:
            continue
        # -f0 is -f 0; -chk is not -c hk
        if name.startswith("--") or name[:2] not in flags or _WORD.fullmatch(name[1:]):
            unknown.append(name)
    return unknown


def meant_flags(flag: str, actions: Iterable[argparse.Action]) -> list[str]:
    """Return which flags of a command may be meant by one that it does not have, the likeliest first; at most two."""
    names: dict[str, str] = {}
    for action in actions:
        if action.help == argparse.SUPPRESS:
            continue
        for option in action.option_strings:
            names[option] = option
        if action.option_strings:
            # what it sets is another name: -f sets the folds
            names.setdefault(f"--{action.dest}", max(action.option_strings, key=len))
    asked = flag.lstrip("-").lower().replace("-", "_")
    for synonym, others in _SYNONYMS.items():
        if there := next((other for other in others if other in names), None):
            names.setdefault(synonym, names[there])
    bare = {name.lstrip("-"): meant for name, meant in names.items()}
    if asked in bare:
        return [bare[asked]]
    close = difflib.get_close_matches(asked, bare, n=3, cutoff=0.7)
    return list(dict.fromkeys(bare[name] for name in close))[:2]


def meant_word(word: str, words: Iterable[str]) -> str | None:
    """Return the word that may be meant by another one; None: nothing is near."""
    asked = word.lower().replace("-", "_").removeprefix("nnunetv2_")
    spelled = {known.lower().replace("-", "_"): known for known in words}
    asked = _WORDS.get(asked, asked).replace("-", "_")
    return next((spelled[near] for near in difflib.get_close_matches(asked, spelled, n=1, cutoff=0.6)), None)
