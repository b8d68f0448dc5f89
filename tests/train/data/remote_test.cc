#include "train/data/remote.h"

#include "tests/train/data/fixture.h"

namespace dropless::train {
namespace {

// Amazon's examples: "Authenticating Requests: Using the Authorization Header (AWS Signature Version
// 4)" in the S3 API reference.
constexpr const char* kSecret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
constexpr const char* kTime = "20130524T000000Z";
constexpr const char* kEmptyHash =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string canonical_get(const std::string& path, const std::string& query,
                          const std::string& range) {
  const std::string between = range.empty() ? "" : "range:" + range + "\n";
  return "GET\n" + path + "\n" + query + "\nhost:examplebucket.s3.amazonaws.com\n" + between +
         "x-amz-content-sha256:" + kEmptyHash + "\nx-amz-date:" + kTime + "\n\nhost;" +
         (range.empty() ? "" : "range;") + "x-amz-content-sha256;x-amz-date\n" + kEmptyHash;
}

TEST(S3Signature, EqualsAmazonsExamples) {
  EXPECT_EQ(s3_signature(kSecret, "us-east-1", kTime, canonical_get("/test.txt", "", "bytes=0-9")),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
  EXPECT_EQ(s3_signature(kSecret, "us-east-1", kTime, canonical_get("/", "lifecycle=", "")),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
  EXPECT_EQ(
      s3_signature(kSecret, "us-east-1", kTime, canonical_get("/", "max-keys=2&prefix=J", "")),
      "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

// The headers of a GET carry the signature of the request that they describe.
TEST(S3Signature, StandsInTheHeaders) {
  const std::string headers =
      sign_s3_get({"AKIAIOSFODNN7EXAMPLE", kSecret, ""}, "us-east-1",
                  "examplebucket.s3.amazonaws.com", "/a%20b/shard.00000.mds", kTime);
  const std::string signature =
      s3_signature(kSecret, "us-east-1", kTime, canonical_get("/a%20b/shard.00000.mds", "", ""));
  EXPECT_NE(headers.find("Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
                         "SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=" +
                         signature + "\n"),
            std::string::npos)
      << headers;
  EXPECT_NE(headers.find(std::string("x-amz-date: ") + kTime + "\n"), std::string::npos);
}

TEST(Remote, RefusesOtherSchemesAndS3WithoutABucket) {
  expect_error(ErrorKind::kInvalidArgument, {"ftp://a/b"}, [] { Remote::open("ftp://a/b", {}); });
  expect_error(ErrorKind::kInvalidArgument, {"s3:///b", "bucket"},
               [] { Remote::open("s3:///b", {}); });
}

// What botocore 1.44 reads of the same text.
TEST(Remote, RefusesAddressesOfOneFile) {
  for (const char* url : {"http://host/set?signature=1", "https://host/set#part"}) {
    EXPECT_THROW(Remote::open(url, {}), Error) << url;
  }
  EXPECT_NO_THROW(Remote::open("http://host/set/", {}));
  EXPECT_NO_THROW(Remote::open("s3://bucket/what?", {}));  // a character of a name there
}

TEST(Remote, ReadsAwsFilesAsBotocoreDoes) {
  ScratchFolder scratch;
  const auto read = [&](const std::string& text, const std::string& section = "default") {
    spill(scratch / "config", text);
    return ini_value(scratch / "config", section, "region");
  };
  const std::string nested = "[default]\ns3 =\n  region = n\n  endpoint_url = u\n";
  EXPECT_EQ(read(nested), "");
  EXPECT_EQ(read(nested + "region = top\n"), "top");
  EXPECT_EQ(read(nested + "\n  region = n\n# c\n\tregion = n\nregion = top\n"), "top");
  EXPECT_EQ(read("[default]\ns3 =\n\n  region = n\nregion = top\n"), "top");
  EXPECT_EQ(read("[default]\ns3 =\n# c\n  region = n\n"), "");
  EXPECT_EQ(read("[default]\ns3 =\n  # c\n  region = n\n"), "");
  EXPECT_EQ(read("[default]\noutput = json\n  region = continued\n"), "");
  // Indented together, or with nothing above that they could go on: keys of the profile.
  EXPECT_EQ(read("[default]\n s3 =\n   region = n\n region = top\n"), "top");
  EXPECT_EQ(read("[default]\n  region = top\n"), "top");
  EXPECT_EQ(read("[default]\ns3 =\n  a = b\n[profile x]\n  region = top\n", "profile x"), "top");
  EXPECT_EQ(read("[default]\n# region = a\n;region = b\nRegion: top\r\n"), "top");
  EXPECT_EQ(read("[default] # c\nregion = top = 1\n"), "top = 1");
  EXPECT_EQ(read("[profile  'b c']\nregion = top\n", "profile b c"), "top");
  EXPECT_EQ(read("[other]\nregion = o\n"), "");
}

TEST(Remote, EncodesPaths) {
  EXPECT_EQ(percent_encode("a b/\xc3\xa4~-_.c+"), "a%20b/%C3%A4~-_.c%2B");
}

}  // namespace
}  // namespace dropless::train
