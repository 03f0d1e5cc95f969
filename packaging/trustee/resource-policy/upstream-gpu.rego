# As upstream.rego, and the GPUs have to be there. Needs a server with the NVIDIA verifier (v0.15 and later), and
# trustee.gpu_evidence = "upstream" in cai.toml.
#
# A machine that sends no GPU evidence has a token without gpu submodules; upstream.rego lets that pass, this one does not.
package policy

import rego.v1

default allow := false

# The one resource this policy gives away.
resources := {"resource/default/aliyun/model-decryption-key"}

# How many GPUs the machine has.
gpus_expected := 8

requested := concat("/", array.concat([data.plugin], data["resource-path"])) if is_array(data["resource-path"])

requested := concat("/", [data.plugin, trim_prefix(data["resource-path"], "/")]) if {
	data.plugin
	is_string(data["resource-path"])
}

requested := data["resource-path"] if {
	not data.plugin
	is_string(data["resource-path"])
}

gpus := [submod | some name, submod in input.submods; startswith(name, "gpu")]

allow if {
	requested in resources
	every submod in input.submods {
		submod["ear.status"] == "affirming"
	}
	evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
	not evidence.sample
	not_debug(evidence.tdx.quote.body.td_attributes)

	count(gpus) == gpus_expected
	every gpu in gpus {
		gpu["ear.veraison.annotated-evidence"].nvidia
	}
}

# DEBUG is bit 0 of the first byte: the lowest bit of the second digit. The host can read a TD that has it.
not_debug(attributes) if substring(attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
