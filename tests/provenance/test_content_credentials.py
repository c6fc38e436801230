from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nodule_plugin import __version__, extras
from nodule_plugin.cli import main
from nodule_plugin.data.generated import NOTICE
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.generation import GeneratedSetWriter
from nodule_plugin.provenance.content_credentials import (
    SOURCE_TYPE,
    ManifestReading,
    described,
    read_credential,
    read_manifest,
)

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PROMPT = "The nodule is round in shape – naïve 結節"
WEIGHTS = "fc07" * 16


def certificate(
    subject: str,
    key: Key,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    purpose: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    days: int = 1,
) -> x509.Certificate:
    """Valid for so many days from now (of the past, if negative); an authority's, if it issues itself."""
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    authority, start = subject == issuer, datetime.now(timezone.utc) + timedelta(days=min(days, 0), hours=-1)
    usage = {"digital_signature": not authority, "key_cert_sign": authority, "crl_sign": authority}
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage |= dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    builder = x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=abs(days)))
    builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if purpose is not None and not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def write_key(path: Path, key: Key, encryption: KeySerializationEncryption | None = None) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    return path


@dataclass
class Signer:
    """An authority, and a signer with the key of its certificate, as files in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self.authority_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self.folder / "root.pem"
        authority = certificate("Authority", self.authority_key, "Authority", self.authority_key)
        self.root.write_bytes(authority.public_bytes(Encoding.PEM))
        self.chain = self.issue("chain.pem", self.key)
        self.key_file = write_key(self.folder / "key.pem", self.key)

    def issue(self, name: str, key: Key, **options: object) -> Path:
        """A chain for a key of somebody's."""
        one = certificate("Jane Doe", key, "Authority", self.authority_key, **options)
        (self.folder / name).write_bytes(one.public_bytes(Encoding.PEM) + self.root.read_bytes())
        return self.folder / name

    @property
    def words(self) -> list[str]:
        return ["--certificate", str(self.chain), "--private-key", str(self.key_file)]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated set with the image "a", and beside it that as JPEG, and as PNG and TIFF without texts."""
    folder = tmp_path_factory.mktemp("set")
    request = {"id": "a", "prompt": PROMPT, "findings": None, "guidance_scale": 3.0, "seed": 5, "roi_mm": 20.0}
    run = {"settings": {"scheduler": "", "prediction_type": "", "num_inference_steps": 1}, "base_model": "owner/name"}
    run |= {"weights_sha256": WEIGHTS, "image_size": 64, "formats": ("png",)}
    writer = GeneratedSetWriter(folder, [request | {"source_id": None}], **run)
    writer.start()
    writer.write(request, np.random.default_rng(0).uniform(-1, 1, (64, 64)).astype(np.float32))
    writer.finish()
    with Image.open(folder / "png" / "a.png") as picture:
        for name in ("a.jpg", "a.tif", "plain.png"):
            Image.fromarray(np.asarray(picture)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def signed(images: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both signed."""
    output = tmp_path_factory.mktemp("signed") / "out"
    files = [str(images / name) for name in ("png/a.png", "a.jpg")]
    main(["sign", *files, *signer.words, "--generated", str(images), "--output", str(output)])
    return output


