"""Teacher outputs on disk: written once, shown to students at every training."""
