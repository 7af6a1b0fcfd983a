"""Writes the sample traces of this folder, byte for byte the same every time: `python traces/make_samples.py`.

Every number is drawn here from a seeded generator; nothing is taken from a public trace.
"""

import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

NUM_SMALL = 40  # rows of the samples of other projects' formats
Rows = list[tuple[object, ...]]


def main(folder: Path) -> None:
    """Write every sample into `folder`."""
    write_sample(folder, np.random.default_rng(23))
    write_sample_adapters(folder, np.random.default_rng(2))
    write_azure(folder, np.random.default_rng(3))
    write_mooncake(folder, np.random.default_rng(4))
    write_burstgpt(folder, np.random.default_rng(5))
    write_vidur(folder, np.random.default_rng(6))
    write_sessions(folder, np.random.default_rng(7))
    write_bailian(folder, np.random.default_rng(8))
    write_json_lines(folder, np.random.default_rng(9))
    write_conversations(folder, np.random.default_rng(10))


def write_sample(folder: Path, rng: np.random.Generator) -> None:
    """512 chat-like requests, bursty at 4 requests/s, small enough for a tiny model on a CPU."""
    times, prompts, outputs = draw_times(rng, 512, rate=4.0, cv=2.0), *draw_lengths(rng, 512)
    rows: Rows = [(f"{t:.6f}", p, o) for t, p, o in zip(times, prompts, outputs, strict=True)]
    write_csv(folder / "sample.csv", "arrival_time,num_prompt_tokens,num_output_tokens", rows)


def write_sample_adapters(folder: Path, rng: np.random.Generator) -> None:
    """256 requests, 16 adapters of Zipf(1.0) popularity with 3 sessions each, and about one request in 8 without."""
    times, prompts, outputs = draw_times(rng, 256, rate=4.0, cv=1.0), *draw_lengths(rng, 256)
    weights = 1 / np.arange(1, 17)
    adapters = rng.choice(16, size=256, p=weights / weights.sum())
    adapters[rng.random(256) < 1 / 8] = -1  # none
    names = ["" if adapter < 0 else f"adapter-{adapter}" for adapter in adapters]
    sessions = [f"session-{3 * (adapter + 1) + rng.integers(3)}" for adapter in adapters]
    priorities = rng.choice([0, 1, 2], size=256, p=[0.7, 0.2, 0.1])
    seconds = [f"{time:.6f}" for time in times]
    rows: Rows = list(zip(seconds, prompts, outputs, names, priorities, sessions, strict=True))
    header = "arrival_time,num_prompt_tokens,num_output_tokens,adapter_id,priority,session_id"
    write_csv(folder / "sample_adapters.csv", header, rows)


def write_azure(folder: Path, rng: np.random.Generator) -> None:
    """The form of 2023 (CRLF, seven digits, no last line end) and of 2024 (UTC offset, no digits at a full second)."""
    header = "TIMESTAMP,ContextTokens,GeneratedTokens"
    times, prompts, outputs = draw_times(rng, NUM_SMALL, rate=5.0, cv=1.5), *draw_lengths(rng, NUM_SMALL, scale=8)
    moments = [datetime(2020, 1, 2, 3, 4, 5, 250_000) + timedelta(seconds=t) for t in times.tolist()]
    rows: Rows = [(f"{m:%Y-%m-%d %H:%M:%S.%f}0", p, o) for m, p, o in zip(moments, prompts, outputs, strict=True)]
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (folder / "sample_azure_2023.csv").write_bytes("\r\n".join(lines).encode())

    times[10] = np.ceil(times[9])  # a full second
    times = np.maximum.accumulate(times)
    moments = [datetime(2020, 1, 2) + timedelta(seconds=t) for t in times.tolist()]
    rows = [(f"{m}+00:00", p, o) for m, p, o in zip(moments, prompts, outputs, strict=True)]
    write_csv(folder / "sample_azure_2024.csv", header, rows)


