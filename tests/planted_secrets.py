"""An example or more of every kind of secret that ``redaction`` knows."""

B64 = "Ab3dEf9hIj" * 5
#: Kind → examples, each beginning with the secret. Written in parts, so that no scanner takes this file for a leak.
EXAMPLES = {
    "Hugging Face token": ["hf_" + "aBcDeFgHiJ" * 3 + "kLmN", "api_org_" + "aBcDeFgHiJ" * 3],
    "GitHub token": ["ghp_" + "a1B2" * 9, "ghs_" + "a1B2" * 9, "github_pat_" + "a1B2" * 20],
    "GitLab token": ["glpat-" + "a1B2" * 5],
    "OpenAI or Anthropic key": ["sk-ant-api03-" + B64, "sk-proj-" + B64, "sk-" + "a1B2" * 5],
    "Stripe key": ["sk_live_" + "a1B2" * 6, "rk_test_" + "a1B2" * 6],
    "Groq key": ["gsk_" + "a1B2" * 13],
    "Replicate, NVIDIA, xAI or Perplexity key": ["r8_" + "a" * 37, "nvapi-" + "a1B2" * 16, "pplx-" + "a1B2" * 12],
    "npm or PyPI token": ["npm_" + "a1B2" * 9, "pypi-AgE" + B64 * 2],
    "AWS access key": ["AKIA" + "A1B2C3D4E5F6G7H8"],
    "Azure account key": ["AccountKey=" + "a1B2" * 21 + "=="],
    "Google key": ["AIza" + "b" * 35, "GOCSPX-" + "b" * 28],
    "Slack token": ["xoxb-" + "123456789012-abcdefghij", "xapp-1-" + "A1B2C3D4E5F-123456"],
    "webhook address": [
        "hooks.slack.com/services/" + "T0123ABCD/B0123ABCD/abcdefghijklmnop",
        "discord.com/api/webhooks/" + "123456789/" + "a1B2" * 17,
    ],
    "SendGrid key": ["SG." + "a1B2" * 5 + "." + "a1B2" * 10],
    "Databricks token": ["dapi" + "0123456789abcdef" * 2],
    "private key": ["-----BEGIN OPENSSH " + "PRIVATE KEY-----", "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----"],
    "JSON web token": [f"eyJ{'a' * 20}.eyJ{'b' * 20}.{'c' * 20}"],
    "password in an address": ["https://me:" + "hunter2hunter2@example.org/x.git"],
    "password in an assignment": ["password=" + "hunter2hunter2", "Passwd: '" + "hunter2hunter2'"],
    "secret in an assignment": ["WANDB_API_KEY=" + "0123456789abcdef" * 2, '"client_secret": "' + B64 + '"'],
}
PLANTED = {kind: examples[0] for kind, examples in EXAMPLES.items()}
