"""Where the bundle is used: MONAI Label, MONAI Deploy."""