def write_mooncake(folder: Path, rng: np.random.Generator) -> None:
    """Requests of 8 conversations with one common first block; each turn repeats the one before and adds to it."""
    times = np.floor(draw_times(rng, NUM_SMALL, rate=2.0, cv=1.0)).astype(int) * 1000  # ms, at full seconds
    outputs = draw_lengths(rng, NUM_SMALL)[1]
    blocks: list[list[int]] = [[0] for _ in range(8)]
    next_id, lines = 1, []
    for time, output in zip(times.tolist(), outputs.tolist(), strict=True):
        conversation = int(rng.integers(8))
        num_new = int(rng.integers(1, 4))
        ids = [*blocks[conversation], *range(next_id, next_id + num_new)]
        next_id += num_new
        blocks[conversation] = ids[:-1]  # the last block is not full, so the next turn cannot share it
        length = 512 * (len(ids) - 1) + int(rng.integers(1, 512))
        row = {"timestamp": time, "input_length": length, "output_length": output, "hash_ids": ids}
        lines.append(json.dumps(row))
    write_lines(folder / "sample_mooncake.jsonl", lines)


def write_burstgpt(folder: Path, rng: np.random.Generator) -> None:
    """Version 1.1, and version 2.0 with sessions (none for API calls); four rows in 40 are failed requests."""
    times, prompts, outputs = draw_times(rng, NUM_SMALL, rate=0.2, cv=2.0), *draw_lengths(rng, NUM_SMALL, scale=4)
    outputs[[5, 11, 23, 38]] = 0
    models = rng.choice(["ChatGPT", "GPT-4"], size=NUM_SMALL, p=[0.8, 0.2])
    logs = rng.choice(["Conversation log", "API log"], size=NUM_SMALL)
    tails = [(model, p, o, p + o, log) for model, p, o, log in zip(models, prompts, outputs, logs, strict=True)]
    names = "Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows: Rows = [(int(t) + 5, *tail) for t, tail in zip(times, tails, strict=True)]
    write_csv(folder / "sample_burstgpt_1.csv", f"Timestamp,{names}", rows)

    sessions = [f"made-up-{index}" for index in rng.integers(12, size=NUM_SMALL)]
    rows = [
        (f"{int(t) + 10_000_000}.0", "" if tail[-1] == "API log" else session, 1 + tail[2] // 20, *tail)
        for t, session, tail in zip(times, sessions, tails, strict=True)
    ]
    write_csv(folder / "sample_burstgpt_2.csv", f"Timestamp,Session ID,Elapsed time,{names}", rows)


def write_vidur(folder: Path, rng: np.random.Generator) -> None:
    """Arrival times as floats of full length."""
    times, prompts, outputs = draw_times(rng, NUM_SMALL, rate=2.0, cv=1.0), *draw_lengths(rng, NUM_SMALL, scale=8)
    rows: Rows = [(round(t, 6) * 1.1, p, o) for t, p, o in zip(times.tolist(), prompts, outputs, strict=True)]
    write_csv(folder / "sample_vidur.csv", "arrived_at,num_prefill_tokens,num_decode_tokens", rows)


def draw_turns(rng: np.random.Generator, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows of conversations, one after the other: number of the session, turn, whole prompt and output (tokens)."""
    session, turn, said = 0, 0, 0
    new_texts, outputs = draw_lengths(rng, size)
    for new_text, output in zip(new_texts.tolist(), outputs.tolist(), strict=True):
        if turn and rng.random() < 1 / 3:
            session, turn, said = session + 1, 0, 0
        turn += 1
        yield session, turn, said + new_text, output
        said += new_text + output


def write_sessions(folder: Path, rng: np.random.Generator) -> None:
    """Conversations with think times, and requests of no session; every row has the time of its first turn."""
    times = np.cumsum(rng.exponential(0.8, size=2 * NUM_SMALL)).tolist()
    rows: Rows = []
    for session, turn, prompt, output in draw_turns(rng, NUM_SMALL):
        time, is_single = times[session], rng.random() < 1 / 10
        if is_single and turn == 1:
            rows.append((f"{time:.3f}", 64, 16, "", 1, ""))
        think_time = "" if turn == 1 else f"{rng.lognormal(1.0, 1.0):.3f}"
        rows.append((f"{time:.3f}", prompt, output, f"chat-{session}", turn, think_time))
    write_csv(
        folder / "sample_sessions.csv",
        "arrival_time,num_prompt_tokens,num_output_tokens,session_id,turn,think_time",
        rows,
    )


def write_bailian(folder: Path, rng: np.random.Generator) -> None:
    """Chats whose turns come 5 to 60 s after each other; blocks of 16 tokens, of which a turn keeps the full ones."""
    starts = np.cumsum(rng.exponential(4.0, size=NUM_SMALL)).tolist()
    rows, time, ids, next_id = [], 0.0, [0, 1], 2  # all chats begin with the same two blocks
    for session, turn, prompt, output in draw_turns(rng, NUM_SMALL):
        time = starts[session] if turn == 1 else time + rng.uniform(5, 60)
        prompt += 32
        ids = [*(ids[:2] if turn == 1 else ids[: rows[-1][3] // 16])]
        num_new = -(-prompt // 16) - len(ids)
        ids += range(next_id, next_id + num_new)
        next_id += num_new
        rows.append((time, session, turn, prompt, output, list(ids)))
    order = sorted(range(len(rows)), key=lambda index: rows[index][0])
    chats = {(rows[index][1], rows[index][2]): 100 + number for number, index in enumerate(order)}
    lines = []
    for index in order:
        time, session, turn, prompt, output, ids = rows[index]
        row = {"chat_id": chats[session, turn], "parent_chat_id": chats.get((session, turn - 1), -1)}
        row |= {"timestamp": round(time, 3), "input_length": prompt, "output_length": output}
        lines.append(json.dumps(row | {"type": "text", "turn": turn, "hash_ids": ids}))
    write_lines(folder / "sample_bailian.jsonl", lines)


def write_json_lines(folder: Path, rng: np.random.Generator) -> None:
    """Keys of nobody's form: times in ms, blocks of 64 tokens."""
    times, prompts, outputs = draw_times(rng, NUM_SMALL, rate=2.0, cv=1.0), *draw_lengths(rng, NUM_SMALL)
    lines = []
    for time, prompt, output in zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True):
        blocks = rng.integers(5, size=-(-prompt // 64)).tolist()
        row = {
            "at": round(1000 * time),
            "in": prompt,
            "out": output,
            "who": f"user-{rng.integers(9)}",
            "blocks": blocks,
        }
        lines.append(json.dumps(row))
    write_lines(folder / "sample_json_lines.jsonl", lines)


def write_conversations(folder: Path, rng: np.random.Generator) -> None:
    """ShareGPT's form: 12 chats about made-up words, one of them without an answer."""
    words = ["alpha", "river", "seven", "blue", "stone", "quick", "paper", "green", "cloud", "lamp"]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, size=rng.integers(low, high))) + "."

    chats = []
    for index in range(12):
        turns = [
            {"from": speaker, "value": text(3, 12)} for _ in range(rng.integers(1, 5)) for speaker in ("human", "gpt")
        ]
        chats.append({"id": f"chat-{index}", "conversations": turns[:1] if index == 5 else turns})
    (folder / "sample_conversations.json").write_bytes((json.dumps(chats, indent=1) + "\n").encode())


def draw_times(rng: np.random.Generator, size: int, rate: float, cv: float) -> np.ndarray:
    """Arrival times (s) with gamma gaps, scaled so that the mean rate is exactly `rate`."""
    times = np.concatenate([[0.0], np.cumsum(rng.gamma(cv**-2, size=size - 1))])
    return times * (size - 1) / (rate * times[-1])


def draw_lengths(rng: np.random.Generator, size: int, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Lognormal prompts (median 64) and outputs (median 32), `scale` times as long."""
    prompts = rng.lognormal(np.log(64 * scale), 0.8, size=size)
    outputs = rng.lognormal(np.log(32 * scale), 0.7, size=size)
    return np.clip(prompts, 4, 512 * scale).astype(int), np.clip(outputs, 1, 256 * scale).astype(int)


def write_csv(path: Path, header: str, rows: Rows) -> None:
    write_lines(path, [header, *(",".join(map(str, row)) for row in rows)])


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
