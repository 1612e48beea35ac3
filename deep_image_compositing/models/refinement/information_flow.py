"""Information flow matting as a refiner."""

from __future__ import annotations

from typing import Any

from deep_image_compositing.errors import UsageError
from deep_image_compositing.extras import import_extra
from deep_image_compositing.functional.information_flow import FlowOptions, build_system
from deep_image_compositing.models.refinement.matting import Picture, SolvedMattingModel


class InformationFlowModel(SolvedMattingModel):
    """Lets opacity flow into the unknown pixels along four kinds of affinity, by a sparse solve.

    The method is ``functional.information_flow``. Colours are compared over the whole picture, so
    all of it is solved, however narrow the band.

    Args:
        transparent: whether the subject is glass, gauze or smoke rather than hair or fur: then
            the flow from the known pixels, which takes most pixels for either subject or
            background, is left out. None decides by the colours, as the paper does.
        trim: whether unknown pixels next to known ones of the same colour become known at the end.
        mixture_neighbours: similar pixels that each unknown one is mixed from.
        known_neighbours: pixels of each known region that each unknown one is linked to.
        unknown_neighbours: similar unknown pixels that each is linked to.
        known_weight: of the flow from known pixels, against 1 for that of colour mixtures.
        unknown_weight: of the flow among unknown pixels.
        spatial_weight: of the flow between neighbours in space.
        epsilon: regularisation of the colour lines of neighbours in space.
    """

    method = "information_flow"

    def __init__(
        self,
        transparent: bool | None = None,
        trim: bool = True,
        mixture_neighbours: int = 20,
        known_neighbours: int = 7,
        unknown_neighbours: int = 5,
        known_weight: float = 0.05,
        unknown_weight: float = 0.01,
        spatial_weight: float = 1.0,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        counts = (mixture_neighbours, known_neighbours, unknown_neighbours)
        weights = (known_weight, unknown_weight, spatial_weight)
        if min(counts) < 1 or not min(weights) >= 0 or not epsilon > 0:
            raise UsageError(
                "neighbours must be at least 1, weights at least 0 and epsilon above 0, got "
                f"{counts}, {weights} and {epsilon}"
            )
        import_extra("scipy", "the refiner 'information_flow'")
        self.save_hyperparameters()
        self.options = FlowOptions(*counts, *weights, epsilon, transparent, trim)

    def bytes_needed(self, pixels: int, unknown: int) -> float:
        """By measurement: search trees over the picture, and the flows while they are collected."""
        return 500 * pixels + 3200 * unknown

    def solve(self, image: Picture, trimap: Picture, mask: Picture) -> Picture:
        system = build_system(image, trimap, self.options)
        diagonal = system.diagonal()
        return system.matte(self.iterate(system.product, system.right, lambda x: x / diagonal))
