"""The group of trainer ranks as the driver sees it."""
