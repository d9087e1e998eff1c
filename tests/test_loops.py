"""The main loop in SASS: which one it is, and what counts."""

from __future__ import annotations

from fp4kernels.triton.loops import main_loop

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   LDS.128 R4, [R2] ;
        /*0030*/                   LOP3.LUT R5, R4, 0x81c081c0, RZ, 0xc0, !PT ;
        /*0040*/              @!P1 HMUL2.BF16_V2 R5, R5, R6.H0_H0 ;
        /*0050*/                   STS [R3], R5 ;
        /*0060*/                   HMMA.16816.F32.BF16 R8, R4, R5, R8 ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/               @P0 BRA `(.L_x_1) ;
        /*0090*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*00a0*/                   IADD3 R2, R2, 0x1, RZ ;
        /*00b0*/               @P2 BRA `(.L_x_2) ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_3:
        /*00d0*/                   EXIT ;
"""


def test_the_innermost_loop_that_multiplies() -> None:
    loop = main_loop(SASS)
    assert loop is not None
    assert loop.instructions == {
        "shared": 2, "integer": 1, "float": 1, "mma": 1, "barrier": 1, "control": 1,
    }  # fmt: skip
    assert loop.counted == 4  # LOP3, HMUL2, STS, BRA


def test_no_loop_multiplies() -> None:
    assert main_loop(SASS.replace("HMMA", "HFMA2")) is None
    assert main_loop("") is None


def test_weights_of_a_pass() -> None:
    loop = main_loop(SASS)
    assert loop is not None
    kind = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert loop.weights_per_lane(kind, 16) == 16 * 8 * 16 // 16 // 32
    kind = "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
    assert loop.weights_per_lane(kind, 64) == 64 * 128 * 16 // 64 // 32 // 4
