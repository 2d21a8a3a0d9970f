"""``docs/compatibility.md``, from what was found."""

from collections.abc import Sequence
from datetime import date
from importlib.metadata import version

from ctseg import __version__
from scripts.compatibility.proof import NEWEST, Finding

_BEGIN = """# Models of older nnU-Nets

`ctseg export` takes what nnU-Net {newest} loads, models that older releases trained among them. Nothing special has to
be said:

```bash
ctseg export -i model.zip -o bundles/tumor                              # what nnUNetv2_export_model_to_zip wrote
ctseg export -i nnUNet_results/Dataset101_Tumor -c 3d_fullres -o bundles/tumor
ctseg export -i trained -o bundles/tumor --trust_checkpoint             # a trainer that builds its own network
```

A trainer that builds its network by its own code is found in the folders of `nnUNet_extTrainer`. Its code runs with
your rights, so it has to be trusted by name.

## What was proven

`make compatibility` installs each nnU-Net in an environment of its own, lets it plan, train, predict and zip with its
own code, then exports, builds and serves every model with ctseg {ctseg} and compares the labels of a scan that no model
was trained on. It wrote this page on {day}.

- **The data** are crops of the CT in `examples/demo_data`, labelled with bone, muscle and fat. Networks are small (8
  features) and trained for seconds, so they segment badly. Their labels are full of near ties, which makes equal labels
  harder, not easier.
- **Proven** means that the gates of `ctseg export` and `ctseg build` passed for each network and, where several work
  together, for the whole.
- **ctseg, float32** counts the voxels whose label is not what nnU-Net {newest} gives for the same files, with float32
  accumulators and logits. More than 1 in 10,000 of the scan's voxels fails the command.
- **ctseg, own** counts the voxels whose label is not what the nnU-Net that trained the model predicts, as it is. It
  keeps logits in float16, which decides near ties: it differs as much from nnU-Net {newest} in float32 (**float32,
  own**).
- Every release ran with torch {torch}, not with the torch of its day.
"""


def page_of(findings: Sequence[Finding]) -> str:
    """Return the page.

    Args:
        findings: Of all releases, in the order of the tables.
    """
    lines = [_BEGIN.format(newest=NEWEST, ctseg=__version__, torch=version("torch").split("+")[0], day=date.today())]
    for release in dict.fromkeys(finding.version for finding in findings):
        own = [finding for finding in findings if finding.version == release]
        lines += [f"### nnU-Net {release}", "", *_table(own), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(findings: Sequence[Finding]) -> list[str]:
    lines = [
        "| kind | trained by | export and build | voxels with a label | ctseg, float32 | ctseg, own | float32, own |",
        "|---|---|---|---|---|---|---|",
    ]
    for finding in findings:
        start = f"| {finding.kind} | {finding.trained} "
        if finding.refused:
            lines.append(f"{start}| refused: {finding.refused} | | | | |")
        elif finding.problem:
            lines.append(f"{start}| **fails**: {finding.problem} | | | | |")
        else:
            counts = (finding.foreground, finding.differing, finding.differing_own, finding.own_from_float32)
            lines.append(f"{start}| {finding.gate} | {' | '.join(f'{count:,}' for count in counts)} |")
    return lines
