"""The orders in conf/order, as a scheduler gets them."""

from functools import cache, partial
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from framework.config import with_keywords
from framework.contracts import Order
from tests.scheduler.shipped import CONF

ORDERS = sorted(path.stem for path in (CONF / "order").glob("*.yaml"))


def shipped_order(name: str, **options: Any) -> partial[Order]:
    """The order of conf/order/NAME.yaml with other `options`, in a study whose SLO has a TTFT and a TPOT."""
    return with_keywords(instantiated(name), **options)


@cache
def instantiated(name: str) -> partial[Order]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(f"order/{name}", overrides=["+slo.ttft=0.5", "+slo.tpot=0.02"]).order)
