"""C2PA manifests in finished PNG and JPEG files: what made an image, signed with the user's certificate.

The work is done by c2pa-python (the extra ``c2pa``). Clauses named here are of the C2PA Technical Specification 2.4.
Nothing is fetched from a network: neither manifests that lie elsewhere nor whether a certificate was revoked.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from nodule_plugin import __version__
from nodule_plugin.data.generated import NOTICE, load_generated
from nodule_plugin.data.picture import picture_texts
from nodule_plugin.errors import InputError
from nodule_plugin.files import new_folder

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's word for what a trained model made."""
TRUSTED = "Trusted"
HOLDS = (TRUSTED, "Valid")
"""States of manifests of unchanged files; see :attr:`ManifestReading.state`."""
_GENERATOR = "nodule-plugin"
_MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg"}
_FACTS = ("prompt", "guidance_scale", "seed")
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_PURPOSES = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
"""Extended key usages of signers: emailProtection, documentSigning, C2PA's claimSigning (clause "C2PA Signers")."""
_PROFILE = (
    "the certificate must be of an end entity, valid now, with key usage digitalSignature and extended key usage "
    "emailProtection, documentSigning or C2PA's claimSigning"
)


@dataclass(frozen=True)
class Credential:
    """Who signs.

    Attributes:
        chain: certificates as PEM, the signer's first, then those who issued it.
        key: the signer's private key, unencrypted PKCS #8 as PEM.
        algorithm: C2PA's name of it (clause "Signature Algorithms").
        name: of the certificate's subject.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    algorithm: str
    name: str


def read_credential(certificate: Path, private_key: Path) -> Credential:
    """A certificate chain and its private key.

    Args:
        certificate: PEM, the signer's first.
        private_key: PEM, not encrypted: elliptic curve P-256, P-384 or P-521, RSA or Ed25519.

    Raises:
        InputError: if a file cannot be read or used, or one does not belong to the other.
    """
    chain = read_certificates("certificate", certificate)
    try:
        key = load_pem_private_key(private_key.read_bytes(), None)
    except TypeError as error:
        remedy = f"openssl pkey -in {private_key} -out plain.pem decrypts it"
        raise InputError(f"private_key: {private_key} is encrypted; {remedy}") from error
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"private_key: {private_key} is not a private key as PEM ({_line(error)})") from error
    algorithm = _algorithm(key)
    if algorithm is None:
        raise InputError(f"private_key: {private_key}: C2PA signs with P-256, P-384, P-521, RSA or Ed25519 keys only")
    if key.public_key() != chain[0].public_key():
        raise InputError(
            f"private_key: {private_key} is not the key of the first certificate in {certificate}; "
            "give the signer's key, and a chain with the signer's certificate first"
        )
    return Credential(
        chain=b"".join(one.public_bytes(Encoding.PEM) for one in chain),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        algorithm=algorithm,
        name=_common_name(chain[0]),
    )


def read_certificates(what: str, path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file.

    Args:
        what: the option that named the file, for the error.
        path: of it.

    Raises:
        InputError: if it cannot be read or holds none.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {path} holds no certificates as PEM ({_line(error)})") from error


def sign_pictures(
    files: Sequence[Path],
    credential: Credential,
    output: Path,
    generated: Path | None = None,
    time_stamp: str | None = None,
) -> None:
    """Write copies of pictures with a C2PA manifest each, which says what made them; pixels and texts stay.

    The facts are those that inference wrote into a PNG; for other files, those of the image of that name in a set.

    Args:
        files: PNG and JPEG.
        credential: who signs.
        output: folder, which must not hold anything; it is there when all files are.
        generated: folder of a set that inference wrote.
        time_stamp: URL of a time stamp authority (RFC 3161); the only one that is asked for anything.

    Raises:
        InputError: if a file is of another kind, signed already, or nothing is known of its making; if the
            certificate is not one for C2PA; if the authority does not answer; if ``output`` cannot be written.
    """
    for name, count in Counter(file.name for file in files).items():
        if count > 1:
            raise InputError(f"{output}: two of the files are called {name}; sign them into different folders")
    origins = {} if generated is None else _origins(generated)
    with new_folder(output) as folder:
        for file in files:
            (folder / file.name).write_bytes(_signed(file, credential, origins, time_stamp))


def _origins(generated: Path) -> dict[str, Mapping[str, Any]]:
    """What made the images of a set, by their names without ending."""
    images = load_generated(generated)
    if images.manifest is None:
        raise InputError(f"generated: {generated} is no set that inference wrote; give a folder with its manifest.json")
    return {Path(item["image"]).stem: {**images.manifest, "request": item} for item in images.items}


def _signed(
    path: Path, credential: Credential, origins: Mapping[str, Mapping[str, Any]], time_stamp: str | None
) -> bytes:
    kind, texts = picture_texts(path)
    if kind not in _MIME_TYPES:
        raise InputError(f"{path}: is {kind}; PNG and JPEG can be signed")
    if read_manifest(path) is not None:
        raise InputError(f"{path}: carries a C2PA manifest already; sign the file that it was made from")
    definition = _definition(path, texts.get("origin"), origins)
    signed = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(credential.algorithm, credential.chain, credential.key, time_stamp)
        with c2pa.Signer.from_info(info) as signer, _context() as context:
            c2pa.Builder(definition, context).sign(signer, _MIME_TYPES[kind], io.BytesIO(path.read_bytes()), signed)
    except c2pa.C2paError as error:
        remedy = _PROFILE if time_stamp is None else f"{_PROFILE}; {time_stamp} must be a time stamp authority"
        raise InputError(f"{path}: not signed ({_line(error)}); {remedy}") from error
    return signed.getvalue()


def _definition(path: Path, origin: str | None, origins: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest to be: the action that made the image (clause "Actions"), and the model ("AI Disclosure")."""
    if origin is None and path.stem not in origins:
        raise InputError(
            f"{path}: nothing says what made it; sign a PNG that inference wrote, or give --generated, "
            f"the set with an image called {path.stem}"
        )
    try:
        made = origins[path.stem] if origin is None else json.loads(origin)
        created = {
            "action": "c2pa.created",
            "digitalSourceType": SOURCE_TYPE,
            "softwareAgent": {"name": _GENERATOR, "version": made["software"]["nodule_plugin"]},
            "description": NOTICE,
            "parameters": {name: made["request"][name] for name in _FACTS},
        }
        model = {
            "modelType": "c2pa.types.model.pytorch",
            "modelName": f"{_GENERATOR} on {made['model']['base_model']}",
            "modelIdentifier": f"sha256:{made['model']['weights_sha256']}",
        }
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: what it says of its making is damaged ({error!r}); generate it again") from error
    assertions = {"c2pa.actions.v2": {"actions": [created]}, "c2pa.ai-disclosure": model}
    return {
        "claim_generator_info": [{"name": _GENERATOR, "version": __version__}],
        "assertions": [{"label": label, "data": data, "created": True} for label, data in assertions.items()],
    }


