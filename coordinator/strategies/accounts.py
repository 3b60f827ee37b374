"""The devices' accounts: what each was given, and what it is owed (see `stages/credit.py`)."""

from msgspec import structs

from coordinator.strategies.contract import Account, State
from coordinator.strategies.pipeline_state import Item


def open_accounts(state: State, items: tuple[Item, ...]) -> dict[str, Account]:
    """Returns the accounts of all devices heard so far.

    A device that comes for the first time is owed from the version that it began on: as much of what the
    oldest account was ever given as that version lies back.
    """
    given = given_to_each(state)
    opened = {
        item.source.device: Account(credit=given * min(1.0, item.source.staleness / max(state.version, 1)))
        for item in items
    }
    return opened | dict(state.accounts)


def settle(state: State, items: tuple[Item, ...], length: float) -> dict[str, Account]:
    """Returns the accounts after a version with a step of some length, which owes and pays by its length."""
    opened = open_accounts(state, items)
    accounts = {
        device: structs.replace(one, credit=one.credit + length / len(opened))
        for device, one in opened.items()
    }
    for item in items:
        old, weight = accounts[item.source.device], item.weight * length
        accounts[item.source.device] = structs.replace(
            old, uploads=old.uploads + 1, weight=old.weight + weight, credit=old.credit - weight
        )
    return accounts


def given_to_each(state: State) -> float:
    """Returns what the oldest account had or is owed: the sum over versions of their length times 1/n."""
    return max((one.weight + one.credit for one in state.accounts.values()), default=0.0)
