"""The steps of the APK's build without Google's SDK, a module each, in the order of their use."""
