"""Files say what made them, and hold the same pixels as before."""

import io
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from serve_app.engine import codec
from serve_app.engine.metadata import NAMESPACE, SOURCE_TYPE, Origin, describe
from tests.required import require

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
ORIGIN = Origin(model="black-forest-labs/FLUX.1-schnell", steps=4, request_id='req-"1"<&>')
FORMATS = ["png", "jpeg", "webp"]


def pixels(width=48, height=33):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def read_xmp(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        raw = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    tree = ET.fromstring(raw.decode() if isinstance(raw, bytes) else raw)
    return dict(tree.find(f".//{{{RDF}}}Description").attrib)


def decoded(data: bytes):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_says_what_made_it_and_that_it_is_no_photograph(output_format):
    found = read_xmp(describe(codec.encode(pixels(), output_format), output_format, ORIGIN, 2**32))
    assert found[f"{{{IPTC}}}DigitalSourceType"] == SOURCE_TYPE
    assert found[f"{{{IPTC}}}AISystemUsed"] == "black-forest-labs/FLUX.1-schnell"
    assert found[f"{{{NAMESPACE}}}Model"] == "black-forest-labs/FLUX.1-schnell"
    assert found[f"{{{NAMESPACE}}}Seed"] == str(2**32)
    assert found[f"{{{NAMESPACE}}}Steps"] == "4"
    assert found[f"{{{NAMESPACE}}}RequestId"] == 'req-"1"<&>'


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("edge", [16, 33, 1024])
def test_the_pixels_stay_as_they_were(output_format, edge):
    plain = codec.encode(pixels(edge, 17), output_format)
    described = describe(plain, output_format, ORIGIN, 1)
    assert np.array_equal(decoded(described), decoded(plain))
    assert Image.open(io.BytesIO(described)).size == (edge, 17)
    assert Image.open(io.BytesIO(described)).format.lower() == output_format


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": True, "exact": True}, {}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_kind_of_webp_is_described(options, mode):
    out = io.BytesIO()
    picture = Image.fromarray(pixels()).convert(mode)
    if mode == "RGBA":
        picture.putalpha(128)
    picture.save(out, "WEBP", **options)
    described = describe(out.getvalue(), "webp", ORIGIN, 5)
    assert read_xmp(described)[f"{{{NAMESPACE}}}Seed"] == "5"
    assert np.array_equal(decoded(described), decoded(out.getvalue()))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_prompt_is_written_only_when_given(output_format):
    plain = codec.encode(pixels(), output_format)
    assert b"Prompt" not in describe(plain, output_format, ORIGIN, 1)
    prompt = 'a "red" fox & <crab>\n\x00\x0b\ud800 in 東京 🦊'
    told = Origin("flux-mini", 4, "req-1", prompt)
    found = read_xmp(describe(plain, output_format, told, 1))[f"{{{IPTC}}}AIPromptInformation"]
    assert found == 'a "red" fox & <crab>\n in 東京 🦊'


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("character", ['"', "🦊", "&"])
def test_the_longest_prompt_fits(output_format, character):
    told = Origin("m" * 200, 4, "r" * 200, character * 32_000)
    found = read_xmp(describe(codec.encode(pixels(), output_format), output_format, told, 1))
    assert found[f"{{{IPTC}}}AIPromptInformation"] == character * 4000


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("data", [b"", b"not a picture", b"RIFF    WEBPVP9 " + b"x" * 40])
def test_what_is_no_file_of_the_format_is_refused(output_format, data):
    with pytest.raises(ValueError, match="not a"):
        describe(data, output_format, ORIGIN, 1)


@pytest.mark.parametrize("output_format", FORMATS)
def test_exiftool_reads_it_too(output_format, tmp_path):
    found = shutil.which("exiftool") is not None
    require(found, "exiftool is not installed: apt-get install libimage-exiftool-perl")
    path = tmp_path / f"picture.{output_format}"
    path.write_bytes(describe(codec.encode(pixels(), output_format), output_format, ORIGIN, 1))
    command = ["exiftool", "-validate", "-DigitalSourceType", "-s", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "trainedAlgorithmicMedia" in done.stdout
    assert "Validate" in done.stdout
