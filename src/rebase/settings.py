"""Project settings: see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

from rebase.hooks import RunReporter

HOOKS = (RunReporter(),)

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment, or --params, changes single parameters; the others stay as in base.
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
