# Attestation policy (CPU) for the confidential-containers Trustee from v0.16 on: appraises a TD for its EAR token.
#
# As the server's default, with two differences: an image that boots through GRUB is as good as one that boots directly,
# and nothing is said of other TEEs. The numbers are AR4SI's: 2 to 31 are affirming, 32 to 95 a warning, 96 and more
# contraindicated; 0 says nothing.
#
# For GPUs keep the server's default policy (default_gpu) and register allowed_driver_versions, allowed_vbios_versions.
#
#   query_reference_value(name)   as `cai attest --reference-values` prints them
package policy

import rego.v1

default hardware := 97

default executables := 33

default configuration := 36

# A quote about a TD, signed by Intel's quoting enclave, of known firmware, on a platform that is up to date.
hardware := 2 if {
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.tdx.quote.body.mr_td in query_reference_value("mr_td")
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

# Known boot loader and kernel (RTMR1), initial RAM disk and command line (RTMR2).
executables := 3 if {
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

# Not DEBUG, and the features it was measured with.
configuration := 2 if {
	input.tdx.td_attributes.debug == false
	input.tdx.quote.body.xfam in query_reference_value("xfam")
}

# What recent servers read; older ones read the rules above.
trust_claims := {
	"hardware": hardware,
	"executables": executables,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}
