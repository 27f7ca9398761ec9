"""Data in and out: one `read` for every microscope's file, results as NeXus."""

from micjax.io.adapters import as_field as as_field
from micjax.io.fields import Field as Field
from micjax.io.fields import FieldAxis as FieldAxis
from micjax.io.fields import check_image as check_image
from micjax.io.nexus import create_nexus as create_nexus
from micjax.io.nexus import read_nexus as read_nexus
from micjax.io.nexus import write_nexus as write_nexus
from micjax.io.registry import channels as channels
from micjax.io.registry import formats as formats
from micjax.io.registry import read as read
