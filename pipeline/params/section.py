"""The base class of the sections of params.yaml, and the types of their numbers."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    """`1e3` is a float to YAML and a count to people."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
NotAll = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]
FromZero = Annotated[Whole, Field(ge=0)]
Points = Annotated[float, Field(ge=1, le=100)]
Parts = Annotated[Whole, Field(ge=1, le=64)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A section of params.yaml: frozen, closed, strict."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
