"""One query of Square Attack in L∞ in PyTorch, in two styles.

Written from the algorithm (Andriushchenko et al. 2020) and a description of the authors' code, which draws one window
for a whole batch. "lean" draws a window for each image, as ours does, and never waits for a value from the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # signs [B, C, H, W], margins [B]


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Return logit_y - max_{j≠y} logit_j `[B]`."""
    own = logits.gather(1, label[:, None])[:, 0]
    return own - logits.scatter(1, label[:, None], -torch.inf).amax(1)


def make_query(
    model: nn.Module, style: str, epsilon: float, side: int, bounds: tuple[float, float] = (-1.0, 1.0)
) -> Callable[[Tensor, Tensor, State], State]:
    """Build `query(image, label, state) -> state` with windows of `side` pixels; style "authors" or "lean"."""

    def repaint(sign: Tensor) -> Tensor:
        count, channels, height, width = sign.shape
        if style == "authors":
            row, column = (int(torch.randint(size - side + 1, ())) for size in (height, width))
            sign = sign.clone()
            painted = torch.randint(2, (1, channels, 1, 1), device=sign.device)
            sign[:, :, row : row + side, column : column + side] = 2.0 * painted - 1
            return sign
        within = []
        for size in (height, width):
            corner = torch.randint(size - side + 1, (count, 1), device=sign.device)
            place = torch.arange(size, device=sign.device)
            within.append((place >= corner) & (place < corner + side))
        window = within[0][:, None, :, None] & within[1][:, None, None, :]
        return torch.where(window, 2.0 * torch.randint(2, (count, channels, 1, 1), device=sign.device) - 1, sign)

    @torch.no_grad()
    def query(image: Tensor, label: Tensor, state: State) -> State:
        if style == "authors":  # only images not fooled so far; the host waits to learn which
            rows = (state[1] > 0).nonzero().flatten()
            sign, least = state[0].clone(), state[1].clone()
            some = repaint(sign[rows])
            got = margin(model((image[rows] + epsilon * some).clamp(*bounds)), label[rows])
            better = got < least[rows]
            sign[rows[better]], least[rows[better]] = some[better], got[better].to(least.dtype)
            return sign, least
        sign, least = state
        some = repaint(sign)
        got = margin(model((image + epsilon * some).clamp(*bounds)), label).to(least.dtype)
        better = got < least
        return torch.where(better[:, None, None, None], some, sign), torch.where(better, got, least)

    return query
