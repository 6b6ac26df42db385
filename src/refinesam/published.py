"""Weights that others published: addresses, digests, licences, what they are good at, and what to cite. Data alone.

A digest is what the publisher or several independent projects give for that address. Addresses and digests of
micro-sam's models are those of `micro_sam/util.py` at commit 3acdcd7. Those in the BioImage.IO zoo have the licence
that `micro_sam/bioimageio/model_export.py` writes there; for its other models none was found.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PUBLISHED", "Published"]


class Published(NamedTuple):
    """A row of the registry; its fields are those of `refinesam.registry.WeightsEntry`."""

    name: str
    variant: str
    url: str
    digest: str
    licence: str
    note: str
    citation: str
    size: int | None = None
    about: int | None = None
    file: str = ""


# Bytes of float32 parameters, for files whose exact size nobody states.
_ABOUT = {
    "efficientsam_ti": 41_000_000,
    "efficientsam_s": 106_000_000,
    "mobile_sam": 41_000_000,
    "sam_vit_b": 375_000_000,
    "sam_vit_l": 1_249_000_000,
    "sam_vit_h": 2_564_000_000,
}
_EFFICIENTSAM = "Xiong et al. 2024, EfficientSAM, arXiv:2312.00863"
_SAM = "Kirillov et al. 2023, Segment Anything, arXiv:2304.02643"
_MOBILESAM = "Zhang et al. 2023, Faster Segment Anything, arXiv:2306.14289"
_MICROSAM = "Archit et al. 2025, Segment Anything for Microscopy, doi:10.1038/s41592-024-02580-4"
_PATHOSAM = "PathoSAM, arXiv:2502.00408"
_MEDICOSAM = "MedicoSAM, doi:10.1109/TMI.2025.3644811"


def _efficient_sam(name: str, file: str, blob: str, note: str) -> Published:
    # A commit, not a branch: the address then always gives the same bytes. Git names a file by its content.
    commit = "d525f622e6f640acf5a0fc37c7ca1f243da5bde0"
    url = f"https://github.com/yformer/EfficientSAM/raw/{commit}/weights/{file}"
    digest = f"git-blob-sha1:{blob}"
    return Published(name, name, url, digest, "Apache-2.0", note, _EFFICIENTSAM, about=_ABOUT[name])


def _mobile_sam() -> Published:
    commit = "34bbbfdface3c18e5221aa7de6032d7220c6c6a1"
    url = f"https://github.com/ChaoningZhang/MobileSAM/raw/{commit}/weights/mobile_sam.pt"
    digest = "git-blob-sha1:7ef2d090979fd9853adf17b7a99c8b94a1c5a6a7"
    note = "photographs, with negative clicks, fast on a CPU"
    about = _ABOUT["mobile_sam"]
    return Published("mobile_sam", "mobile_sam", url, digest, "Apache-2.0", note, _MOBILESAM, about=about)


def _sam(name: str, file: str, sha256: str, size: int, note: str) -> Published:
    # Its publisher gives no SHA-256; these are the ones that independent projects pin for this address. The hex digits
    # in the file names are the beginning of the MD5.
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    return Published(name, name, url, f"sha256:{sha256}", "Apache-2.0", note, _SAM, size)


def _micro_sam(name: str, place: str, xxh128: str, good_at: str, also: str = "") -> Published:
    """Make the row of a model that keeps micro-sam's own name, such as vit_b_lm."""
    variant = {"t": "mobile_sam", "b": "sam_vit_b", "l": "sam_vit_l", "h": "sam_vit_h"}[name.split("_")[1]]
    in_the_zoo = "/" in place
    if in_the_zoo:
        zoo = "https://uk1s3.embassy.ebi.ac.uk/public-datasets/bioimage.io"
        url = f"{zoo}/{place}/files/{name[:5]}.pt"
    else:
        url = f"https://owncloud.gwdg.de/index.php/s/{place}/download"
    return Published(
        name,
        variant,
        url,
        f"xxh128:{xxh128}",
        "CC-BY-4.0" if in_the_zoo else "not stated",
        good_at,
        "; ".join(text for text in (also, _MICROSAM, _MOBILESAM if variant == "mobile_sam" else _SAM) if text),
        about=_ABOUT[variant],
        file=f"microsam_{name}.pt",
    )


_LM = "cells and nuclei in light microscopy"
_EM = "mitochondria and nuclei in electron microscopy"
_HISTOPATHOLOGY = "nuclei in histopathology"

PUBLISHED = (
    _efficient_sam(
        "efficientsam_ti",
        "efficient_sam_vitt.pt",
        "af883c49e33c68f01107be52df0ecad26a48355f",
        "photographs, small download",
    ),
    _efficient_sam(
        "efficientsam_s",
        "efficient_sam_vits.pt.zip",
        "fa4e9f05f753e109dbde052f97d37903b833cf53",
        "photographs, better and slower than efficientsam_ti",
    ),
    _mobile_sam(),
    _sam(
        "sam_vit_b",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
        "photographs, and a start for other images",
    ),
    _sam(
        "sam_vit_l",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
        "photographs, better than sam_vit_b; slow on a CPU",
    ),
    _sam(
        "sam_vit_h",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
        "photographs, little better than sam_vit_l; very slow on a CPU",
    ),
    _micro_sam("vit_t_lm", "faithful-chicken/1.1", "72ec5074774761a6e5c05a08942f981e", f"{_LM}, fast on a CPU"),
    _micro_sam("vit_b_lm", "diplomatic-bug/1.2", "fe9252a29f3f4ea53c15a06de471e186", _LM),
    _micro_sam("vit_l_lm", "idealistic-rat/1.2", "017f20677997d628426dec80a8018f9d", f"{_LM}, slow on a CPU"),
    _micro_sam("vit_t_em_organelles", "greedy-whale/1", "253474720c497cce605e57c9b1d18fd9", f"{_EM}, fast on a CPU"),
    _micro_sam("vit_b_em_organelles", "noisy-ox/1.2", "f3bf2ed83d691456bae2c3f9a05fb438", _EM),
    _micro_sam("vit_l_em_organelles", "humorous-crab/1.2", "810b084b6e51acdbf760a993d8619f2d", f"{_EM}, slow on a CPU"),
    _micro_sam(
        "vit_b_histopathology",
        "sBB4H8CTmIoBZsQ",
        "ffd1a2cd84570458b257bd95fdd8f974",
        _HISTOPATHOLOGY,
        _PATHOSAM,
    ),
    _micro_sam(
        "vit_l_histopathology",
        "IZgnn1cpBq2PHod",
        "b591833c89754271023e901281dee3f2",
        f"{_HISTOPATHOLOGY}, slow on a CPU",
        _PATHOSAM,
    ),
    _micro_sam(
        "vit_h_histopathology",
        "L7AcvVz7DoWJ2RZ",
        "bd1856dafc156a43fb3aa705f1a6e92e",
        f"{_HISTOPATHOLOGY}, very slow on a CPU",
        _PATHOSAM,
    ),
    _micro_sam(
        "vit_b_medical_imaging",
        "f5Ol4FrjPQWfjUF",
        "40169f1e3c03a4b67bff58249c176d92",
        "X-ray, CT, MRI, ultrasound and other medical images",
        _MEDICOSAM,
    ),
)
