# Attestation policy for Alibaba Trustee v1.0.0 to v1.1.2: no token at all for a machine that is not known.
#
# The server's own default lets every claim pass that has no reference value, so an empty RVPS accepts everybody. Here
# what decides must have one.
#
#   input            claims of the evidence, flattened: "tdx.quote.body.mr_td", ...
#   data.reference   reference values by name, as `cai attest --reference-values` prints them
package policy

import future.keywords.every
import future.keywords.if
import future.keywords.in

default allow := false

# Firmware; boot loader, kernel, initial RAM disk, command line; features.
decisive := {
	"tdx.quote.body.mr_td",
	"tdx.quote.body.rtmr_1",
	"tdx.quote.body.rtmr_2",
	"tdx.quote.body.xfam",
}

allow if {
	# A quote about a TD, signed by Intel's quoting enclave.
	input["tdx.quote.header.tee_type"] == "81000000"
	input["tdx.quote.header.vendor_id"] == "939a7233f79c4ca9940a0db3957f0607"
	every name in decisive {
		input[name] in data.reference[name]
	}
	not_debug(input["tdx.quote.body.td_attributes"])
}

# DEBUG is bit 0 of the first byte: the lowest bit of the second digit. The host can read a TD that has it.
not_debug(attributes) if substring(attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
