"""How long an output will be, as an order is told: what the request really asks for, or what a predictor says."""

from framework.core import Request

PREDICTED = ("num_predicted_tokens",)


def output_length(request: Request, predicted: bool) -> int:
    """Output tokens; ValueError where a prediction is asked for and the trace has none."""
    if not predicted:
        return request.num_output_tokens
    if request.num_predicted_tokens is None:
        raise ValueError(
            f"order.predicted=true needs num_predicted_tokens, which request {request.request_id} does not have: give "
            "the trace predictions, such as +predictions@trace.predictions=kendall"
        )
    return request.num_predicted_tokens
