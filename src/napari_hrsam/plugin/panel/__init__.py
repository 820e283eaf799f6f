"""The panel: buttons, lists and the window around them. The only folder that imports Qt."""
