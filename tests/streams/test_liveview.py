"""The live view drawn into recorded consoles of several sizes; colours and cursor moves are rich's own matter."""

import dataclasses
import io
import math

import pytest
from rich.console import Console

from streams.livescreen import LiveScreen
from streams.liveview import BINS, DemoSnapshot, DemoView, HighScore, Phase, phase_list, plain_line, summary

PHASES = (
    Phase("starting Kafka", "done", 4.2, "Apache Kafka 4.1.0"),
    Phase("making history", "done", 0.9, "954,112 transactions"),
    Phase("training", "running", 3.14),
    Phase("worker starting"),
    Phase("live"),
)
SCORES = tuple(
    HighScore(1_763_877_600_000 - i * 60_000, 1000 + i, f"T-{i}", 99.5 + i, 0.99 - i / 100, "terminal_risk_7d 0.83")
    for i in range(60)
)
LIVE = DemoSnapshot(
    elapsed_s=23.4,
    seconds_total=60.0,
    phases=tuple(dataclasses.replace(p, state="done", seconds=1.0) for p in PHASES),
    live=True,
    backend="Apache Kafka 4.1.0 at 127.0.0.1:39092",
    model="fraud-demo@1",
    events_in_per_s=1003.2,
    events_out_per_s=998.0,
    history_in=[1000.0 + i for i in range(300)],
    history_out=[990.0 + i for i in range(300)],
    latency_ms_p50=3.21,
    latency_ms_p99=11.87,
    lag_records=12,
    received=23_012,
    scored=22_934,
    dead_letters=23,
    duplicates=43,
    late=115,
    score_histogram=[20_000 // (i + 1) for i in range(BINS)],
    high_scores=SCORES,
    alerts=["drift: amount PSI 0.31", "second", "third", "fourth", "fifth"],
)
SIZES = [(80, 24), (100, 30), (120, 40), (200, 60)]


def drawn(snapshot: DemoSnapshot, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, record=True, width=width, height=height, force_terminal=True, _environ={})
    console.print(DemoView(snapshot))
    return console.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_fills_the_console_and_never_more(width: int, height: int) -> None:
    lines = drawn(LIVE, width, height)
    assert height - 1 <= len(lines) <= height
    assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_shows_every_figure_at_every_size(width: int, height: int) -> None:
    text = "\n".join(drawn(LIVE, width, height))
    for shown in (
        *(
            "Apache Kafka 4.1.0 at 127.0.0.1:39092",
            "fraud-demo@1",
            "00:23 / 01:00",
            "1,003",
            "998",
            "3.2 ms",
            "11.9 ms",
        ),
        *(
            "received 23,012 = scored 22,934 + dead",
            "in flight 12",
            "late 115",
            "12 ",
            "0.990",
            "T-0",
            "terminal_risk_7d",
        ),
        "! drift: amount PSI 0.31",
    ):
        assert shown in text


def test_more_room_shows_more() -> None:
    small, large = ("\n".join(drawn(LIVE, *size)) for size in ((80, 24), (120, 40)))
    assert small.count("T-") >= 10 and large.count("T-") >= 20
    assert "second" not in small and "fourth" in large and "fifth" not in large
    assert "dead letters" not in small and "dead letters 23" in large
    assert "✓ starting Kafka 1.0 s" in large and "starting Kafka" not in small


@pytest.mark.parametrize("width", [40, 60, 75])
@pytest.mark.parametrize("height", [10, 16, 24])
def test_a_small_console_loses_the_histogram_first(width: int, height: int) -> None:
    lines = drawn(LIVE, width, height)
    assert max(len(line) for line in lines) <= width and len(lines) <= max(height, 16)
    assert "newest high scores" in "\n".join(lines) and "log scale" not in "\n".join(lines)


def test_histogram_is_logarithmic_and_shows_a_single_one() -> None:
    counts = [0] * BINS
    counts[0], counts[10], counts[19] = 100_000, 300, 1
    lines = drawn(dataclasses.replace(LIVE, score_histogram=counts), 80, 24)
    chart = [line[2 : 2 + BINS] for line in lines[7:18]]
    heights = [sum(row[bin_] != " " for row in chart) for bin_ in range(BINS)]
    assert heights[0] == len(chart) and heights[19] == 1
    assert heights[10] == pytest.approx(len(chart) / 2, abs=1.0)  # 300 is half way from 1 to 100,000
    assert all(heights[bin_] == 0 for bin_ in range(BINS) if not counts[bin_])


def test_an_empty_start_draws() -> None:
    lines = drawn(DemoSnapshot(live=True), 80, 24)
    text = "\n".join(lines)
    assert len(lines) <= 24 and "p50 --" in text and "no alerts" in text and "Ctrl-C ends it" in text
    assert plain_line(DemoSnapshot(live=True, latency_ms_p50=math.nan)).count("--") == 2


def test_starting_is_a_checklist_with_seconds() -> None:
    lines = [line.rstrip() for line in drawn(DemoSnapshot(elapsed_s=8.0, phases=PHASES, backend="Kafka"), 80, 24)]
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "✓ starting Kafka 4.2 s Apache Kafka 4.1.0",
        "✓ making history 0.9 s 954,112 transactions",
        "▸ training 3.1 s",
        "· worker starting",
        "· live",
    ]
    failed = dataclasses.replace(PHASES[2], state="failed", detail="no rows")
    assert "✗ training" in "\n".join(drawn(DemoSnapshot(phases=(failed,)), 80, 24))


