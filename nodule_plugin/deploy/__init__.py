"""Where the bundle is used outside this project: an application of MONAI Deploy."""
