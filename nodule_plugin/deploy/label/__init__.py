"""What the app for MONAI Label (the folder ``label_app`` beside) does over HTTP: generate, fine-tune, insert.

Only :mod:`app` needs MONAI Label; the rest works, and is tested, without it.
"""
