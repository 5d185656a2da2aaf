"""The packages around TensorFlow leave the user's process as it was."""

import subprocess
import sys
import textwrap

from kdtflite.runtime import list_versions


def run(program, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**{k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()


def test_tfmot_does_not_turn_the_users_keras_into_keras_2():
    lines = run(
        """
        import os
        from kdtflite.runtime import import_tfmot
        import_tfmot()
        print(os.environ.get("TF_USE_LEGACY_KERAS"))
        import tensorflow as tf
        print(tf.keras.__version__.split(".")[0])
        """
    )
    assert lines[-2:] == ["None", "3"]


def test_a_quantization_aware_student_leaves_tf_keras_alone():
    lines = run(
        """
        import os
        import numpy as np
        import tf_keras
        from kdtflite.quantization import quantize_aware
        model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))])
        quantize_aware(model, np.eye(4, dtype="float32"))
        print(os.environ.get("TF_USE_LEGACY_KERAS"))
        import tensorflow as tf
        print(tf.keras.__version__.split(".")[0])
        """
    )
    assert lines[-2:] == ["None", "3"]


def test_a_users_own_choice_of_keras_2_stays():
    program = """
        import os
        from kdtflite.runtime import import_tfmot
        import_tfmot()
        print(os.environ["TF_USE_LEGACY_KERAS"])
        """
    assert run(program, TF_USE_LEGACY_KERAS="0")[-1] == "0"


def test_importing_kdtflite_imports_no_tensorflow():
    program = """
        import sys
        import kdtflite, kdtflite.errors, kdtflite.files, kdtflite.progress, kdtflite.runtime
        print([name for name in ("tensorflow", "tf_keras", "keras") if name in sys.modules])
        """
    assert run(program)[-1] == "[]"


def test_versions_are_those_installed():
    found = list_versions()
    assert found["python"].startswith("3.")
    assert found["tensorflow"].startswith("2.")
    assert "not installed" not in found.values()
