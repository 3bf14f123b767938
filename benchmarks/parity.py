"""Do both programs compute the same? Distances and pixel gradients, class by class."""

import numpy as np
import torch

from benchmarks import eager, ours, theirs
from benchmarks.ours import Matched
from dasm_jax.problem import Problem, make_problem
from dasm_jax.settings import changed

TOLERANCE = 1e-3  # relative, f32 on both sides
CLASSES = 2  # that are compared
# Where something has a kink (ReLU, the l1 metric), rounding puts a few of millions of
# values on the other side of it, and the pixel gradient jumps by a percent (against f64
# either program does). So gradients are compared under these instead; what has a kink
# takes part in the distances, and in tests on few values.
SMOOTH = {"matcher.idc.metric": "mse", "network.activation": "sigmoid"}


class MismatchError(Exception):
    """The two programs do different work; times beside each other would say nothing."""


def check(problem: Problem) -> float:
    """Compare one matching on shared weights, images and augmentation draws.

    Returns:
      the largest relative error, of any distance or of the pixel gradients.

    Raises:
      MismatchError: it is ``TOLERANCE`` or more.
    """
    smooth = make_problem(changed(problem.settings, SMOOTH), problem.dataset)
    of_distances, of_gradients = errors(problem)[0], errors(smooth)[1]
    found = {"distances": of_distances, "pixel gradients": of_gradients}
    for name, error in found.items():
        if not error < TOLERANCE:  # NaN is a mismatch
            raise MismatchError(
                f"{name} differ by {error:.1e} relative, allowed is {TOLERANCE:.0e}: "
                "the two programs do not do the same work"
            )
    return max(found.values())


def errors(problem: Problem) -> tuple[float, float]:
    """Relative error of the worst distance, and of the pixel gradients.

    The latter is the largest difference beside the largest gradient.
    """
    matched = ours.match_once(problem, min(CLASSES, problem.dataset.n_classes))
    distances, gradients = match_in_torch(problem, matched)
    of_distances = np.abs(matched.distances - distances) / np.abs(distances)
    of_gradients = np.abs(matched.gradients - gradients) / np.abs(gradients).max()
    return float(of_distances.max()), float(of_gradients.max())


def match_in_torch(problem: Problem, matched: Matched) -> tuple[np.ndarray, np.ndarray]:
    """Distances f32[C] and pixel gradients f32[C, n, H, W, ch] of the eager program."""
    net = theirs.make_net(problem)
    net.load_state_dict(convert_params(matched.params))
    pixels = torch.as_tensor(matched.pixels.transpose(0, 1, 4, 2, 3).copy())
    pixels.requires_grad_()
    real = torch.as_tensor(matched.real).permute(0, 1, 4, 2, 3).float() / 255
    distances = eager.match_step(
        net,
        pixels,
        None,
        list(real),
        [convert_draw(d) for d in matched.draws],
        [torch.as_tensor(choice).long() for choice in matched.choices],
        problem.settings.factor,
        problem.settings.matcher.idc.metric,
        theirs.make_normalize(problem),
    )
    assert pixels.grad is not None
    return np.array(distances), pixels.grad.numpy().transpose(0, 1, 3, 4, 2)


def convert_params(params: dict) -> dict[str, torch.Tensor]:
    """Weights of our ConvNet-3, by their names in ``eager.ConvNet``."""
    converted = {}
    for layer in range(3):
        conv, norm = params[f"conv_{layer}"], params[f"norm_{layer}"]
        first = 4 * layer  # [conv, norm, activation, pooling] in one sequence
        converted[f"blocks.{first}.weight"] = convert_kernel(conv["kernel"])
        converted[f"blocks.{first}.bias"] = conv["bias"]
        converted[f"blocks.{first + 1}.weight"] = norm["scale"]
        converted[f"blocks.{first + 1}.bias"] = norm["bias"]
    dense = params["classifier"]
    channels = len(params["conv_2"]["bias"])
    inputs, n_classes = dense["kernel"].shape
    side = round((inputs // channels) ** 0.5)
    # Features are flattened from [H, W, ch] here, from [ch, H, W] there.
    kernel = dense["kernel"].reshape(side, side, channels, n_classes)
    converted["classifier.weight"] = kernel.transpose(3, 2, 0, 1).reshape(n_classes, -1)
    converted["classifier.bias"] = dense["bias"]
    return {name: torch.as_tensor(x.copy()) for name, x in converted.items()}


def convert_kernel(kernel: np.ndarray) -> np.ndarray:
    """[H, W, in, out] to [out, in, H, W]."""
    return kernel.transpose(3, 2, 0, 1)


def convert_draw(draw: dict[str, np.ndarray]) -> eager.Draw:
    """Random numbers of color, crop and cutout."""
    as_tensor = {name: torch.as_tensor(value.copy()) for name, value in draw.items()}
    return eager.Draw(
        as_tensor["brightness"],
        as_tensor["saturation"],
        as_tensor["contrast"],
        as_tensor["crop"].long(),
        as_tensor["cutout"].long(),
    )
