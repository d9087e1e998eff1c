"""Elements and scales, exhaustively against ml_dtypes and gfloat."""

from __future__ import annotations

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch

from fp4kernels.errors import FormatError
from fp4kernels.formats import E2M1, E4M3, FORMATS, MXFP4, NVFP4, ElementFormat, ScaleFormat, named

ORACLE = {"e2m1": ml_dtypes.float4_e2m1fn, "e4m3": ml_dtypes.float8_e4m3fn}
ELEMENTS = [E2M1, E4M3]


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_every_code_decodes_as_ml_dtypes_and_gfloat(element: ElementFormat) -> None:
    codes = np.arange(2**element.bits, dtype=np.uint8)
    ours = element.decode(torch.from_numpy(codes)).numpy()
    theirs = codes.view(ORACLE[element.name]).astype(np.float32)
    np.testing.assert_array_equal(ours.view(np.uint32) & 0x80000000,
                                  theirs.view(np.uint32) & 0x80000000)  # fmt: skip
    np.testing.assert_array_equal(ours, theirs)
    info = {
        "e2m1": gfloat.formats.format_info_ocp_e2m1,
        "e4m3": gfloat.formats.format_info_ocp_e4m3,
    }
    scalar = [gfloat.decode_float(info[element.name], int(code)).fval for code in codes]
    np.testing.assert_array_equal(ours, np.array(scalar, dtype=np.float32))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_rounding_at_every_tie_and_one_ulp_beside(element: ElementFormat) -> None:
    values = np.array(element.magnitudes, dtype=np.float32)
    ties = (values[:-1] + values[1:]) / 2
    near = [values, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))]
    x = np.concatenate(near)
    x = np.concatenate([x, -x])
    ours = element.encode(torch.from_numpy(x)).numpy()
    theirs = x.astype(ORACLE[element.name]).view(np.uint8)
    np.testing.assert_array_equal(ours, theirs)


def test_saturation_sign_of_zero_and_nan() -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([0.0, -0.0, 6.0, 7.0, 1e30, inf, -inf, -1e30, 1e-45, -1e-45])
    assert E2M1.encode(x).tolist() == [0, 8, 7, 7, 7, 7, 15, 15, 0, 8]
    assert E4M3.encode(torch.tensor([nan]))[0] & 0x7F == 0x7F
    assert torch.signbit(E2M1.decode(torch.tensor([8], dtype=torch.uint8))).item()


def test_e8m0_decodes_every_byte_as_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    ours = ScaleFormat.E8M0.decode(torch.from_numpy(codes)).numpy()
    theirs = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)
    assert ours[0] == 2.0**-127
    assert np.isnan(ours[255])


def test_derived_facts() -> None:
    assert E2M1.magnitudes == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert (E4M3.max, E4M3.magnitudes[1], E2M1.emax, E4M3.emax) == (448, 2.0**-9, 2, 8)
    assert (MXFP4.bits_per_value, NVFP4.bits_per_value) == (4.25, 4.5)


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(FormatError, match="did you mean 'nvfp4'"):
        named("format", "nvpf4", FORMATS)
    with pytest.raises(FormatError, match="choose from mxfp4, nvfp4"):
        named("format", "zzz", FORMATS)
