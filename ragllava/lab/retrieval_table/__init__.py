"""What each way of finding candidates is worth, on drawn archives of several sizes and qualities of captions."""
