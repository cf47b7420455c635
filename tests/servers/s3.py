"""What every S3 server that tests start has in common."""

from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from cachefs.core.source import StoreOptions


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where an S3 listens, and who may ask it."""

    url: str
    access: str
    secret: str
    region: str = "us-east-1"
    ca: str | None = None

    def environment(self) -> dict[str, str]:
        """What boto3's own chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def options(self) -> StoreOptions:
        """How cachefs reaches it, given the credentials of :meth:`environment`."""
        return StoreOptions(endpoint_url=self.url, region=self.region, ca_bundle=self.ca)

    def sdk(self) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        """A plain boto3 client, to look at the store past cachefs; for the caller to close."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name=self.region,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
            verify=self.ca,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )
