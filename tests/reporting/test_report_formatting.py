import math

import pytest

from kdtflite.reporting import formatting as f


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "", "text", True, [1]])
def test_what_is_no_finite_number_reads_as_a_dash(missing):
    for text in (
        *(f.format_percent, f.format_points, f.format_count, f.format_size),
        *(f.format_milliseconds, f.format_significant, f.format_duration),
    ):
        assert text(missing) == "–"


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (f.format_percent, 437 / 450, "97.11 %"),  # 0.97111
        (f.format_percent, 1, "100.00 %"),
        (f.format_points, -0.02, "−2.00 points"),
        (f.format_points, 0.0178, "+1.78 points"),
        (f.format_points, -0.00001, "±0 points"),
        (f.format_size, 999, "999 B"),
        (f.format_size, 11_240, "11.2 kB"),
        (f.format_size, 999_950, "1.00 MB"),
        (f.format_size, 1_214_872, "1.21 MB"),
        (f.format_size, 0, "0 B"),
        (f.format_short_count, 98_432, "98.4 k"),
        (f.format_short_count, 12, "12"),
        (f.format_count, 302_154, "302,154"),
        (f.format_milliseconds, 0.0186, "0.0186 ms"),
        (f.format_milliseconds, 1234.5, "1,230 ms"),
        (f.format_significant, 9.996, "10.0"),
        (f.format_significant, 0, "0"),
        (f.format_ratio, 107.3, "107×"),
        (f.format_ratio, 4.21, "4.2×"),
        (f.format_ratio, 1.041, "1.04×"),
        (f.format_duration, 0.42, "0.4 s"),
        (f.format_duration, 59.7, "1 min 00 s"),
        (f.format_duration, 4810, "1 h 20 min"),
    ],
)
def test_numbers_read_as_people_write_them(text, value, expected):
    assert text(value).replace("\u00a0", " ") == expected


def test_ratios_say_which_way_they_go():
    assert f.compare_size(11_384, 1_214_872) == "107× smaller"  # 106.7
    assert f.compare_size(300, 200) == "1.50× larger"
    assert f.compare_speed(0.0186, 0.412) == "22× faster"  # 22.2
    assert f.compare_speed(1.001, 1.0) == "same speed"
    assert f.compare_size(None, 5) == f.compare_size(0, 5) == ""
