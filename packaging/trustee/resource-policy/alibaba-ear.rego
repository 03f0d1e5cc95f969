# Resource policy for Alibaba Trustee from v1.1.3 on, whose tokens are EAR ones.
#
# The attestation policy has compared the measurements with the reference values; its verdict is in the token. A token is
# issued whatever the verdict is, so a resource policy has to look at it.
#
#   input                 the token: submods.cpu0 (submods.cpu in v1.1.3 to v1.5.x)
#   data["resource-path"] "resource/repository/type/tag": four segments, whatever the comment in the server's own file says
package policy

import rego.v1

default allow := false

# The one resource this policy gives away: resource/ and the path of MODEL_KEY_ID without kbs:///.
resources := {"resource/default/aliyun/model-decryption-key"}

cpu := input.submods.cpu0

cpu := input.submods.cpu if not input.submods.cpu0

allow if {
	data["resource-path"] in resources

	# Every claim of the appraisal is fine (see attestation-policy/alibaba-ear.rego).
	cpu["ear.status"] == "affirming"

	# The evidence is a TD's. The sample TEE proves nothing, whatever an appraisal says of it.
	evidence := cpu["ear.veraison.annotated-evidence"]
	not evidence.sample
	not_debug(evidence.tdx.quote.body.td_attributes)
}

# DEBUG is bit 0 of the first byte: the lowest bit of the second digit. The host can read a TD that has it.
not_debug(attributes) if substring(attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
