# Attestation policy for Alibaba Trustee from v1.1.3 on: appraises a TD for its EAR token.
#
# The server's default takes kernel, initial RAM disk and command line from the boot event log, one by one. This one takes
# the registers that the log replays to: the same statement, made by the hardware, and still there when the log had to be
# left out. The numbers are AR4SI's (draft-ietf-rats-ar4si): 2 to 31 are affirming, 32 to 95 a warning, 96 and more
# contraindicated; the status of the token is the worst of them.
#
#   input            claims of the evidence: tdx.quote.body.mr_td, ...
#   data.reference   reference values by name, as `cai attest --reference-values` prints them. A server that has
#                    query_reference_value(name) instead says so in its own default policy: replace data.reference[name].
package policy

import rego.v1

default hardware := 97

default executables := 33

default configuration := 36

default file_system := 35

# A quote about a TD, signed by Intel's quoting enclave, of known firmware.
hardware := 2 if {
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.tdx.quote.body.mr_td in data.reference["tdx.mr_td"]
}

# Known boot loader and kernel (RTMR1), initial RAM disk and command line (RTMR2).
executables := 3 if {
	input.tdx.quote.body.rtmr_1 in data.reference["tdx.quote.body.rtmr_1"]
	input.tdx.quote.body.rtmr_2 in data.reference["tdx.quote.body.rtmr_2"]
}

# Not DEBUG, and the features it was measured with.
configuration := 2 if {
	substring(input.tdx.quote.body.td_attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
	input.tdx.quote.body.xfam in data.reference["tdx.xfam"]
}

# TRUE ONLY FOR IMAGES WHOSE COMMAND LINE PINS THE ROOT FILE SYSTEM (dm-verity's root hash): then the registers above vouch
# for every file. For another image delete this rule; the status is then "warning", and the resource policy has to be
# content with the other three.
file_system := 2 if executables == 3
