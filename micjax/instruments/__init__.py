"""Instruments: one narrow protocol, layers around it, and adapters of what laboratories have."""

from micjax.instruments.base import Aborted as Aborted
from micjax.instruments.base import Axis as Axis
from micjax.instruments.base import BudgetError as BudgetError
from micjax.instruments.base import Frame as Frame
from micjax.instruments.base import InDoubt as InDoubt
from micjax.instruments.base import Instrument as Instrument
from micjax.instruments.base import InstrumentError as InstrumentError
from micjax.instruments.base import LimitError as LimitError
from micjax.instruments.base import LinkError as LinkError
from micjax.instruments.base import Mode as Mode
from micjax.instruments.base import MoveError as MoveError
from micjax.instruments.base import NotReady as NotReady
from micjax.instruments.base import Path as Path
from micjax.instruments.base import Record as Record
from micjax.instruments.conformance import ConformanceError as ConformanceError
from micjax.instruments.conformance import check_instrument as check_instrument
from micjax.instruments.function import Function as Function
from micjax.instruments.guard import Guard as Guard
from micjax.instruments.journal import Journal as Journal
from micjax.instruments.journal import JournalError as JournalError
from micjax.instruments.journal import Recorded as Recorded
from micjax.instruments.journal import consolidate as consolidate
from micjax.instruments.journal import records as records
from micjax.instruments.nanonis import Nanonis as Nanonis
from micjax.instruments.replay import Replay as Replay
from micjax.instruments.simulated import Simulated as Simulated
