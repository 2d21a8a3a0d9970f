"""The parts of the proof, in their order.

To add one: a module here with ``run(bench, tell)``, and a line below. It tells rows as it finds them; what it
needs of an earlier part it takes from the bench, and says ``not run`` where that is missing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One part of the proof.

    Attributes:
        name: For the table and for ``--only``.
        what: What it looks at.
        limit_s: After this it is killed.
        module: Has ``run(bench, tell)``.
        least_s: Kept for it whatever the parts before it take.
    """

    name: str
    what: str
    limit_s: float
    module: str
    least_s: float = 0.0


def _section(name: str, what: str, limit_s: float, least_s: float) -> Section:
    return Section(name, what, limit_s, f"{__name__}.{name}", least_s)


SECTIONS = (
    _section("runtimes", "what is installed, and whether it really runs here", 90, least_s=60),
    _section("memory", "the planner's estimate beside training steps, mixed precision on and off", 120, least_s=60),
    _section("nccl", "two processes train as one does", 60, least_s=15),
    _section("export", "trained networks to bundles, by ctseg export", 170, least_s=80),
    _section("build", "bundles to entries, by ctseg build, with every runtime that was found", 180, least_s=80),
    _section("serve", "a real Triton serves them: answers, windows a second, mirroring", 150, least_s=80),
    _section("folder", "a folder by ctseg predict and by nnUNetv2_predict, in turns", 180, least_s=90),
)
