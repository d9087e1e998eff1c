"""What machine instructions are for: opcodes of NVIDIA (SASS) and AMD GPUs, by class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

# class → opcodes from their beginning; the first that fits, so the order matters
_CLASSES = {
    "mma": r"[HIQODB]G?MMA|UTC[A-Z]*MMA|v_(s?mfma|s?wmma|smfmac|swmmac)",
    "local": r"LDL|STL|scratch_",
    "barrier": (
        r"BAR|B2R|SYNCS|WARPSYNC|MEMBAR|ERRBAR|FENCE|ARRIVES|\w*DEPBAR|UTCBAR|WARPGROUP"
        r"|s_wait|s_barrier"
    ),
    "shared": r"LDS|STS|ATOMS|LDT|STT|UTCCP|ds_",  # and Blackwell's tensor memory
    "constant": r"U?LDCU?\b|s_load|s_buffer_load",
    "global": (r"LDG|STG|ATOM|RED\b|LD\b|ST\b|UTMA|UBLK|CCTL|global_|buffer_|flat_|tensor_"),
    "control": (
        r"U?BRA|BRX|EXIT|RET|CALL|BSSY|BSYNC|BREAK|NOP|NANOSLEEP|ELECT|YIELD"
        r"|s_branch|s_cbranch|s_endpgm|s_nop|s_delay|s_clause|s_set|s_sleep"
    ),
    "convert": r"U?(F2|I2|FRND)|v_cvt|v_med3_cvt",
    "float": r"[FHD](ADD|MUL|FMA|SET|SETP|SEL|MNMX|SWZ)|MUFU|v_\w*_(b?f16|f32|f64)",
    "move": r"U?MOV|CS2U?R|S2U?R|R2UR|SHFL|v_mov|s_mov|v_readlane|v_writelane|v_readfirstlane|v_accvgpr",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _CLASSES.items()}


def class_of(opcode: str) -> str:
    """What an opcode without modifiers is for; `integer` (and bits, addresses, predicates) where it
    is for nothing else."""
    fitting = (kind for kind, pattern in _PATTERNS.items() if pattern.match(opcode))
    return next(fitting, "integer")


def mix(instructions: Mapping[str, int]) -> Counter[str]:
    """Opcode → count, summed to class → count."""
    found: Counter[str] = Counter()
    for opcode, count in instructions.items():
        found[class_of(opcode)] += count
    return found
