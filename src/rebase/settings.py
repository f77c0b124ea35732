"""Project settings: see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

import warnings

from rebase.hooks import RunReporter

# Warnings about calls in Kedro and Kedro-Viz, which a user cannot fix.
warnings.filterwarnings("ignore", r"register_new_resolver\(\) is deprecated", UserWarning)
warnings.filterwarnings("ignore", r"\s*ORJSONResponse is deprecated")

HOOKS = (RunReporter(),)

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment or --params changes single parameters; the others keep their values of base.
    "merge_strategy": {"parameters": "soft", "globals": "soft", "credentials": "soft"},
}
