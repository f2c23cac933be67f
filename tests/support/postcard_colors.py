"""The colors of drawn postcards, as red, green and blue."""

PURE_COLORS = {
    "red": (200, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 60),
    "green": (50, 150, 60),
    "blue": (50, 90, 210),
    "purple": (140, 60, 170),
    "white": (238, 238, 238),
    "black": (42, 42, 46),
}
GLASS_AND_CLOTH = [(255, 235, 130), (150, 215, 245), (230, 60, 140), (250, 250, 250), (60, 210, 220)]
