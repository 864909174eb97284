"""Known failures of the Hub and of the way to it."""

from __future__ import annotations

from mac_lora_helpers.troubleshooting.failure import Failure, Sign

_HUB = "The Hub"

HUB: tuple[Failure, ...] = (
    Failure(
        "gated",
        _HUB,
        "The model or data set is gated",
        "GatedRepoError: Cannot access gated repo · You are trying to access a gated repo",
        "Its owner wants you to agree to terms, and the Hub must know that it is you who agreed.",
        (
            "accept the terms on the model's (or data set's) page at huggingface.co",
            "log in with a token of the same account: `hf auth login`, then `hf auth whoami`",
            "a fine-grained token needs the permission to read gated repositories",
        ),
        (
            Sign("GatedRepoError"),
            Sign("OSError", r"trying to access a gated repo"),
            Sign("DatasetNotFoundError", r"gated dataset"),
            Sign("InputError", r"\bis gated\b"),
        ),
    ),
    Failure(
        "login",
        _HUB,
        "No Hub login, or one that the Hub does not accept",
        "LocalTokenNotFoundError: Token is required … but no token found · Invalid user token",
        "There is no token on this machine, or it was revoked or mistyped. A HF_TOKEN in the environment counts before a saved login.",
        (
            "`hf auth login` in a terminal, with a token from huggingface.co/settings/tokens",
            "`hf auth whoami` shows who you are to the Hub",
        ),
        (
            Sign("LocalTokenNotFoundError"),
            Sign("HfHubHTTPError", r"Invalid user token|Invalid credentials in Authorization header|Invalid username or password"),
            Sign("HubError", r"No Hub login was found|does not accept this login"),
        ),
    ),
    Failure(
        "push-denied",
        _HUB,
        "The Hub does not allow this login to do that",
        "403 Forbidden: You don't have the rights to create a model under the namespace …",
        "The token can only read, lacks the permission for this repository, or the repository belongs to somebody else.",
        ("use a token with the role write", "choose a `repo_id` under your own name: the name alone is enough"),
        (
            Sign("HfHubHTTPError", r"403 Forbidden"),
            Sign("HubError", r"may not write to"),
        ),
    ),
    Failure(
        "certificate",
        _HUB,
        "The Hub's certificate is not trusted here",
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain",
        "Something between this machine and the Hub (a company's proxy, a virus scanner) signs the traffic with a certificate of its own, "
        "which Python does not know; or this Mac's clock is wrong.",
        (
            "ask for the network's root certificate as a .pem file, then `export SSL_CERT_FILE=/path/to/it.pem` before starting",
            "look at the date and time of this machine",
            "or download elsewhere and give a folder as `model_id` and files as `data_files`",
        ),
        (
            Sign("SSLCertVerificationError"),
            Sign("ConnectError SSLError OSError HubError InputError", r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ),
    ),
    Failure(
        "offline",
        _HUB,
        "The Hub cannot be reached",
        "OfflineModeIsEnabled · LocalEntryNotFoundError · We couldn't connect to 'https://huggingface.co'",
        "There is no network, a proxy stands in between, or HF_HUB_OFFLINE is set; and the files are not in this machine's cache.",
        (
            "check the network, and `env | grep -E 'HF_|PROXY|proxy'`",
            "what was downloaded once is used offline; the preset smoke needs no network at all",
            "or give a folder as `model_id` and files as `data_files`",
        ),
        (
            Sign("OfflineModeIsEnabled LocalEntryNotFoundError ConnectError ConnectTimeout ProxyError"),
            Sign("OSError", r"We couldn't connect to|Couldn't reach .* on the Hub|Name or service not known|nodename nor servname"),
            Sign("FileNotFoundError", r"LocalEntryNotFoundError"),
            Sign("InputError HubError", r"the Hub cannot be reached|switched off by HF_HUB_OFFLINE"),
        ),
    ),
    Failure(
        "not-on-the-hub",
        _HUB,
        "There is no such model or data set",
        "RepositoryNotFoundError · is not a local folder and is not a valid model identifier",
        "The id is misspelt, the folder is somewhere else, or the repository is private; the Hub gives the same answer to all three.",
        (
            "write the id as on its page: user/name; a folder with ./ in front",
            "relative folders start at the project's folder, also inside Jupyter",
            "for a private one: `hf auth login`",
        ),
        (
            Sign("RepositoryNotFoundError RevisionNotFoundError DatasetNotFoundError HFValidationError"),
            Sign("OSError", r"is not a local folder and is not a valid model identifier"),
            Sign("InputError", r"the Hub has no data set|no repository on the Hub|no such model folder"),
        ),
    ),
)
