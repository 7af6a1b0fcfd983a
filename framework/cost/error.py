"""How far a cost model is from steps that it was not fitted on."""

import numpy as np
import pandas as pd

from framework.cost.features import features_in
from framework.cost.fit import launching, predict
from framework.cost.least_squares import Floats
from framework.cost.model import CostModel
from framework.cost.tables import padded

INTERVAL = (0.05, 0.95)  # quantiles of the 90% interval


def predicted(model: CostModel, log: pd.DataFrame) -> pd.DataFrame:
    """Of every step of a log: its kind, the seconds measured, and the median, mean and 90% interval that are predicted.

    Steps of a kind that the model does not know are left out.
    """
    features = features_in(log).reset_index(drop=True)
    measured = log["elapsed"].to_numpy(float)
    awaited = launching({kind: cost.host for kind, cost in model.kinds.items()}, features)
    parts = []
    for kind, cost in model.kinds.items():
        of_kind = features[features["kind"] == kind]
        if of_kind.empty:
            continue
        rows = [padded(int(num), model.sizes.get(kind, [])) for num in of_kind["num_rows"]]
        typical = predict(cost, of_kind.assign(num_rows=rows), awaited[of_kind.index])
        low, high = (typical * cost.ratio_at(quantile) for quantile in INTERVAL)
        columns = {"median": typical * cost.ratio_at(0.5), "mean": typical * cost.mean_ratio, "low": low, "high": high}
        parts.append(pd.DataFrame({"kind": kind, "measured": measured[of_kind.index], **columns}, index=of_kind.index))
    return pd.concat(parts).sort_index()


def errors(steps: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Of each kind of step, and of all: what `predicted` made of them.

    `bias` is that of all seconds together; `median` and `p99` are quantiles of the relative error of a single step;
    `coverage` is the share of steps within their 90% interval.
    """
    groups = {"all": steps, **dict(list(steps.groupby("kind")))}
    return {str(kind): error(group) for kind, group in groups.items()}


def error(steps: pd.DataFrame) -> dict[str, float | None]:
    measured = steps["measured"]
    relative: Floats = np.abs(steps["median"] / measured - 1).to_numpy()
    is_inside = (steps["low"] <= measured) & (measured <= steps["high"])
    return {
        "num_steps": float(len(steps)),
        "bias": float(steps["mean"].sum() / measured.sum() - 1),
        "median": float(np.median(relative)),
        "p99": float(np.quantile(relative, 0.99)),
        "coverage": float(is_inside.mean()),
    }
