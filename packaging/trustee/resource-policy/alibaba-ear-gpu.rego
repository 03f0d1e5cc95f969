# As alibaba-ear.rego, and the GPUs have to be right too. Alibaba Trustee from v1.4.3 on, with
# trustee.gpu_evidence = "alibaba" in cai.toml (which is what "auto" means).
#
# The server compares each GPU's report with NVIDIA's reference measurements for its driver and VBIOS and, when they
# differ, leaves the GPU's claims out instead of refusing the evidence. It checks neither the report's signature nor its
# chain nor its nonce: cai does that on the machine before it sends anything, and a measured image means a measured cai.
#
#   input...tdx["nvidia_gpu.0"]   uuid, name, driver_version, vbios_version, cc_enabled; measurement only when it matched
package policy

import rego.v1

default allow := false

# The one resource this policy gives away.
resources := {"resource/default/aliyun/model-decryption-key"}

# How many GPUs the machine has. A missing one is one whose measurements did not match, or that was not attested.
gpus_expected := 8

cpu := input.submods.cpu0

cpu := input.submods.cpu if not input.submods.cpu0

gpus := [gpu | some name, gpu in cpu["ear.veraison.annotated-evidence"].tdx; startswith(name, "nvidia_gpu.")]

allow if {
	data["resource-path"] in resources
	cpu["ear.status"] == "affirming"
	evidence := cpu["ear.veraison.annotated-evidence"]
	not evidence.sample
	not_debug(evidence.tdx.quote.body.td_attributes)

	count(gpus) == gpus_expected
	every gpu in gpus {
		gpu.cc_enabled == true

		# Absent when the server was told to skip the comparison (TRUSTEE_SKIP_NVGPU_VERIFY).
		gpu.measurement != ""
	}

	# One report shown eight times is one GPU.
	count({gpu.uuid | some gpu in gpus}) == gpus_expected
}

# DEBUG is bit 0 of the first byte: the lowest bit of the second digit. The host can read a TD that has it.
not_debug(attributes) if substring(attributes, 1, 1) in {"0", "2", "4", "6", "8", "a", "c", "e"}
