"""How many CPU threads PyTorch may be given."""

MAX_THREADS = 1024  # PyTorch hangs or crashes with many thousands


def check_threads(name: str, num_threads: int | None) -> None:
    """ValueError unless `num_threads`, the value of the key `name`, is from 1 to MAX_THREADS or None: PyTorch's own."""
    if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
        raise ValueError(f"{name} {num_threads} must be from 1 to {MAX_THREADS}")
