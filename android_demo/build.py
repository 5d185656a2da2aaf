"""Builds the Android app without Google's SDK, from Maven Central and Debian's packages.

    python android_demo/build.py --model student.tflite --abis arm64-v8a

See README.md in this folder.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from tooling.artifacts import fetch, unpack  # noqa: E402
from tooling.assets import write_assets  # noqa: E402
from tooling.classes import compile_and_test, dex  # noqa: E402
from tooling.native import build_native  # noqa: E402
from tooling.package import ABIS, sign, write_apk  # noqa: E402
from tooling.resources import link  # noqa: E402
from tooling.robolectric import prepare_screens  # noqa: E402
from tooling.steps import BuildError, step  # noqa: E402
from tooling.tools import check_tools  # noqa: E402


def main() -> int:
    options = parse_arguments()
    try:
        check_tools()
        if not options.tools:
            build(options)
    except BuildError as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Builds the Android app without Google's SDK.",
        epilog="Example: python android_demo/build.py --model student.tflite --abis arm64-v8a",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=HERE / "models" / "mnist.tflite",
        help="the .tflite file that comes with the app [models/mnist.tflite]",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        help="golden vectors of the model, written by 'kdtflite golden' [from random inputs]",
    )
    parser.add_argument(
        "--abis", default=",".join(ABIS), help="processors, separated by commas [%(default)s]"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "build" / "kdtflite-demo.apk",
        help="where to write the APK [android_demo/build/kdtflite-demo.apk]",
    )
    parser.add_argument("--skip-tests", action="store_true", help="compile only")
    parser.add_argument(
        "--cases",
        type=Path,
        help="test cases, written by tests/android/models.py [only the app's model]",
    )
    parser.add_argument(
        "--drawings", type=Path, help="test drawings, written by tests/android/drawings.py [none]"
    )
    parser.add_argument(
        "--screens",
        action="store_true",
        help="also test the screens on Robolectric (300 MB more from Maven Central) and save their "
        "pictures in android_demo/build/screens",
    )
    parser.add_argument(
        "--tools",
        action="store_true",
        help="only list the missing tools; with CI=true install them",
    )
    return parser.parse_args()


def build(options: argparse.Namespace) -> None:
    from kdtflite.runtime import quiet_native_stderr

    start = time.monotonic()
    abis = sorted(set(filter(None, options.abis.split(","))))
    if not abis or not set(abis) <= set(ABIS):
        raise BuildError(f"Expected --abis of {', '.join(ABIS)}. Received: {options.abis!r}.")
    folder = HERE / "build"
    folder.mkdir(exist_ok=True)
    classes, native, assets = folder / "classes", folder / "jni", folder / "assets"
    with step("Model and golden vectors"), quiet_native_stderr():
        write_assets(options.model, options.golden, assets)
    with step("Artifacts from Maven Central, verified"):
        fetch(folder / "artifacts")
        unpack(folder / "artifacts", classes, native)
    with step("Resources"):
        (android,) = (folder / "artifacts").glob("android-all-*.jar")
        linked = link(HERE / "app" / "src" / "main", android, folder, read_version())
    cases = None
    if not options.skip_tests:
        with step("The APK's library for this machine's JVM"):
            build_native(native / "x86_64" / "libtensorflowlite_jni.so", folder / "native")
        cases = options.cases or copy_own_case(folder)
        if options.screens:
            with step("Android for the tests of the screens"):
                prepare_screens(folder, linked, assets)
    with step("Kotlin" if cases is None else "Kotlin, and its tests on the APK's library"):
        compile_and_test(
            folder, cases and cases.resolve(), options.drawings, screens=options.screens
        )
    with step("One dex file"):
        code = dex(folder)
    with step("Package and signature"):
        unsigned = folder / "unsigned.apk"
        write_apk(unsigned, linked, code, assets, native, abis)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        verified = sign(unsigned, options.output, folder / "debug.keystore")
    print(verified.strip())
    print(f"sha256 without signature  {compute_digest(unsigned)}")
    print(f"sha256                    {compute_digest(options.output)}")
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes, {', '.join(abis)}, {time.monotonic() - start:.0f} s")


def read_version() -> str:
    from kdtflite import __version__

    return __version__


def copy_own_case(folder: Path) -> Path:
    """Copies the app's own model and vectors into a folder for the tests."""
    cases = folder / "cases"
    shutil.rmtree(cases, ignore_errors=True)
    cases.mkdir()
    shutil.copyfile(folder / "assets" / "model.tflite", cases / "model.tflite")
    shutil.copyfile(folder / "assets" / "golden.json", cases / "model.json")
    return cases


def compute_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
