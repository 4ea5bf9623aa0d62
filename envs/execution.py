"""Orders to fills: cash, shares and costs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct

from envs.actions import Action, is_buy
from envs.market import FILL_MODES, Quote
from envs.position import Account, Position, flat_position, round_down_to_lot


@struct.dataclass
class ExecutionParams:
    """The market's charges. Rates are leaves; where an order fills is static."""

    commission: jax.Array  # f32[] rate on traded value, each side
    slippage: jax.Array  # f32[] rate by which a fill is worse than the raw price, each side
    cost_multiplier: jax.Array  # f32[] scales both (stress runs: 1.5)
    lot: jax.Array  # f32[] smallest number of shares, in shares per unit of initial equity; 0: none
    fill: str = struct.field(pytree_node=False, default="next_open")


COST_PRESETS = {
    "retail": (5e-4, 2.5e-4),  # 15 basis points a round trip
    "stage5": (2e-5, 1e-4),
    "free": (0.0, 0.0),
}


def execution_params(
    costs: str = "retail",
    *,
    commission: float | None = None,
    slippage: float | None = None,
    cost_multiplier: float = 1.0,
    lot_size: float = 0.0,
    initial_cash: float = 100_000.0,
    fill: str = "next_open",
) -> ExecutionParams:
    """`ExecutionParams` from a preset of `COST_PRESETS`, with single rates overridden.

    Args:
      lot_size: smallest tradable number of real shares; 0 permits fractions.
      initial_cash: real money behind one unit of initial equity; matters for `lot_size` only.

    Raises:
      ValueError: for an unknown preset or fill mode, or a rate outside [0, 1).
    """
    if costs not in COST_PRESETS:
        raise ValueError(f"unknown cost preset {costs!r}: choose one of {sorted(COST_PRESETS)}")
    if fill not in FILL_MODES:
        raise ValueError(f"unknown fill mode {fill!r}: choose one of {FILL_MODES}")
    preset_commission, preset_slippage = COST_PRESETS[costs]
    rates = {
        "commission": preset_commission if commission is None else commission,
        "slippage": preset_slippage if slippage is None else slippage,
    }
    for name, rate in rates.items():
        if not 0.0 <= rate * cost_multiplier < 1.0:
            raise ValueError(f"{name} x cost_multiplier must be in [0, 1), got {rate}")
    return ExecutionParams(
        commission=jnp.float32(rates["commission"]),
        slippage=jnp.float32(rates["slippage"]),
        cost_multiplier=jnp.float32(cost_multiplier),
        lot=jnp.float32(lot_size / initial_cash),
        fill=fill,
    )


@struct.dataclass
class Fill:
    """What an order did. Money is in units of the initial equity; zeros when nothing filled."""

    shares: jax.Array  # f32[] bought (positive) or sold (negative)
    price: jax.Array  # f32[] price paid or received per share before commission
    value: jax.Array  # f32[] traded value at the raw price
    costs: jax.Array  # f32[] slippage and commission
    realized_profit: jax.Array  # f32[] proceeds minus the basis of the shares sold
    closed: jax.Array  # bool[] whether the position is now flat and was not before
    trade_profit: jax.Array  # f32[] net profit of the whole trade when `closed`, else 0


def execute(
    order: jax.Array,
    budget: jax.Array,
    position: Position,
    account: Account,
    quote: Quote,
    params: ExecutionParams,
) -> tuple[jax.Array, Position, Account, Fill]:
    """Fills `order` and books it; equity is not marked here.

    Args:
      order: i32[] action that survived the sanitizer.
      budget: f32[] money a buy or an add spends, costs included; at most the cash at hand.

    Returns:
      (executed, position, account, fill). `executed` is HOLD where the quantity rounds to zero.
    """
    raw_price = quote.fill_price
    slippage = params.slippage * params.cost_multiplier
    commission = params.commission * params.cost_multiplier

    buys = is_buy(order) | (order == Action.ADD_POSITION)
    buy_price = raw_price * (1.0 + slippage)
    # 1 + rate rounds, always the same way, and over thousands of fills that is a drift. A charge
    # worked out apart from the value it is charged on rounds at random.
    buy_rate = slippage + commission + slippage * commission
    net_budget = budget - budget * (buy_rate / (1.0 + buy_rate))
    bought = round_down_to_lot(net_budget / raw_price, params.lot)
    bought = jnp.where(buys, bought, 0.0)
    # With fractional shares the budget is spent to the cent; multiplying back would round.
    worth_bought = bought * raw_price
    charged = jnp.minimum(worth_bought + worth_bought * buy_rate, budget)
    spent = jnp.where(params.lot > 0, charged, budget)
    spent = jnp.where(bought > 0, spent, 0.0)

    sell_price = raw_price * (1.0 - slippage)
    sold = jnp.where(order == Action.SELL_ALL, position.shares, 0.0)
    sold = jnp.where(order == Action.SELL_PARTIAL, position.half(params.lot), sold)
    sell_rate = slippage + commission - slippage * commission
    worth_sold = sold * raw_price
    proceeds = worth_sold - worth_sold * sell_rate
    basis_sold = position.cost_basis * sold / jnp.where(position.is_long, position.shares, 1.0)
    profit = proceeds - basis_sold

    shares = position.shares + bought - sold
    filled = (bought > 0) | (sold > 0)
    closed = filled & (shares <= 0)
    cost_basis = position.cost_basis + spent - basis_sold
    booked = replace(
        position,
        shares=shares,
        cost_basis=cost_basis,
        peak_basis=jnp.maximum(position.peak_basis, cost_basis),
        realized_profit=position.realized_profit + profit,
        entry_size=jnp.where(is_buy(order) & filled, order, position.entry_size),
        adds=position.adds + jnp.where((order == Action.ADD_POSITION) & filled, 1, 0),
        partial_taken=position.partial_taken | ((order == Action.SELL_PARTIAL) & filled),
    )
    trade_profit = jnp.where(closed, booked.realized_profit, 0.0)
    booked = jax.tree.map(lambda a, b: jnp.where(closed, a, b), flat_position(), booked)

    fill = Fill(
        shares=bought - sold,
        price=jnp.where(filled, jnp.where(buys, buy_price, sell_price), 0.0),
        value=worth_bought + worth_sold,
        costs=worth_bought * buy_rate + worth_sold * sell_rate,
        realized_profit=profit,
        closed=closed,
        trade_profit=trade_profit,
    )
    executed = jnp.where(filled, order, Action.HOLD).astype(jnp.int32)
    return executed, booked, account.receive(proceeds - spent), fill
