"""Findings to nodules in a browser: a page served by Gradio, and the same as a folder that needs no Python."""
