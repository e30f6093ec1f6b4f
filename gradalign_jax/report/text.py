"""Text with symbols for HTML, Markdown, LaTeX and Matplotlib, everything else escaped."""

import html
import re

# Symbols of the paper in LaTeX's mathematics; Matplotlib reads the same.
SYMBOLS = {
    "ᾱ_Δx": r"\bar{\alpha}_{\Delta x}",
    "ᾱ_x": r"\bar{\alpha}_{x}",
    "L_α": r"L_\alpha",
    "∇ℓ": r"\nabla\ell",
    "Δ̂x": r"\widehat{\Delta x}",
    "x̂′": r"\hat{x}'",
    "Δx": r"\Delta x",
    "ε50%": r"\varepsilon_{50\%}",
    "λ_α": r"\lambda_\alpha",
    "λ_Regz": r"\lambda_{Regz}",
    "L_proj": r"L_{proj}",
    "L_RegG": r"L_{RegG}",
    "L_Dx̂′": r"L_{D\hat{x}'}",
    "L_Dx": r"L_{Dx}",
    "L_G": r"L_G",
    "Ψ_c̃": r"\Psi_{\tilde{c}}",
    "Ψ_c*": r"\Psi_{c^*}",
    "Ψ_m(x)": r"\Psi_{m(x)}",
    "Ψ_y": r"\Psi_{y}",
    "c̃": r"\tilde{c}",
    "ρ̃": r"\tilde{\rho}",
}
_PATTERN = re.compile("|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True))))
_SUBSCRIPT = re.compile(r"(ᾱ|L|λ|Ψ)_(Δx|Regz|proj|RegG|Dx̂′|Dx|c̃|c\*|m\(x\)|[xyαG])")
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$"},
    **{"±": r"$\pm$", "√": r"$\surd$", "²": "$^2$", "‖": r"$\|$", "₂": "$_2$", "′": r"$'$", "·": r"$\cdot$"},
    **{"∞": r"$_\infty$", "ε": r"$\varepsilon$", "η": r"$\eta$", "ρ": r"$\rho$", "λ": r"$\lambda$", "…": r"\dots{}"},
    **{"≤": r"$\le$", "×": r"$\times$", "†": r"$^\dagger$", "→": r"$\to$", "<": "$<$", ">": "$>$", "|": r"$|$"},
}


def printable(text: str) -> str:
    """Return the text on one line, characters that cannot be shown or encoded as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def as_html(text: str) -> str:
    """Return the text as HTML, with subscripts."""
    return _SUBSCRIPT.sub(r"\1<sub>\2</sub>", html.escape(printable(text)))


def as_markdown(text: str) -> str:
    """Return the text for a cell of a Markdown table."""
    return re.sub(r"([\\`|<>\[\]])", r"\\\1", printable(text))


def as_latex(text: str) -> str:
    """Return the text as LaTeX, with symbols as mathematics."""
    return _with_symbols(text, lambda plain: "".join(_TEX.get(c, c) for c in plain))


def as_mathtext(text: str) -> str:
    """Return the text for Matplotlib, with symbols as mathematics."""
    return _with_symbols(text, lambda plain: plain.replace("\\", r"\\").replace("$", r"\$"))


def _with_symbols(text: str, escape) -> str:
    text, parts, end = printable(text), [], 0
    for found in _PATTERN.finditer(text):
        parts += [escape(text[end : found.start()]), f"${SYMBOLS[found[0]]}$"]
        end = found.end()
    return "".join([*parts, escape(text[end:])])
