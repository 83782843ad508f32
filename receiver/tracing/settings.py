"""The settings of traces: where they go to, and which callbacks have one."""

from importlib.util import find_spec
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator


class TracingSettings(BaseModel):
    """Where traces go to."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    exporter: Literal["none", "otlp", "application"] = Field(
        "none",
        description="Where traces are exported to: nowhere, to a collector by OTLP over HTTP (`otlp`), or to the "
        "tracer provider of the application that mounts `receiver` (`application`). See `receiver help tracing`.",
    )
    endpoint: str | None = Field(
        None,
        description="The address of the collector, such as `http://localhost:4318`; `/v1/traces` is added. Without it "
        "the variables `OTEL_EXPORTER_OTLP_…` hold, and without those `http://localhost:4318`.",
    )
    headers: dict[str, SecretStr] = Field(
        {}, description="Headers that are sent to the collector, such as its API key; they are never shown."
    )
    service_name: str | None = Field(
        None,
        min_length=1,
        description="The name of this service in traces. Without it `OTEL_SERVICE_NAME` holds, and without that "
        "`receiver`.",
    )
    ratio: float = Field(1.0, ge=0, le=1, description="The share of callbacks that are traced, from 0 to 1.")
    parent: Literal["link", "continue"] = Field(
        "link",
        description="What is done with the `traceparent` of a callback: its own trace links to it (`link`), or the "
        "callback continues that trace and follows its decision whether it is sampled (`continue`). The latter is for "
        "receivers behind a proxy that sets this header itself.",
    )

    @field_validator("exporter")
    @classmethod
    def _check_extra(cls, exporter: str) -> str:
        if exporter != "none" and not _is_installed("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
            raise ValueError(f"{exporter} needs the extra otel: pip install 'bandwidth-receiver[otel]'")
        return exporter

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
                raise ValueError("must begin with http:// or https:// and a host, without a user: headers hold secrets")
        return endpoint


def _is_installed(*modules: str) -> bool:
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:
        return False
