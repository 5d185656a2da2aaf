import pytest

from kdtflite.reporting.variants import (
    DEFAULT,
    PLAIN,
    SHIPPABLE,
    TRAINING_STAGES,
    VARIANTS,
    get_variant,
    list_pairs,
    list_stages,
    list_variants,
    shorten_label,
)

FOUR = ("ptq_int8", "hard_labels_qat_int8", "distilled_ptq_int8", "distilled_int8")


def test_the_table_of_models_names_only_what_it_holds():
    keys = [variant.key for variant in VARIANTS]
    assert len(set(keys)) == len(keys)
    for variant in VARIANTS:
        assert variant.rival is None or variant.rival in keys
        assert variant.float_key is None or get_variant(variant.float_key).target == "float32"
        assert variant.stage in TRAINING_STAGES
    for stage, key in TRAINING_STAGES.items():
        assert get_variant(key).stage == stage


def test_keys_and_names_of_curves_stay_as_reports_have_them():
    assert [variant.key for variant in VARIANTS][:3] == ["teacher", "hard_labels", "distilled"]
    assert (*FOUR, "distilled_int8x4") == SHIPPABLE
    assert DEFAULT == {"int8": FOUR, "int8x4": SHIPPABLE}
    assert PLAIN == "ptq_int8"
    assert TRAINING_STAGES == {
        "teacher": "teacher",
        "hard_labels": "hard_labels",
        "hard_labels_qat": "hard_labels_qat_int8",
        "distilled": "distilled",
        "distilled_qat": "distilled_int8",
        "distilled_qat_int8x4": "distilled_int8x4",
    }
    assert get_variant("other") is None
    assert shorten_label("Student, hard labels (float)") == "Hard labels (float)"
    assert shorten_label("Teacher (float)") == "Teacher (float)"


@pytest.mark.parametrize(
    ("wanted", "models", "training"),
    [
        (["ptq_int8"], "teacher hard_labels ptq_int8", "teacher hard_labels"),
        (
            ["distilled_int8"],
            "teacher distilled distilled_int8",
            "teacher distilled distilled_qat",
        ),
        (
            ["distilled_ptq_int8", "hard_labels_qat_int8"],
            "teacher hard_labels distilled hard_labels_qat_int8 distilled_ptq_int8",
            "teacher hard_labels hard_labels_qat distilled",
        ),
    ],
)
def test_a_run_makes_the_wanted_files_and_what_they_come_from(wanted, models, training):
    assert [variant.key for variant in list_variants(wanted)] == models.split()
    stages = ("data", *training.split(), "files", "selection", "measurements")
    assert list_stages(wanted) == stages


def test_the_chosen_file_and_every_rival_are_compared_once():
    keys = [variant.key for variant in list_variants(FOUR)]
    assert list_pairs(keys, "distilled_ptq_int8") == (
        ("distilled_ptq_int8", "ptq_int8"),
        ("distilled_ptq_int8", "teacher"),
        ("distilled", "hard_labels"),
        ("hard_labels_qat_int8", "ptq_int8"),
        ("distilled_int8", "distilled_ptq_int8"),
    )
    assert list_pairs(["teacher", "hard_labels", "ptq_int8"], "ptq_int8") == (
        ("ptq_int8", "teacher"),
    )
