"""A figure that notebooks show; imported where matplotlib is there."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A matplotlib figure that belongs to no pyplot window.

    Notebooks show those of matplotlib only once pyplot has drawn something.
    """

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi="figure")
        return file.getvalue()
