# Resource policy for Alibaba Trustee v1.0.0 to v1.1.2 (Helm chart 1.0.0), whose tokens are "Simple" ones.
#
# Without a policy of your own such a server gives every resource to everybody who completes a handshake, the sample TEE
# included. This one gives the model key to TDs that run the image you measured, and to nobody else.
#
#   input                 claims of the token: "tee", and under "tcb-status" the claims of the quote, flattened
#   data["resource-path"] "repository/type/tag"
#
# A token carries no appraisal that could be asked for, so the measurements stand here. Take them from `cai attest --json`
# on a known-good boot. As long as the placeholders stand, everybody is denied.
package policy

import future.keywords.if
import future.keywords.in

default allow := false

# The one resource this policy gives away: the path of MODEL_KEY_ID without kbs:///.
resources := {"default/aliyun/model-decryption-key"}

# MRTD: the firmware the TD was launched with.
known_mr_td := {"REPLACE-WITH-MRTD"}

# RTMR1 and RTMR2: boot loader, kernel, initial RAM disk and kernel command line. MRTD says nothing about them.
known_rtmr_1 := {"REPLACE-WITH-RTMR1"}

known_rtmr_2 := {"REPLACE-WITH-RTMR2"}

allow if {
	data["resource-path"] in resources
	input["tee"] == "tdx"
	claims := input["tcb-status"]
	claims["tdx.quote.body.mr_td"] in known_mr_td
	claims["tdx.quote.body.rtmr_1"] in known_rtmr_1
	claims["tdx.quote.body.rtmr_2"] in known_rtmr_2
	not_debug(claims["tdx.quote.body.td_attributes"])
}

# DEBUG is bit 0 of the first byte: the lowest bit of the second digit. The host can read a TD that has it.
not_debug(attributes) if substring(attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