@dataclass(frozen=True)
class ManifestReading:
    """What a file's C2PA manifest says, and whether it holds.

    Attributes:
        state: "Trusted": unchanged, and signed by somebody for whom a given certificate vouches; "Valid": unchanged,
            signed by anybody; "Invalid" (clause "Manifest States").
        signer: common name of the certificate.
        faults: C2PA's codes of what does not hold (clause "Standard Status Codes").
        manifest: the active one, as c2pa-python gives it.
    """

    state: str
    signer: str
    faults: tuple[str, ...]
    manifest: Mapping[str, Any]


def read_manifest(path: Path, anchors: Sequence[x509.Certificate] = ()) -> ManifestReading | None:
    """The C2PA manifest in a file, of whoever wrote it; None where there is none.

    Args:
        path: PNG, JPEG or what else c2pa-python reads.
        anchors: certificates of authorities whose signers are trusted.

    Raises:
        InputError: if the file or its manifest cannot be read.
    """
    try:
        with path.open("rb") as file, _context(anchors) as context:
            reader = c2pa.Reader.try_create(file, context=context)
            if reader is None:
                return None
            with reader:
                manifest = reader.get_active_manifest() or {}
                results = (reader.get_validation_results() or {}).get("activeManifest", {})
                state = str(reader.get_validation_state())
    except (OSError, c2pa.C2paError) as error:
        raise InputError(f"{path}: no C2PA manifest can be read from it ({_line(error)})") from error
    signature = manifest.get("signature_info", {})
    signer = signature.get("common_name") or signature.get("issuer") or "somebody unnamed"
    return ManifestReading(state, signer, tuple(one["code"] for one in results.get("failure", [])), manifest)


def described(path: Path, reading: ManifestReading | None, as_json: bool = False) -> str:
    """A line on what was found in a file."""
    if as_json:
        return json.dumps({"file": str(path), **({"state": None} if reading is None else vars(reading))})
    if reading is None:
        return f"{path}: no C2PA manifest"
    if reading.state not in HOLDS:
        return _line(f"{path}: does not hold ({', '.join(reading.faults)}); the signature is {reading.signer}'s")
    who = "who is trusted" if reading.state == TRUSTED else "who may be anybody"
    return _line(f"{path}: unchanged since {reading.signer}, {who}, signed it: {_claims(reading.manifest)}")


def _claims(manifest: Mapping[str, Any]) -> str:
    """The actions in a manifest."""
    assertions = [one["data"] for one in manifest.get("assertions", []) if one["label"].startswith("c2pa.actions")]
    claims = []
    for action in (action for assertion in assertions for action in assertion["actions"]):
        source = action.get("digitalSourceType", "").rpartition("/")[2]
        claims.append(" ".join(filter(None, (action["action"], source, action.get("description")))))
    return "; ".join(claims) or "not how it was made"


def _context(anchors: Sequence[x509.Certificate] = ()) -> c2pa.Context:
    """c2pa-python's settings: off line, no thumbnail (a second picture of what is one already), these authorities."""
    trust = {"trust_config": "\n".join(_PURPOSES)}
    if anchors:
        trust["user_anchors"] = "".join(one.public_bytes(Encoding.PEM).decode() for one in anchors)
    verify = {"remote_manifest_fetch": False, "ocsp_fetch": False}
    return c2pa.Context.from_dict({"trust": trust, "verify": verify, "builder": {"thumbnail": {"enabled": False}}})


def _algorithm(key: Any) -> str | None:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _CURVES.get(key.curve.name)
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    return "ed25519" if isinstance(key, ed25519.Ed25519PrivateKey) else None


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _line(text: object) -> str:
    """A text in one line, without what a terminal would obey."""
    return "".join(character for character in " ".join(str(text).split()) if character.isprintable())
