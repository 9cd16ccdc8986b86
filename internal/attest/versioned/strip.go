package versioned

import "teekms/internal/attest/eventlog"

// platformConfigFlags is the TCG event type EV_PLATFORM_CONFIG_FLAGS, by which
// firmware measures the ACPI tables.
const platformConfigFlags = 10

// acpiMark is the payload of these events.
const acpiMark = "ACPI DATA"

// Strip returns the attestation without what a certificate has no room for:
// of the boot events only RTMR0's marks of ACPI data stay, and in RTMR3 runtime
// events lose their digest, which follows from the rest, others their payload
// (docs/wire.md#versioned-attestation). What is verified stays.
func (a *Attestation) Strip() *Attestation {
	out := *a
	out.Events = nil
	for _, e := range a.Events {
		switch {
		case e.IMR == 0 && e.Type == platformConfigFlags && string(e.Payload) == acpiMark:
		case e.IMR != eventlog.RuntimeIMR:
			continue
		case e.Runtime():
			e.Digest = nil
		default:
			e.Payload = nil
		}
		out.Events = append(out.Events, e)
	}
	return &out
}
