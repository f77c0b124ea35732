"""Project settings: see https://docs.kedro.org/en/stable/configure/configuration_basics/."""

import logging
import warnings

from rebase.hooks import OriginRecorder, RunReporter
from rebase.reporting.console import set_up_bars, use_plain_logs

use_plain_logs()
set_up_bars()

# Warnings about calls in Kedro and Kedro-Viz, which a user cannot fix.
warnings.filterwarnings("ignore", r"register_new_resolver\(\) is deprecated", UserWarning)
warnings.filterwarnings("ignore", r"\s*ORJSONResponse is deprecated")

# Kedro's advice after an error: to repeat a command is no help, and the error that follows says what to do.
for runner in ("sequential", "thread", "parallel"):
    logging.getLogger(f"kedro.runner.{runner}_runner").addFilter(
        lambda record: "No nodes ran" not in record.getMessage()
    )

HOOKS = (RunReporter(), OriginRecorder())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment or --params changes single parameters; the others keep their values of base.
    "merge_strategy": {"parameters": "soft", "globals": "soft", "credentials": "soft"},
}