def verdict(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The status and lines of ``nodule verify``."""
    with pytest.raises(SystemExit) as ended:
        main(["verify", *words])
    return int(ended.value.code or 0), capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_manifest_says_that_an_image_is_synthetic_and_what_made_it(signed: Path, name: str) -> None:
    reading = read_manifest(signed / name)
    assert reading is not None
    assert (reading.state, reading.signer) == ("Valid", "Jane Doe")
    assert (
        reading.manifest["claim_generator_info"][0].items() >= {"name": "nodule-plugin", "version": __version__}.items()
    )
    said = {assertion["label"]: assertion["data"] for assertion in reading.manifest["assertions"]}
    assert said["c2pa.actions.v2"]["actions"] == [
        {
            "action": "c2pa.created",
            "digitalSourceType": SOURCE_TYPE,
            "softwareAgent": {"name": "nodule-plugin", "version": __version__},
            "description": NOTICE,
            "parameters": {"prompt": PROMPT, "guidance_scale": 3.0, "seed": 5},
        }
    ]
    assert said["c2pa.ai-disclosure"] == {
        "modelType": "c2pa.types.model.pytorch",
        "modelName": "nodule-plugin on owner/name",
        "modelIdentifier": f"sha256:{WEIGHTS}",
    }


@pytest.mark.parametrize(("name", "source"), [("a.png", "png/a.png"), ("a.jpg", "a.jpg")])
def test_pixels_and_texts_stay(signed: Path, images: Path, name: str, source: str) -> None:
    with Image.open(images / source) as before, Image.open(signed / name) as after:
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
        assert getattr(after, "text", None) == getattr(before, "text", None)


def test_who_is_trusted_is_said(
    signed: Path, signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(signed / name) for name in ("a.png", "a.jpg")]
    claim = f"c2pa.created trainedAlgorithmicMedia {NOTICE}"
    anybody = [f"{file}: unchanged since Jane Doe, who may be anybody, signed it: {claim}" for file in files]
    trusted = [f"{file}: unchanged since Jane Doe, who is trusted, signed it: {claim}" for file in files]
    assert verdict(files, capsys) == (0, anybody)
    assert verdict([*files, "--trust", str(signer.root)], capsys) == (0, trusted)
    assert verdict([*files, "--trust", str(Signer(tmp_path).root)], capsys) == (1, anybody)  # of the same name
    status, (line,) = verdict([files[0], "--json"], capsys)
    assert status == 0
    assert json.loads(line).items() >= {"file": files[0], "state": "Valid", "signer": "Jane Doe"}.items()
    assert described(Path("a"), ManifestReading("Valid", "\x1b[2J\nJane", (), {})).startswith(
        "a: unchanged since [2J Jane,"
    )


@pytest.mark.parametrize(
    ("name", "before", "fault"),
    [
        ("a.png", b"IDAT", "assertion.dataHash.mismatch"),
        ("a.png", b"iTXtprompt", "assertion.dataHash.mismatch"),
        ("a.jpg", b"\xff\xda", "assertion.dataHash.mismatch"),
        ("a.jpg", b"trainedAlgorithmic", "assertion.hashedURI.mismatch"),
    ],
    ids=["pixel", "text", "pixel of a JPEG", "claim"],
)
def test_a_changed_file_is_noticed(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, before: bytes, fault: str
) -> None:
    content = bytearray((signed / name).read_bytes())
    content[content.index(before) + len(before) + 30] ^= 1
    (tmp_path / name).write_bytes(content)
    status, (line,) = verdict([str(tmp_path / name)], capsys)
    assert status == 1
    assert line.startswith(f"{tmp_path / name}: does not hold (")
    assert fault in line
    assert "Jane Doe" in line


def test_saving_again_loses_the_manifest(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(signed / "a.png") as picture:
        picture.save(tmp_path / "again.png")
    assert verdict([str(tmp_path / "again.png")], capsys) == (1, [f"{tmp_path / 'again.png'}: no C2PA manifest"])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path / "text.png"), str(tmp_path / "again.png")])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert f"error: {tmp_path}/text.png: no C2PA manifest can be read from it" in said.err
    assert said.out.splitlines() == [f"{tmp_path / 'again.png'}: no C2PA manifest"]


@pytest.mark.parametrize("kind", ["P-384", "RSA", "Ed25519", "documentSigning", "claimSigning"])
def test_c2pas_keys_and_purposes_sign(signer: Signer, images: Path, tmp_path: Path, kind: str) -> None:
    keys = {
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    purposes = {"documentSigning": "1.3.6.1.5.5.7.3.36", "claimSigning": "1.3.6.1.4.1.62558.2.1"}
    key = keys[kind]() if kind in keys else signer.key
    purpose = x509.ObjectIdentifier(purposes.get(kind, "1.3.6.1.5.5.7.3.4"))
    chain = signer.issue(f"{kind}.pem", key, purpose=purpose)
    words = ["--certificate", str(chain), "--private-key", str(write_key(tmp_path / "key.pem", key))]
    main(["sign", str(images / "png" / "a.png"), *words, "--output", str(tmp_path / "out")])
    anchors = x509.load_pem_x509_certificates(signer.root.read_bytes())
    reading = read_manifest(tmp_path / "out" / "a.png", anchors)
    assert reading is not None
    assert reading.state == "Trusted"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"purpose": ExtendedKeyUsageOID.SERVER_AUTH}, "the certificate is invalid"),
        ({"purpose": None}, "the certificate is invalid"),
        ({"days": -3}, "the certificate was not valid at time of signing"),
    ],
    ids=["for servers", "without purpose", "run out"],
)
def test_an_unsuitable_certificate_signs_nothing(
    signer: Signer, images: Path, tmp_path: Path, options: dict[str, object], reason: str
) -> None:
    chain = signer.issue("unsuitable.pem", signer.key, **options)
    words = ["--certificate", str(chain), "--private-key", str(signer.key_file), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=rf"a\.png: not signed \(Signature: {reason}\); the certificate must be"):
        main(["sign", str(images / "png" / "a.png"), *words])
    assert list(tmp_path.iterdir()) == []


def test_certificates_and_keys_that_cannot_be_used_are_named(signer: Signer, tmp_path: Path) -> None:
    encrypted = write_key(tmp_path / "encrypted.pem", signer.key, BestAvailableEncryption(b"secret"))
    other = write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP256R1()))
    bitcoin = write_key(tmp_path / "bitcoin.pem", ec.generate_private_key(ec.SECP256K1()))
    absent = tmp_path / "absent.pem"
    for chain, key, message in (
        (absent, signer.key_file, r"certificate: .*absent\.pem holds no certificates as PEM \(.*No such file"),
        (signer.key_file, signer.key_file, r"certificate: .*key\.pem holds no certificates as PEM"),
        (signer.chain, absent, r"private_key: .*absent\.pem is not a private key as PEM \(.*No such file"),
        (signer.chain, signer.chain, r"private_key: .*chain\.pem is not a private key as PEM"),
        (signer.chain, encrypted, r"private_key: .*encrypted\.pem is encrypted; openssl pkey -in"),
        (signer.chain, other, r"private_key: .*other\.pem is not the key of the first certificate in .*chain\.pem"),
        (signer.chain, bitcoin, r"private_key: .*bitcoin\.pem: C2PA signs with P-256, P-384"),
    ):
        with pytest.raises(InputError, match=message):
            read_credential(chain, key)
    assert repr(read_credential(signer.chain, signer.key_file)) == "Credential(algorithm='es256', name='Jane Doe')"


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        (["a.tif"], [], r"a\.tif: is TIFF; PNG and JPEG can be signed"),
        (["manifest.json"], [], r"manifest\.json cannot be read as a picture"),
        (["absent.png"], [], r"there is no file .*absent\.png"),
        (
            ["plain.png"],
            [],
            r"plain\.png: nothing says what made it; .*--generated, the set with an image called plain",
        ),
        (["a.jpg"], [], r"a\.jpg: nothing says what made it"),
        (["a.jpg"], ["--generated", "png"], r"generated: .*png is no set that inference wrote"),
        (["png/a.png", "png/../png/a.png"], [], r"two of the files are called a\.png"),
        (
            ["png/a.png"],
            ["--time-stamp", "http://127.0.0.1:9/"],
            r"not signed .*; http://127\.0\.0\.1:9/ must be a time",
        ),
    ],
)
def test_what_cannot_be_signed_is_named_and_nothing_is_left(
    signer: Signer, images: Path, tmp_path: Path, files: list[str], more: list[str], message: str
) -> None:
    words = [*(str(images / file) for file in files), *(str(images / word) if word == "png" else word for word in more)]
    with pytest.raises(InputError, match=message):
        main(["sign", *words, *signer.words, "--output", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_signed_twice(
    signer: Signer, images: Path, signed: Path, tmp_path: Path
) -> None:
    before = (signed / "a.png").read_bytes()
    with pytest.raises(InputError, match="already there and not an empty folder"):
        main(["sign", str(images / "png" / "a.png"), *signer.words, "--output", str(signed)])
    with pytest.raises(InputError, match=r"a\.png: carries a C2PA manifest already"):
        main(["sign", str(signed / "a.png"), *signer.words, "--output", str(tmp_path / "out")])
    assert (signed / "a.png").read_bytes() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("origin", ["{", "[]", '{"request": {}}'])
def test_a_damaged_origin_is_named(signer: Signer, tmp_path: Path, origin: str) -> None:
    texts = PngInfo()
    texts.add_text("origin", origin)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    with pytest.raises(InputError, match=r"a\.png: what it says of its making is damaged \(.*\); generate it again"):
        main(["sign", str(tmp_path / "a.png"), *signer.words, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sign", "verify"])
def test_without_c2pa_the_line_that_installs_it_is_named(
    signer: Signer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    words = [*signer.words, "--output", str(tmp_path / "out")] if command == "sign" else []
    with pytest.raises(InputError, match=r"^c2pa: not installed; run pip install 'nodule-plugin\[c2pa\]'"):
        main([command, "a.png", *words])
