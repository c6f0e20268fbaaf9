"""A document of a run with figures that are known."""

from __future__ import annotations

from typing import Any

from prect.benchmark.boxes import ALIGNED, VIEWS

MS = {
    "prect": 2.0,
    "prect-window": 3.0,
    "monai-persistent": 20.0,
    "zarr-python": 8.0,
    "tensorstore": 2.5,
    "blosc2": 3.0,
    "mlarray": 1.9,
    "decode-limit": 1.8,
    "decode-limit-compiled": 1.5,
}
MEGABYTES = {
    "prect": 12,
    "prect-window": 4,
    "monai-persistent": 64,
    "zarr-python": 11,
    "tensorstore": 11,
    "blosc2": 10,
    "mlarray": 11,
    "decode-limit": 11,
    "decode-limit-compiled": 11,
}


def reads(ms: float, megabytes: float) -> dict[str, Any]:
    return {
        "reads": 4,
        "p50_ms": ms,
        "p95_ms": 2 * ms,
        "p99_ms": 3 * ms,
        "low_ms": ms / 2,
        "high_ms": 3 * ms,
        "samples_per_s": 1e3 / ms,
        "cpu_s": ms / 1e3,
        "device_bytes": 1e6 * megabytes,
        "p50_ms_by_volume": {"volume0": ms, "volume1": ms if ms != 2.0 else 4.0},
    }


def arm(name: str) -> dict[str, Any]:
    ms = MS[name]
    warm = {view: reads(ms, 0) for view in (*VIEWS, ALIGNED)}
    cold = {view: reads(2 * ms, MEGABYTES[name] / 2) for view in (*VIEWS, ALIGNED)}
    return {
        "name": name,
        "title": f"the {name}",
        "holds": "hu",
        "versions": {name: "1.2.3"},
        "status": "measured",
        "import_s": 0.1,
        "bytes": {"volume0": 500_000 * MEGABYTES[name], "volume1": 500_000 * MEGABYTES[name]},
        "resident_bytes": 100_000_000,
        "peak_bytes": 150_000_000,
        "first_read_ms": 5.0,
        "reads": {"warm": warm} if name.startswith("decode") else {"warm": warm, "cold": cold},
        "not_measured": {"starved": "not allowed here"},
        "reads_not_cold": 0,
    }


def document() -> dict[str, Any]:
    """Two volumes; prect takes 2 ms warm and 4 ms cold, others as in `MS`."""
    return {
        "arms": [arm(name) for name in MS],
        "volumes": [
            {
                "name": f"volume{n}",
                "shape": [64, 200, 250],
                "full_shape": [64, 300, 300],
                "level_bytes": [5_500_000, 400_000],
            }
            for n in (0, 1)
        ],
        "prect": "0.1",
        "decoder": "CompiledDecoder",
        "starved": {"measured": False, "reason": "not allowed here"},
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "system": "a system",
            "python": "3.11",
            "memory_bytes": 2**34,
            "versions": {"numpy": "2.0", "zarrs": None},
        },
        "settings": {"volumes": 2, "rounds": 2, "cold_rounds": 2, "window_hu": [-175, 250]},
        "loaders": [
            {
                "loader": "prect",
                "workers": 0,
                "samples": 100,
                "samples_per_s": 200.0,
                "cpu_s": 0.005,
                "gpus_a_core": 30.2,
            },
            {"loader": "monai-persistent", "workers": 0, "reason": "no word"},
        ],
        "start": {
            "rows": 160_000,
            "workers": 2,
            "resume_step": 1_000_000,
            "first": {"seconds": 1.5, "open_s": 0.5, "worker_private_bytes": 100_000_000},
            "resume": {"seconds": 2.5, "open_s": 0.5, "worker_private_bytes": 100_000_000},
        },
        "goals": [],
    }
