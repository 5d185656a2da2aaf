import pytest
from report_example import example_report

from kdtflite.reporting.verdict import chance_margin, judge


@pytest.fixture
def report():
    return example_report()


def findings(report):
    return {
        finding.topic: (finding.tone, finding.text.replace("\u00a0", " "))
        for finding in judge(report).findings
    }


def set_accuracies(report, **right):
    for model in report["models"]:
        if model["key"] in right:
            model["accuracy"] = right[model["key"]] / 450
    return report


def test_the_distilled_int8_file_is_the_one_to_ship(report):
    verdict = judge(report)
    assert verdict.file == "distilled_int8.tflite"
    assert verdict.fully_integer is True
    facts = {name: value.replace("\u00a0", " ") for name, value in verdict.facts}
    assert facts == {
        "Test accuracy": "97.11 %",
        "File size": "11.4 kB",
        "Latency (p50)": "0.0186 ms",
    }


def test_the_teacher_is_compared_in_size_speed_and_points(report):
    # 1,214,872 / 11,384 = 106.7; 0.412 / 0.0186 = 22.2; 437 - 446 = -9 of 450 = -2 points
    assert findings(report)["Against the teacher"] == (
        "good",
        "Compared with the teacher it is 107× smaller, 22× faster and 2.00 points less accurate "
        "(97.11 % against 99.11 %).",
    )


def test_a_gain_that_450_samples_cannot_resolve_is_called_chance(report):
    tone, text = findings(report)["Distillation"]
    assert tone == "even"
    assert "1.11 points more accurate than the same student trained on hard labels" in text
    # 1.96 · sqrt((0.97333·0.02667 + 0.96222·0.03778) / 450) = 0.02306
    assert "That is 5 samples, within what chance explains" in text
    assert "±2.31 points" in text


def test_a_student_that_no_teacher_helped_is_not_called_distilled(report):
    report["choice"]["chosen"] = report["choice"]["baseline"]
    tone, text = findings(report)["Distillation"]
    assert tone == "even"
    assert "no loss with the teacher was better than hard labels alone" in text
    assert "It scores 97.33 % against 96.22 % of the baseline, which was trained for as" in text
    report["choice"]["trials"] = []
    report["recipe"] = {"hard_labels": {"epochs": 3}}
    _, text = findings(report)["Distillation"]
    assert text.startswith("No loss with the teacher was tried, so the student learnt from hard")
    assert text.endswith("of the baseline.")


def test_a_gain_beyond_chance_is_called_so(report):
    tone, text = findings(set_accuracies(report, distilled=440, hard_labels=400))["Distillation"]
    assert tone == "good"
    assert "more than chance explains" in text


def test_distillation_that_hurt_is_said_to_have_hurt(report):
    tone, text = findings(set_accuracies(report, distilled=400, hard_labels=440))["Distillation"]
    assert tone == "bad"
    assert text.startswith("Distillation did not help here")
    assert "8.89 points less accurate" in text  # 40 / 450


def test_equal_students_are_said_to_be_equal(report):
    tone, text = findings(set_accuracies(report, distilled=433))["Distillation"]
    assert tone == "even"
    assert text.startswith("Distillation made no difference here")


def test_what_int8_cost_is_told_apart_from_what_training_gained(report):
    _, text = findings(report)["Quantization"]
    assert "is 1.78 points ahead of post-training quantization" in text  # (437 - 429) / 450
    assert "−0.22 points with QAT and by −0.89 points with PTQ" in text  # -1 / 450, -4 / 450


def test_a_quantization_aware_file_behind_ptq_is_said_to_be_behind(report):
    tone, text = findings(set_accuracies(report, distilled_int8=390))["Quantization"]
    assert tone == "bad"
    assert "8.67 points behind post-training quantization" in text  # 39 / 450


def test_a_float_tensor_takes_the_badge_away(report):
    report["proof"].update(fully_integer=False, float_tensors=2)
    verdict = judge(report)
    assert verdict.fully_integer is False
    tone, text = findings(report)["Integer proof"]
    assert tone == "bad"
    assert "2 float tensors found" in text


def test_ties_widen_the_accuracy_to_a_range(report):
    _, text = findings(report)["Ties"]
    assert "On 3 of 450 test samples" in text
    assert "between 96.89 % and 97.56 %" in text  # 436 / 450, 439 / 450


def test_only_what_is_known_is_said(report):
    report["models"] = [{"key": "ptq_int8", "label": "PTQ", "format": "int8", "accuracy": None}]
    del report["proof"], report["dataset"]
    verdict = judge(report)
    assert (verdict.file, verdict.fully_integer, verdict.facts) == ("PTQ", None, ())
    assert verdict.findings == ()


def test_a_teacher_alone_is_nothing_to_ship(report):
    report["models"] = report["models"][:1]
    assert judge(report) is None


def test_the_margin_of_chance_shrinks_with_the_root_of_the_samples():
    # 1.96 · sqrt(2 · 0.25 / 200) = 1.96 · 0.05
    assert chance_margin(0.5, 0.5, 200) == pytest.approx(0.098)
    assert chance_margin(0.5, 0.5, 800) == pytest.approx(0.049)
