"""The folder that ``monailabel start_server --app`` takes; MONAI Label puts it on Python's path, hence one module."""
