"""Symbols in an ASCII terminal, and progress bars in a log file."""

import io
import sys

from gradalign_jax import terminal


def spelled(text, encoding, monkeypatch):
    content = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
        patch.setattr(sys, "stderr", io.StringIO())
        terminal.spell_symbols()
        print(text, end="", flush=True)
        return content.getvalue().decode(encoding)


def test_symbols_are_spelled_where_the_terminal_lacks_them(monkeypatch):
    text = "ε50% PGD L∞, ᾱ_Δx (x, Ψ_c̃ - Ψ_y) ± 語"
    assert spelled(text, "ascii", monkeypatch) == "eps50% PGD Linf, alpha_Dx (x, Psi_c - Psi_y) +- ?"
    assert spelled("± ε", "latin-1", monkeypatch) == "± eps"
    assert spelled(text, "utf-8", monkeypatch) == text


def test_a_bar_in_a_log_file_is_a_line_a_minute(monkeypatch):
    log, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.progress_bar(total=200, unit="step", mininterval=0) as bar:
        for second in range(1, 151):
            clock[0] = float(second)
            bar.set_description(f"step {second}")
            bar.update()
    assert "\r" not in log.getvalue()
    lines = log.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["step 60", "step 120", "step 150"]
    assert lines[0].startswith("0%") and lines[-1].count("150/200") == 1


def test_a_bar_in_a_terminal_is_redrawn(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    for _ in terminal.progress_bar(range(3), mininterval=0):
        pass
    assert shown.getvalue().count("\r") >= 4
