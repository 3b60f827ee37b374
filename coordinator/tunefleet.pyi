"""What type checkers see of `import tunefleet`, which finds these names when they are asked for.

Installed as `tunefleet-stubs`; tests hold it to `tunefleet.py`.
"""

import typer

from converters.adapter import Factors as Factors
from converters.adapter import LoraAdapter as LoraAdapter
from converters.api import convert as convert
from converters.api import load_adapter as load_adapter
from converters.api import save_adapter as save_adapter
from converters.errors import TunefleetError as TunefleetError
from coordinator.in_process.fleet import Fleet as Fleet
from coordinator.strategies.contract import Strategy as Strategy
from coordinator.strategies.method import Method as Method
from coordinator.strategies.written import Stages as Stages
from edge.api import evaluate as evaluate
from edge.api import generate as generate
from edge.api import train as train

__version__: str
app: typer.Typer

def main() -> None: ...
