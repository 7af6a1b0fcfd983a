"""Compose the config, check it, call it: `python run.py experiment=NAME key=value …`. The only importer of hydra."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from framework.config import check
from framework.core import StudyError

DEFAULT_EXPERIMENT = "continuous_batching"  # as in conf/config.yaml


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="config")
def main(config: DictConfig) -> None:
    """User errors become one line; HYDRA_FULL_ERROR=1 shows where they come from."""
    try:
        check(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        hydra.utils.call(config, _convert_="all")
    except (ValueError, OSError, StudyError, InstantiationException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        raise CompactHydraException(f"error: {innermost(error)}") from None
    print("reproduce with:", shlex.join(["python", "run.py", *HydraConfig.get().overrides.task]))


def innermost(error: BaseException) -> BaseException:
    """The error of the called function, which Hydra wraps in its own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def expand_preset(arguments: list[str]) -> list[str]:
    """`experiment=NAME preset=course` is short for `experiment=NAME/course`, a file beside the study's own."""
    presets = [argument.partition("=")[2] for argument in arguments if argument.startswith("preset=")]
    experiments = [argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")]
    if not presets:
        return arguments
    kept = [argument for argument in arguments if not argument.startswith(("preset=", "experiment="))]
    return [f"experiment={(experiments or [DEFAULT_EXPERIMENT])[-1]}/{presets[-1]}", *kept]


def stop(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.argv[1:] = expand_preset(sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: finished points are on disk; the same command goes on from there")
