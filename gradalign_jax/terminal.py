"""Terminal output: symbols spelled out where the encoding lacks them, and progress bars that do not flood a log."""

import codecs
import io
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_SPELLED = {
    **{"ε": "eps", "α": "alpha", "ᾱ": "alpha", "Δ": "D", "Ψ": "Psi", "λ": "lambda", "η": "eta", "ℓ": "l", "∇": "grad "},
    **{"∞": "inf", "√": "sqrt", "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "′": "'", "–": "-", "−": "-", "’": "'"},
    **dict.fromkeys("\u0302\u0303\u0304", ""),  # combining hat, tilde and bar
}
_LOG_SECONDS = 60.0


def spell_symbols() -> None:
    """Print `eps` for ε on a terminal or file that cannot encode it, instead of raising UnicodeEncodeError."""
    codecs.register_error("gradalign_jax", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="gradalign_jax")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(symbol, "?") for symbol in error.object[error.start : error.end]), error.end


_quiet = False


def be_quiet() -> None:
    """Show no progress bars from here on, as in all but the first of several processes."""
    global _quiet
    _quiet = True


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """Return a bar on standard error: redrawn in a terminal, one line per minute elsewhere.

    Args:
      iterable: as for tqdm.
      options: as for tqdm.
    """
    if _quiet:
        return tqdm(iterable, disable=True, **options)
    if sys.stderr.isatty():
        return tqdm(iterable, file=sys.stderr, dynamic_ncols=True, **options)
    return tqdm(iterable, file=_Log(sys.stderr), **options)


class _Log(io.TextIOBase):
    """A file that writes a bar's redraws as lines: the first, then one per minute, and the last."""

    def __init__(self, stream: TextIO):
        self._stream, self._line, self._written, self._due = stream, "", "", 0.0

    @property
    def encoding(self) -> str:
        """The encoding by which tqdm chooses its symbols."""
        return getattr(self._stream, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        self._line = text.strip() or self._line
        ended = text.strip("\r") == "\n"  # tqdm closes a bar with a line break
        if self._line != self._written and (ended or time.monotonic() >= self._due):
            self._stream.write(f"{self._line}\n")
            self._stream.flush()
            self._written, self._due = self._line, time.monotonic() + _LOG_SECONDS
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
