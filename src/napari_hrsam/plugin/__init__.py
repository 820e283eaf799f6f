"""The napari plugin: a controller that joins viewer layers to a session, and its panel.

Nothing here imports torch at module level: it is imported by the inference thread, once a session
is started, so that opening the panel costs no more than building its widgets.
"""
