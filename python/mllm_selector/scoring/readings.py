"""The forms in which a sample is read: as it is, and as the variants that some metrics compare it with."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_selector.errors import SampleError
from mllm_selector.families.variants import after_example, without_images, without_instruction
from mllm_selector.metrics import Variant
from mllm_selector.pool import PoolImage, Sample

__all__ = ["Reading", "read_as"]


@dataclass(frozen=True)
class Reading:
    """A conversation to be encoded.

    Attributes
    ----------
    messages : tuple of (str, str)
        Role and content of each turn.
    images : tuple of Path, bytes or ImageRange
        In the order of the marks.
    places : tuple of (int, int)
        Where each image is in the pool: row, and number among the images of that row.
    """

    messages: tuple[tuple[str, str], ...]
    images: tuple[PoolImage, ...]
    places: tuple[tuple[int, int], ...]


def read_as(variant: Variant, sample: Sample, example: Sample | None = None) -> Reading:
    """Bring a sample into the form of a variant.

    Parameters
    ----------
    variant : Variant
        The form.
    sample : Sample
        The sample.
    example : Sample, optional
        What `Variant.ONE_SHOT` puts in front.

    Raises
    ------
    SampleError
        ``no-image`` where images are to be left out of a sample that has none, ``no-example`` where there is
        no example.
    """
    if variant is Variant.NO_IMAGE:
        if not sample.images:
            msg = "no-image: the sample has no image to leave out"
            raise SampleError(msg)
        return Reading(without_images(sample.messages), (), ())
    if variant is Variant.NO_INSTRUCTION:
        return Reading(without_instruction(sample.messages), sample.images, _places(sample))
    if variant is Variant.ONE_SHOT:
        if example is None:
            msg = "no-example: no other sample of the pool has an embedding"
            raise SampleError(msg)
        return Reading(
            after_example(sample.messages, example.messages),
            (*example.images, *sample.images),
            (*_places(example), *_places(sample)),
        )
    return Reading(sample.messages, sample.images, _places(sample))


def _places(sample: Sample) -> tuple[tuple[int, int], ...]:
    return tuple((sample.row, place) for place in range(len(sample.images)))
