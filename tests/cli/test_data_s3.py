"""Sets in S3: read, trained on and resumed from moto's server, in front of which each signature is checked
by botocore."""

import http.server
import os
import sys
import threading
import unittest

from command import CONFIG, CommandTest

try:
    import boto3
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server
except ImportError as error:  # `./dev test` installs them
    print(f"skipped: {error}; pip install -r scripts/requirements-full.txt", file=sys.stderr)
    sys.exit(1 if os.environ.get("CI") else 77)

KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


class SignatureCheck:
    """Answers 403 where the Authorization header is not the one that botocore makes of the same request."""

    def __init__(self, application):
        self.application = application
        self.checked = []

    def __call__(self, environ, start_response):
        given = environ.get("HTTP_AUTHORIZATION", "")
        if environ["REQUEST_METHOD"] == "GET" and "dropless-set" in environ["RAW_URI"]:
            self.checked.append(environ["RAW_URI"])
            if given != self.expected(environ):
                start_response("403 Forbidden", [("Content-Length", "0")])
                return [b""]
        return self.application(environ, start_response)

    @staticmethod
    def expected(environ) -> str:
        headers = {
            "host": environ["HTTP_HOST"],
            "x-amz-content-sha256": environ.get("HTTP_X_AMZ_CONTENT_SHA256", ""),
            "x-amz-date": environ.get("HTTP_X_AMZ_DATE", ""),
        }
        request = AWSRequest("GET", f"http://{environ['HTTP_HOST']}{environ['RAW_URI']}", headers=headers)
        request.context["timestamp"] = headers["x-amz-date"]
        auth = S3SigV4Auth(Credentials(KEY, SECRET), "s3", "eu-central-1")
        canonical = auth.canonical_request(request)
        signature = auth.signature(auth.string_to_sign(request, canonical), request)
        scope = f"{KEY}/{headers['x-amz-date'][:8]}/eu-central-1/s3/aws4_request"
        return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}"


class S3Test(CommandTest):
    @classmethod
    def setUpClass(cls):
        os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_DEFAULT_REGION="eu-central-1")
        for name in ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy"):
            os.environ.pop(name, None)
        cls.check = SignatureCheck(DomainDispatcherApplication(create_backend_app))
        cls.server = make_server("127.0.0.1", 0, cls.check, threaded=True)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.endpoint = f"http://127.0.0.1:{cls.server.server_port}"
        os.environ["S3_ENDPOINT_URL"] = cls.endpoint
        cls.client = boto3.client("s3", endpoint_url=cls.endpoint)
        cls.client.create_bucket(Bucket="sets", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    @classmethod
    def tearDownClass(cls):
        cls.server.shutdown()

    def setUp(self):
        super().setUp()
        self.write_data()
        for path in sorted((self.folder / "data").rglob("*")):
            if path.is_file():
                key = f"dropless-set ä/{path.relative_to(self.folder / 'data')}"
                self.client.put_object(Bucket="sets", Key=key, Body=path.read_bytes())

    def config(self, cache: str) -> str:
        remote = "remote: 's3://sets/dropless-set ä', download_retry: 0, validate_hash: xxh128"
        return CONFIG.replace("local: data", f"local: {cache}, {remote}").replace("40ba", "6ba").replace("7ba", "3ba")

    def losses(self, run: str) -> dict:
        return {line["step"]: line["loss/train/total"] for line in self.metrics(run) if "loss/train/total" in line}

    def test_train_and_resume_from_s3_as_from_disk(self):
        self.write_config(content=CONFIG.replace("40ba", "6ba").replace("7ba", "3ba"))
        self.check_command("train", "config.yaml", "save_folder=run-disk")
        self.check.checked.clear()
        self.write_config(content=self.config("cache-a"))
        self.check_command("train", "config.yaml", "save_folder=run-s3")
        self.assertTrue(any(uri.endswith("train/shard.00000.mds") for uri in self.check.checked), self.check.checked)
        self.assertEqual(self.losses("run-s3"), self.losses("run-disk"))
        # With an empty cache the rest of the run is fetched anew.
        self.write_config(content=self.config("cache-b"))
        self.check_command("train", "config.yaml", "save_folder=run-rest", "load_path=run-s3/step-3")
        rest = {step: loss for step, loss in self.losses("run-disk").items() if step > 3}
        self.assertEqual(len(rest), 3)
        self.assertEqual(self.losses("run-rest"), rest)

    def test_cat_keeps_what_it_reads(self):
        lines = self.check_command("data", "cat", "s3://sets/dropless-set ä", "--split", "train", "--local", "cache")
        self.assertEqual(lines, self.check_command("data", "cat", "data/train"))
        cached = self.folder / "cache" / "train" / "shard.00000.mds"
        self.assertEqual(cached.read_bytes(), (self.folder / "data" / "train" / "shard.00000.mds").read_bytes())

    def test_credentials_and_region_of_a_profile(self):
        (self.folder / "credentials").write_text(
            f"[default]\naws_access_key_id = x\naws_secret_access_key = y\n"
            f"[work]\naws_access_key_id={KEY}\naws_secret_access_key = {SECRET}\n"
        )
        (self.folder / "config").write_text("[profile work]\nregion = eu-central-1\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment.update(AWS_PROFILE="work", AWS_SHARED_CREDENTIALS_FILE="credentials", AWS_CONFIG_FILE="config")
        self.check_command("data", "cat", "s3://sets/dropless-set ä/val", "--local", "c", env=environment)
        (self.folder / "config").write_text(f"[profile work]\nregion = eu-central-1\nendpoint_url = {self.endpoint}\n")
        del environment["S3_ENDPOINT_URL"]
        self.check_command("data", "cat", "s3://sets/dropless-set ä/val", "--local", "d", env=environment)

    def test_a_scheme_s_own_port_is_no_part_of_the_signed_host(self):
        """libcurl leaves it out of the header Host. (The requests for that port are seen as their proxy.)"""
        seen = []

        class Proxy(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append(self.headers)
                self.send_error(404)

            def log_message(self, *arguments):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            self.addCleanup(proxy.shutdown)
            environment = {
                **os.environ, "S3_ENDPOINT_URL": "http://minio.test:80", "http_proxy": f"http://127.0.0.1:{proxy.server_port}"
            }  # fmt: skip
            result = self.run_command("data", "cat", "s3://sets/x", "--local", "p", env=environment)
        self.assertIn("is absent", result.stderr)
        self.assertEqual(seen[0]["Host"], "minio.test")
        names = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in seen[0].items()}
        self.assertEqual(seen[0]["Authorization"], SignatureCheck.expected({**names, "RAW_URI": "/sets/x/index.json"}))

    def test_what_s3_refuses(self):
        wrong = {**os.environ, "AWS_SECRET_ACCESS_KEY": "wrong"}
        result = self.run_command("data", "cat", "s3://sets/dropless-set ä/train", "--local", "c1", env=wrong)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("access is denied", result.stderr)
        for place, said in [
            ("s3://sets/nothing", "s3://sets/nothing/index.json is absent"),
            ("s3://no-such-bucket/train", "s3://no-such-bucket/train: there is no bucket of that name"),
        ]:
            result = self.run_command("data", "cat", place, "--local", "c2")
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn(said, result.stderr)
        self.client.delete_object(Bucket="sets", Key="dropless-set ä/train/shard.00000.mds")
        result = self.run_command("data", "cat", "s3://sets/dropless-set ä/train", "--local", "c3")
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("shard.00000.mds", result.stderr)
        self.assertFalse((self.folder / "c3" / "shard.00000.mds").exists())


if __name__ == "__main__":
    unittest.main()
