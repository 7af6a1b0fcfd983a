"""The schedulers in conf/scheduler, as a study gets them."""

from functools import cache, partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from framework.config import with_keywords
from framework.contracts import Scheduler
from framework.paths import ROOT

CONF = ROOT / "conf"
NAMES = sorted(path.stem for path in (CONF / "scheduler").glob("[!_]*.yaml"))


def shipped(name: str, **options: Any) -> partial[Scheduler]:
    """The scheduler of conf/scheduler/NAME.yaml with other `options`; to be called with blocks."""
    return with_keywords(instantiated(name), **options)


@cache
def instantiated(name: str) -> partial[Scheduler]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(f"scheduler/{name}").scheduler)
