import pytest
from report_example import example_report

from kdtflite.reporting.verdict import judge


@pytest.fixture
def report():
    return example_report()


def findings(report):
    return {
        finding.topic: (finding.tone, finding.text.replace("\u00a0", " "))
        for finding in judge(report).findings
    }


def set_interval(report, first, second, low, high):
    for comparison in report["comparisons"]:
        if (comparison["first"], comparison["second"]) == (first, second):
            comparison.update(low=low, high=high)
    return report


def set_accuracies(report, **right):
    for model in report["models"]:
        if model["key"] in right:
            model["accuracy"] = right[model["key"]] / 450
    return report


def test_the_chosen_file_is_the_one_to_ship(report):
    verdict = judge(report)
    assert verdict.file == "distilled_int8.tflite"
    assert verdict.fully_integer is True
    assert verdict.ready
    facts = {name: value.replace("\u00a0", " ") for name, value in verdict.facts}
    assert facts == {
        "Test accuracy": "97.11 %",
        "File size": "11.4 kB",
        "Latency (p50)": "0.0186 ms",
    }


def test_the_first_finding_is_the_gain_over_the_plain_road_and_how_sure_it_is(report):
    first = judge(report).findings[0]
    text = first.text.replace("\u00a0", " ")
    assert (first.topic, first.tone) == ("Gain", "even")  # 8 / 450; the interval includes 0
    assert text.startswith(
        "The file to ship is 1.78 points more accurate than post-training quantization (PTQ) of "
        "the student trained on hard labels alone (97.11 % against 95.33 %). That is 8 test "
        "samples, within what chance explains (95 % interval −0.22 points to +3.78 points, paired "
        "bootstrap of 450)"
    )
    sure = set_interval(report, "distilled_int8", "ptq_int8", 0.0022, 0.0378)
    tone, text = findings(sure)["Gain"]
    assert tone == "good"
    assert "more than chance explains (95 % interval +0.22 points to +3.78 points" in text
    tone, text = findings(set_accuracies(report, distilled_int8=429))["Gain"]
    assert (tone, "is as accurate as post-training" in text) == ("even", True)
    del report["comparisons"]
    assert findings(set_accuracies(report, distilled_int8=420))["Gain"] == (
        "bad",
        "The file to ship is 2.00 points less accurate than post-training quantization (PTQ) of "
        "the student trained on hard labels alone (93.33 % against 95.33 %).",
    )


def test_the_plain_road_is_shipped_where_it_is_the_best(report):
    report["selection"]["chosen"] = "ptq_int8"
    verdict = judge(report)
    assert verdict.file == "ptq_int8.tflite"
    tone, text = findings(report)["Gain"]
    assert tone == "even"
    assert text.startswith("Nothing was gained here: the file to ship is post-training")
    assert "Quantization" not in findings(report)  # no QAT from hard labels in this report
    report["selection"]["files"] = report["selection"]["files"][:1]
    assert "Gain" not in findings(report)  # nothing else was made


def test_the_choice_has_its_reason_and_a_useless_student_is_not_ready(report):
    assert findings(report)["Choice"] == ("good", report["selection"]["why"])
    report["selection"]["recommended"] = False
    assert findings(report)["Choice"][0] == "bad"
    assert not judge(report).recommended
    assert not judge(report).ready


def test_the_teacher_is_compared_in_size_speed_and_points(report):
    # 1,214,872 / 11,384 = 106.7; 0.412 / 0.0186 = 22.2; 437 - 446 = -9 of 450 = -2 points
    assert findings(report)["Against the teacher"] == (
        "good",
        "Compared with the teacher it is 107× smaller, 22× faster and 2.00 points less accurate "
        "(97.11 % against 99.11 %).",
    )


def test_a_gain_whose_interval_includes_zero_is_called_chance(report):
    tone, text = findings(report)["Distillation"]
    assert tone == "even"
    assert "1.11 points more accurate than the same student trained on hard labels" in text
    assert "That is 5 test samples, within what chance explains" in text
    assert "95 % interval −0.67 points to +2.89 points" in text


