"""The steps that build the APK without Google's SDK, one module per step."""
