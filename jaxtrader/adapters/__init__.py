"""The training environment for other people's agents: importing this package registers it.

::

    import gymnasium
    import jaxtrader.adapters

    env = gymnasium.make("jaxtrader/Trading-v0")

`gymnasium.make("jaxtrader.adapters:jaxtrader/Trading-v0")` does both. The module
`jaxtrader.adapters.gymnasium` says what the arguments, observations and infos are.
"""

try:
    import gymnasium as _gymnasium
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    message = f"{__name__} needs gymnasium: pip install -e '.[gymnasium]' in the checkout"
    raise ModuleNotFoundError(message, name=error.name) from error

# Named, not imported: JAX is loaded when an environment is made.
_gymnasium.register(
    "jaxtrader/Trading-v0",
    entry_point=f"{__name__}.gymnasium:GymTradingEnv",
    vector_entry_point=f"{__name__}.gymnasium:GymTradingVectorEnv",
)
