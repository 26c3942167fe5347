"""Prices of a dated file, and the cost of a quote by them. No price is in the code."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aws.osml.model_runner.api.problems import expectation_of
from aws.osml.model_runner.exceptions import ConfigurationError

from .quote import Amounts, Cost

_BYTES_PER_GB = 1e9
_MINUTES_PER_HOUR = 60

_Price = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class UnitPrices(BaseModel):
    """The price of one unit of each amount; amounts without a price cost nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    endpoint_hour: _Price = Field(None, description="One hour of the endpoint, all its instances together.")
    worker_hour: _Price = Field(None, description="One hour of all workers together.")
    call: _Price = Field(None, description="One call of the model.")
    model_gb: _Price = Field(None, description="One GB (10^9 bytes) of tiles to the model.")
    storage_gb: _Price = Field(None, description="One GB of the image that is read from its storage.")
    write_unit: _Price = Field(None, description="One write unit of DynamoDB.")


class Prices(BaseModel):
    """The file of prices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: datetime.date = Field(description="Date of the prices, as in `2026-11-01`.")
    currency: str = Field(description="Currency of all prices, as in `USD`.", pattern=r"^[A-Z]{3}$")
    region: str | None = Field(None, description="Region that the prices are of.")
    source: str | None = Field(None, description="Where the prices are from.")
    prices: UnitPrices = Field(description="Price of one unit of each amount.")

    @classmethod
    def load(cls, path: Path) -> "Prices":
        """Return the prices of a file.

        Raises ConfigurationError when the file cannot be read, or does not hold prices with a date and a currency.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as err:
            raise ConfigurationError(f"--prices {path}: {err.strerror}") from err
        except ValidationError as err:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'the file'}: expected {expectation_of(each)}"
                for each in err.errors(include_url=False)
            )
            raise ConfigurationError(f"--prices {path}: {wrong}") from err

    def cost_of(self, amounts: Amounts) -> Cost:
        """Return the cost of some amounts, for each price of the file."""
        hours = None if amounts.endpoint_minutes is None else amounts.endpoint_minutes / _MINUTES_PER_HOUR
        units: Mapping[str, float | None] = {
            "endpoint_hour": hours,
            "worker_hour": hours,
            "call": amounts.calls,
            "model_gb": amounts.model_bytes / _BYTES_PER_GB,
            "storage_gb": amounts.storage_bytes / _BYTES_PER_GB,
            "write_unit": amounts.write_units,
        }
        prices = {name: price for name, price in self.prices.model_dump().items() if price is not None}
        costs = {name: price * count for name, price in prices.items() if (count := units[name]) is not None}
        left_out = sorted(prices.keys() - costs.keys())
        return Cost(
            date=self.date.isoformat(),
            currency=self.currency,
            parts=costs,
            total=sum(costs.values()),
            left_out=left_out,
        )
