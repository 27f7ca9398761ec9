"""Gwyddion's tip operators on NumPy arrays `[y, x]`, through libgwyprocess2 (version 2.62).

Debian: `apt-get install libgwyddion2-0`. Pixels are 1 nm wide, heights in nm; the apex of a tip is
its highest pixel, in the middle of an odd size.
"""

import contextlib
import ctypes
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_void_p

import numpy as np

objects = ctypes.CDLL("libgobject-2.0.so.0", mode=ctypes.RTLD_GLOBAL)
basics = ctypes.CDLL("libgwyddion2.so.0", mode=ctypes.RTLD_GLOBAL)
process = ctypes.CDLL("libgwyprocess2.so.0")


def _c(name, result, *arguments, library=process):
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_c("gwy_process_type_init", None)()
_new = _c("gwy_data_field_new", c_void_p, c_int, c_int, c_double, c_double, c_int)
_data = _c("gwy_data_field_get_data", POINTER(c_double), c_void_p)
_columns = _c("gwy_data_field_get_xres", c_int, c_void_p)
_rows = _c("gwy_data_field_get_yres", c_int, c_void_p)
_changed = _c("gwy_data_field_invalidate", None, c_void_p)
_free = _c("g_object_unref", None, c_void_p, library=objects)
_preset_count = _c("gwy_tip_model_get_npresets", c_int)
_preset = _c("gwy_tip_model_get_preset", c_void_p, c_int)
_preset_name = _c("gwy_tip_model_get_preset_tip_name", c_char_p, c_void_p)
_create = _c("gwy_tip_model_preset_create", None, c_void_p, c_void_p, POINTER(c_double))


def set_threads(count: int) -> None:
    """0: one thread. Gwyddion built without OpenMP has no such switch."""
    with contextlib.suppress(AttributeError):
        _c("gwy_threads_set_enabled", None, c_int, library=basics)(count)


@contextlib.contextmanager
def _fields(*arrays):
    """Data fields of Gwyddion that hold the arrays."""
    fields = []
    for array in arrays:
        array = np.ascontiguousarray(array, np.float64)
        rows, columns = array.shape
        field = _new(columns, rows, columns, rows, 0)
        ctypes.memmove(_data(field), array.ctypes.data, array.nbytes)
        _changed(field)
        fields.append(field)
    yield fields
    for field in fields:
        _free(field)


def _array(field) -> np.ndarray:
    return np.ctypeslib.as_array(_data(field), (_rows(field), _columns(field))).copy()


def _operated(name: str, tip, heights) -> np.ndarray:
    operator = _c(f"gwy_tip_{name}", c_void_p, *5 * [c_void_p])
    with _fields(tip, heights, np.zeros_like(heights)) as (t, h, result):
        operator(t, h, result, None, None)
        return _array(result)


def dilation(tip, surface) -> np.ndarray:
    """The image of a surface."""
    return _operated("dilation", tip, surface)


def erosion(tip, image) -> np.ndarray:
    """The reconstructed surface."""
    return _operated("erosion", tip, image)


def cmap(tip, image) -> np.ndarray:
    """1 where the reconstruction is certain."""
    return _operated("cmap", tip, image)


def blind(image, shape: tuple[int, int], threshold_nm: float, full: bool = False) -> np.ndarray:
    """The blind estimate of the tip, which comes reflected: its highest pixel is 0."""
    name = f"gwy_tip_estimate_{'full' if full else 'partial'}"
    pointers = POINTER(c_int), c_void_p, c_void_p
    estimate = _c(name, c_void_p, c_void_p, c_void_p, c_double, c_int, *pointers)
    with _fields(np.zeros(shape), image) as (tip, field):
        estimate(tip, field, threshold_nm, 1, byref(c_int(0)), None, None)
        found = _array(tip)
    return found - found.max()


def model(name: str, shape: tuple[int, int], *parameters: float) -> np.ndarray:
    """A tip of the list in Gwyddion: radius in nm, rotation, sides or anisotropy, slope."""
    presets = map(_preset, range(_preset_count()))
    (chosen,) = (p for p in presets if _preset_name(p).decode() == name)
    with _fields(np.zeros(shape)) as (field,):
        _create(chosen, field, (c_double * len(parameters))(*parameters))
        tip = _array(field)
    return tip - tip.max()
