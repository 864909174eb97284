"""The model card's text: a Jinja template, filled by :mod:`mac_lora_helpers.export.card`."""

CARD = """\
---
{{ card_data }}
---

# {{ title }}

{{ summary }}

## How to use it
{% for use in uses %}
{{ use.text }}

```{{ use.language }}
{{ use.code }}
```
{% endfor %}
## What it was trained on
{% if data %}
| | |
|---|---|
{% for name, value in data %}| {{ name }} | {{ value }} |
{% endfor %}{% else %}
Not recorded: `data/manifest.json` was not there when this card was written.
{% endif %}
## How it was trained
{% if recipe %}
| | |
|---|---|
{% for name, value in recipe %}| {{ name }} | {{ value }} |
{% endfor %}{% else %}
Not recorded: neither `train_config.json` nor `train_metrics.json` was there when this card was written.
{% endif %}
## Base against tuned
{% if scores %}
Measured on held-out rows that were not trained on: {{ examples }} answered
{%- if loss_examples %}, the loss over {{ loss_examples }}{% endif %}.

| | base | tuned | {{ 'difference (95 % interval)' if intervals else 'difference' }} | |
|---|---|---|---|---|
{% for row in scores %}| {{ row.name }} | {{ row.base }} | {{ row.tuned }} | {{ row.difference }} | {{ row.verdict }} |
{% endfor %}{% if not intervals %}
No intervals were recorded: a small difference on few examples may be chance.
{% endif %}{% if verdict %}
{{ verdict }}
{% endif %}{% for finding in findings %}
- {{ finding }}{% endfor %}{% else %}
Not measured: `eval/metrics.json` was not there when this card was written.
{% endif %}
## Do the exported files say the same?
{% if equivalence %}
Each file was asked, in its own engine, how likely every token of the adapter's own answers is.

| file | prompts | prompt tokens equal | tokens that are its first choice too | passed |
|---|---|---|---|---|
{% for row in equivalence %}| {{ row.name }} | {{ row.prompts }} | {{ row.ids }} | {{ row.agreement }} | {{ row.passed }} |
{% endfor %}{% else %}
Not checked: `export/equivalence.json` was not there when this card was written.
{% endif %}
## Versions
{% if versions %}
Trained with {{ versions }}; this card was written by {{ writer }}.
{% else %}
Not recorded; this card was written by {{ writer }}.
{% endif %}
## Licence

{{ licence }}

## Limits

A small LoRA fine-tune on the data above: outside that kind of question it behaves like its base, or worse. Nobody has checked it
for safety, bias or factual truth beyond the figures on this page.
"""
