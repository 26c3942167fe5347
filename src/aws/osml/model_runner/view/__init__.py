"""A page that shows a result: one HTML file that works from the disk, without a network."""

from .page import Layer, Picture, Places, ResultView, page_of

__all__ = ["Layer", "Picture", "Places", "ResultView", "page_of"]
