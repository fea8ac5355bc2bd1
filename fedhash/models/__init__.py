"""Towers, hash heads and anchors: what turns a study into a code.

Import from the modules themselves, so that reading settings does not load the towers.
"""
