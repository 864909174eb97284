"""Forms over the config (ipywidgets): they start from the parameters, write back to them and never wait for anybody."""

from mac_lora_helpers.ui.forms.fit import FitForm, fit_form
from mac_lora_helpers.ui.forms.form import ConfigForm, config_form

__all__ = ["ConfigForm", "FitForm", "config_form", "fit_form"]
