"""Signs requests as Alibaba's official Python SDKs do: V4 with alibabacloud-oss-v2, V1 with oss2 (whose V1 knows session tokens).

One JSON object a line on standard input: version, method, url, headers (names in lower case, as they were sent), bucket, key, region,
id, secret, token or null. One signature a line on standard output, of the same request at the same time.

Tested by tests/oss_signature.rs. Needs tests/peers/requirements.txt.
"""

import datetime
import json
import sys
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import oss2
from alibabacloud_oss_v2.credentials import Credentials
from alibabacloud_oss_v2.signer import SignerV4
from alibabacloud_oss_v2.types import HttpRequest, SigningContext


def v4(case):
    headers = {name: value for name, value in case["headers"].items() if name != "authorization"}
    fields = dict(field.split("=", 1) for field in case["headers"]["authorization"].split(" ", 1)[1].split(","))
    context = SigningContext(
        product="oss",
        region=case["region"],
        bucket=case["bucket"],
        key=case["key"],
        request=HttpRequest(case["method"], case["url"], headers=headers),
        credentials=Credentials(case["id"], case["secret"], case["token"]),
        signing_time=datetime.datetime.strptime(headers["x-oss-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc),
        additional_headers=set(fields["AdditionalHeaders"].split(";")),
    )
    SignerV4().sign(context)
    return context.request.headers["Authorization"].rsplit("Signature=", 1)[1]


def v1(case):
    provider = oss2.credentials.StaticCredentialsProvider(case["id"], case["secret"], case["token"])
    # The only thing that is not the SDK's own: the time.
    oss2.auth.utils.http_date = lambda timeval=None: case["headers"]["date"]
    query = parse_qsl(urlsplit(case["url"]).query, keep_blank_values=True)
    headers = {name: value for name, value in case["headers"].items() if name != "authorization"}
    request = SimpleNamespace(method=case["method"], headers=headers, params=dict(query))
    oss2.auth.ProviderAuth(provider)._sign_request(request, case["bucket"], case["key"])
    return request.headers["authorization"].rsplit(":", 1)[1]


for line in sys.stdin:
    case = json.loads(line)
    print({"V4": v4, "V1": v1}[case["version"]](case))
