"""Archives within other libraries: ``pillow`` (Image.open and save), ``dataset`` (torch), ``ray``."""
