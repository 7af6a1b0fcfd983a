"""How much comes in a replay: a rate of arrivals, or a number of users."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """A `rate` of requests or session starts (1/s; None: as recorded), or a closed loop of so many `users` instead."""

    rate: float | None = None
    users: int | None = None

    @property
    def label(self) -> str:
        """A part of a folder's name."""
        if self.users is not None:
            return f"users{self.users}"
        return "recorded" if self.rate is None else f"rate{self.rate:g}"

    @property
    def trace_keywords(self) -> dict[str, float | int | None]:
        """What a trace is called with."""
        return {"rate": self.rate} if self.users is None else {"rate": None, "max_concurrency": self.users}

    @property
    def record(self) -> dict[str, float | int | None]:
        """As `point.json` has it."""
        return {"rate": self.rate} if self.users is None else {"rate": None, "users": self.users}

    def __str__(self) -> str:
        if self.users is not None:
            return f"users={self.users}"
        return "recorded rate" if self.rate is None else f"{self.rate:g} req/s"
