# Resource policy for the confidential-containers Trustee from v0.14 on (protocol 0.4.0).
#
# Its default denies nobody but the sample TEE: a TD that runs anything at all gets the key. This one wants the
# appraisal to be affirming, which it is only with reference values (see attestation-policy/upstream.rego).
#
#   input         the token: submods.cpu0, and gpu0, gpu1, ... with GPU evidence
#   data          plugin, "resource-path"
package policy

import rego.v1

default allow := false

# The one resource this policy gives away: resource/ and the path of MODEL_KEY_ID without kbs:///.
resources := {"resource/default/aliyun/model-decryption-key"}

# Releases differ in how they name what is asked for: plugin and list, plugin and text, or all in one text.
requested := concat("/", array.concat([data.plugin], data["resource-path"])) if is_array(data["resource-path"])

requested := concat("/", [data.plugin, trim_prefix(data["resource-path"], "/")]) if {
	data.plugin
	is_string(data["resource-path"])
}

requested := data["resource-path"] if {
	not data.plugin
	is_string(data["resource-path"])
}

allow if {
	requested in resources

	# Of every part of the machine that was attested: one bad GPU denies.
	every submod in input.submods {
		submod["ear.status"] == "affirming"
	}
	evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
	not evidence.sample
	not_debug(evidence.tdx.quote.body.td_attributes)
}

# DEBUG is bit 0 of the first byte: the lowest bit of the second digit. The host can read a TD that has it.
not_debug(attributes) if substring(attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