@pytest.mark.parametrize("snapshot", [LIVE, DemoSnapshot(phases=PHASES)], ids=["live", "starting"])
def test_an_ascii_terminal_gets_ascii(snapshot: DemoSnapshot) -> None:
    text = "\n".join(drawn(snapshot, 80, 24, encoding="ascii"))
    assert text.isascii()


def test_text_from_the_stream_is_not_markup() -> None:
    row = HighScore(0, "[red]c", "[/]t", 1.0, 0.9, "[bold]r")
    text = "\n".join(drawn(dataclasses.replace(LIVE, high_scores=[row], alerts=["[x] y"], model="[m]"), 120, 40))
    for shown in ("[red]c", "[/]t", "[bold]r", "[x] y", "[m]"):
        assert shown in text


def test_text_from_the_stream_cannot_drive_the_terminal() -> None:
    row = HighScore(0, "\x1b[2Jc", "é\nt", 1.0, 0.9, "r\x07")
    for encoding, card, terminal in (("utf-8", "?[2Jc", "é?t"), ("ascii", "?[2Jc", "??t")):
        lines = drawn(dataclasses.replace(LIVE, high_scores=[row]), 120, 40, encoding)
        assert len(lines) <= 40 and any(card in line and terminal in line and "r?" in line for line in lines)


def text_of(snapshot: DemoSnapshot, width: int = 100, **options: bool) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), _environ={})
    console.print(summary(snapshot, **options))
    return console.export_text()


def test_summary_accounts_for_every_transaction() -> None:
    whole = dataclasses.replace(LIVE, scored=22_946)
    assert "received 23,012 = scored 22,946 + dead letters 23 + duplicates 43  ✓" in text_of(whole)
    assert "✗" in text_of(LIVE) and "12 unaccounted for" in text_of(LIVE)
    twice = dataclasses.replace(LIVE, scored=22_950)
    assert "✗" in text_of(twice) and "4 counted more than once" in text_of(twice)
    assert "✓" not in text_of(LIVE) and "duplicates 43  ok" in text_of(whole, ascii_only=True)


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [40, 80, 100])
def test_what_is_left_at_the_end_is_whole_and_no_wider_than_the_terminal(width: int, ascii_only: bool) -> None:
    reason = "no Kafka, the log in this process instead: java is version 11.0.21, too old: install version 17 or newer"
    phases = (Phase("kafka", "done", 0.1, reason), Phase("history", "done", 12.3, "75 days, 2,226,233 payments"))
    large = dataclasses.replace(LIVE, received=123_456_789, scored=123_456_723, backend="x" * 70)
    console = Console(record=True, width=width, file=io.StringIO(), _environ={})
    console.print(phase_list(phases, ascii_only))
    console.print(summary(large, ascii_only=ascii_only))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(lines).replace("│", " ").split()
    for value in [*reason.split(), "2,226,233", "123,456,789", "123,456,723", "23", "43"]:
        assert value in words
    assert "".join(words).count("x") >= 70 and "…" not in "".join(words)


def test_without_a_terminal_a_plain_line_every_few_seconds() -> None:
    console = Console(file=(out := io.StringIO()), width=40, _environ={})
    with LiveScreen(console, every_s=5.0) as screen:
        screen.update(DemoSnapshot(phases=PHASES))
        screen.update(DemoSnapshot(phases=PHASES))
        for elapsed_s in (0.0, 1.0, 4.9, 5.0, 9.0, 10.5):
            screen.update(dataclasses.replace(LIVE, elapsed_s=elapsed_s))
    lines = out.getvalue().splitlines()
    assert lines[:2] == [
        "starting Kafka: done, 4.2 s  Apache Kafka 4.1.0",
        "making history: done, 0.9 s  954,112 transactions",
    ]
    assert [line.split(" s ")[0].strip() for line in lines if "in 1,003/s" in line] == ["0", "5", "10"]
    assert lines[-1].endswith("received 23,012 = scored 22,934 + dead letters 23 + duplicates 43 + in flight 12")
    assert "\x1b" not in out.getvalue()


def test_plain_line_while_starting_names_the_phase() -> None:
    assert plain_line(DemoSnapshot(phases=PHASES)) == "training 3.1 s"
    failed = dataclasses.replace(PHASES[2], state="failed")
    assert plain_line(DemoSnapshot(phases=(failed,))) == "training 3.1 s FAILED"


def test_a_terminal_is_given_back_as_it_was_whatever_happens() -> None:
    console = Console(file=(out := io.StringIO()), width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    with pytest.raises(KeyboardInterrupt), LiveScreen(console) as screen:  # noqa: PT012 - the update belongs inside
        screen.update(LIVE)
        raise KeyboardInterrupt
    text = out.getvalue()
    assert text.index("\x1b[?1049h") < text.index("fraud-demo@1") < text.index("\x1b[?1049l")
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
