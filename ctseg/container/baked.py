"""What an image may carry: bundles without voxels of patients.

``python -m ctseg.container.baked`` looks at the bundles of the image that is being built, and fails where one holds
``parity/``, or lacks ``parity_phantom/``, with which its first start proves what it builds.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ctseg.container.builds import find_bundles, members_of
from ctseg.container.log import log_to_standard_error
from ctseg.container.settings import read_settings
from ctseg.deploy.bundle import PARITY_SETS
from ctseg.errors import CtsegError, SetupError
from ctseg.files.mounts import MOUNTS, read_mounts

_log = logging.getLogger("ctseg.container.baked")  # not __name__, which is "__main__" in its process


def main() -> int:
    """Look at the bundles of an image that is being built; return an exit status."""
    log_to_standard_error()
    try:
        require_fit_for_image(members_of(find_bundles(read_settings().bundles)))
    except CtsegError as error:
        _log.error("%s: %s", type(error).__name__, error)
        return 2
    return 0


def require_fit_for_image(bundles: Sequence[Path]) -> None:
    """Refuse what an image may not carry, or what no image could be started with.

    Raises:
        SetupError: There is no bundle; or one holds patient data, or nothing that could prove it without.
    """
    if not bundles:
        raise SetupError("no bundle to carry: name a folder of `ctseg export`, or a folder of such folders")
    require_no_patients(bundles)
    lacking = [str(bundle) for bundle in bundles if not (bundle / PARITY_SETS["phantom"]).is_dir()]
    if lacking:
        raise SetupError(
            f"{', '.join(lacking)}: no {PARITY_SETS['phantom']}/ there, with which a first start proves what it "
            "builds: an older ctseg wrote it: export the model again"
        )


def require_no_patients(bundles: Sequence[Path]) -> None:
    """Refuse bundles with voxels of patients.

    Raises:
        SetupError: One holds them.
    """
    held = [str(bundle / PARITY_SETS["scans"]) for bundle in bundles if (bundle / PARITY_SETS["scans"]).exists()]
    if held:
        raise SetupError(
            f"{', '.join(held)}: voxels of patients in an image: whoever can pull it has them. Make the image without "
            f"that folder ({PARITY_SETS['phantom']}/ suffices), and remove this one from where it was pushed; or mount "
            "the bundle"
        )


def bundles_in_image(bundles: Sequence[Path], mounts: Path = MOUNTS) -> list[Path]:
    """Return the bundles that lie in the container's own file system, on no mount.

    Args:
        bundles: Folders.
        mounts: The kernel's list of mounts; where it cannot be read, nothing is known to lie in an image.
    """
    found = read_mounts(mounts)
    if not found:
        return []
    points = {Path(mount.point) for mount in found} - {Path("/")}
    return [bundle for bundle in bundles if points.isdisjoint((bundle.resolve(), *bundle.resolve().parents))]


if __name__ == "__main__":
    sys.exit(main())
