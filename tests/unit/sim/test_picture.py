"""The picture shows who held what, for how long."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from llmos.sim.job_replay import Stay
from llmos.sim.picture import COLOURS, OTHERS, WIDTH, gpu_height, picture

SVG = "{http://www.w3.org/2000/svg}"


def _parsed(document: str) -> ElementTree.Element:
    return ElementTree.fromstring(document)  # noqa: S314 - what we have just written


def _areas(document: str) -> dict[str, float]:
    """Square pixels by colour."""
    areas = {}
    for path in _parsed(document).iter(f"{SVG}path"):
        boxes = re.findall(r"h(\d+)v([\d.]+)h", path.attrib["d"])
        areas[path.attrib["fill"]] = sum(float(width) * float(height) for width, height in boxes)
    return areas


def test_areas_are_gpu_time() -> None:
    stays = [
        Stay("ada", ((0, 4), (1, 4)), 0.0, 600.0),
        Stay("bob", ((0, 3),), 600.0, 1000.0),
        Stay("bob", ((1, 1),), 700.0, 900.0),
    ]
    areas = _areas(picture(stays, 2, 4, "two nodes"))
    per_gpu_s = WIDTH / 1000 * gpu_height(8)
    assert areas[COLOURS[0]] == pytest.approx(8 * 600 * per_gpu_s)
    assert areas[COLOURS[1]] == pytest.approx((3 * 400 + 200) * per_gpu_s)


def test_a_column_shows_its_mean_and_many_nodes_share_a_strip() -> None:
    stays = [Stay("ada", ((node, 8),), 0.0, 100.0) for node in range(128)]
    stays += [Stay("bob", ((0, 8),), 100.0 + i, 100.0 + i + 0.01) for i in range(100)]
    document = picture(stays, 128, 8, "many")
    areas = _areas(document)
    assert areas[COLOURS[0]] == pytest.approx(64 * 8 * gpu_height(64 * 8) * WIDTH * 100 / 199.01, rel=0.01)
    assert areas.get(COLOURS[1], 0) < areas[COLOURS[0]] / 1000
    assert "node 127" in document


def test_the_owners_who_held_most_are_named_and_the_others_share_a_colour() -> None:
    stays = [Stay(f"u<{i}>", ((0, 1),), float(i), i + 1 + i / 100) for i in range(20)]
    document = picture(stays, 1, 8, "a & b")
    assert set(_areas(document)) == {*COLOURS, OTHERS}
    names = [text.text for text in _parsed(document).iter(f"{SVG}text")]
    assert {"a & b", "u<19>", "others"} <= set(names) and "u<3>" not in names


def test_an_empty_cluster_is_a_picture_too() -> None:
    assert _areas(picture([], 2, 8, "empty")) == {}