def test_a_student_that_no_teacher_helped_is_not_called_distilled(report):
    report["choice"]["chosen"] = report["choice"]["baseline"]
    tone, text = findings(report)["Distillation"]
    assert tone == "even"
    assert "no loss with the teacher was better than hard labels alone" in text
    assert (
        "It scores 97.33 % against 96.22 % of the baseline, which was trained for as long." in text
    )
    report["choice"]["trials"] = []
    report["recipe"] = {"hard_labels": {"epochs": 3}}
    _, text = findings(report)["Distillation"]
    assert text.startswith("No loss with the teacher was tried, so the student learned from hard")
    assert text.endswith("of the baseline.")


def test_a_loss_that_chance_explains_is_never_a_cross(report):
    set_interval(report, "distilled_int8", "distilled_ptq_int8", -0.01, 0.002)
    tone, text = findings(set_accuracies(report, distilled_ptq_int8=439))["Quantization"]
    assert tone == "even"
    assert "That is 2 test samples, within what chance explains" in text


def test_a_gain_beyond_chance_is_called_so(report):
    set_interval(report, "distilled", "hard_labels", 0.06, 0.12)
    tone, text = findings(set_accuracies(report, distilled=440, hard_labels=400))["Distillation"]
    assert tone == "good"
    assert "more than chance explains" in text


def test_distillation_that_hurt_is_said_to_have_hurt(report):
    set_interval(report, "distilled", "hard_labels", -0.12, -0.06)
    tone, text = findings(set_accuracies(report, distilled=400, hard_labels=440))["Distillation"]
    assert tone == "bad"
    assert text.startswith("Distillation did not help here")
    assert "8.89 points less accurate" in text  # 40 / 450


def test_equal_students_are_said_to_be_equal(report):
    tone, text = findings(set_accuracies(report, distilled=433))["Distillation"]
    assert tone == "even"
    assert text.startswith("Distillation made no difference here")


def test_both_ways_to_quantize_the_shipped_student_are_compared(report):
    tone, text = findings(report)["Quantization"]
    assert tone == "good"
    # (437 - 432) / 450; from float to integers (437 - 438) / 450 and (432 - 438) / 450
    assert text.startswith(
        "Quantization-aware training (QAT) of the distilled student is 1.11 points ahead of its "
        "post-training quantization (PTQ): 97.11 % against 96.00 %. That is 5 test samples, more "
        "than chance explains"
    )
    assert "changed the accuracy by −0.22 points with QAT and by −1.33 points with PTQ." in text
    report["selection"]["chosen"] = "distilled_ptq_int8"
    assert findings(report)["Quantization"] == (tone, text)
    _, text = findings(set_accuracies(report, distilled_ptq_int8=437))["Quantization"]
    assert "is as accurate as its post-training quantization (PTQ): 97.11 %." in text


def test_a_quantization_aware_file_behind_ptq_is_called_behind(report):
    set_interval(report, "distilled_int8", "distilled_ptq_int8", -0.12, -0.07)
    tone, text = findings(set_accuracies(report, distilled_int8=390))["Quantization"]
    assert tone == "bad"
    assert "9.33 points behind its post-training quantization" in text  # 42 / 450


def test_a_float_tensor_takes_the_badge_away(report):
    report["proof"].update(fully_integer=False, float_tensors=2)
    verdict = judge(report)
    assert verdict.fully_integer is False
    tone, text = findings(report)["Integer proof"]
    assert tone == "bad"
    assert "2 float tensors found" in text


def test_ties_widen_the_accuracy_to_a_range(report):
    _, text = findings(report)["Ties"]
    assert "on 3 of 450 test samples" in text
    assert "between 96.89 % and 97.56 %" in text  # 436 / 450, 439 / 450


def test_only_what_is_known_is_said(report):
    report["models"] = [{"key": "ptq_int8", "label": "PTQ", "format": "int8", "accuracy": None}]
    report["selection"] = {"chosen": "ptq_int8"}
    del report["proof"], report["dataset"]
    verdict = judge(report)
    assert (verdict.file, verdict.fully_integer, verdict.facts) == ("PTQ", None, ())
    assert verdict.findings == ()


def test_without_a_choice_or_its_model_there_is_nothing_to_ship(report):
    report["models"] = report["models"][:1]
    assert judge(report) is None
    report = example_report()
    del report["selection"]
    assert judge(report) is None
