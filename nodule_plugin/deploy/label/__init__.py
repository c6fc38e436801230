"""What the app for MONAI Label (the folder ``label_app`` beside) does: text to image and fine-tuning over HTTP.

Only :mod:`app` needs MONAI Label; the rest works, and is tested, without it.
"""
