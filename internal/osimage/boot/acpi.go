package boot

import (
	"errors"
	"fmt"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// ACPI holds the digests of what QEMU tells the firmware about the machine.
type ACPI struct {
	// Loader, RSDP and Tables are of etc/table-loader, etc/acpi/rsdp and
	// etc/acpi/tables.
	Loader, RSDP, Tables attest.Measurement
}

const (
	platformConfigFlags = 10
	acpiPayload         = "ACPI DATA"
)

// ACPIFromLog takes the digests from an event log: the three events of RTMR0
// whose payload is "ACPI DATA", in their order. That they are those of the quote
// is only known once RTMR0 is; what the tables say stays unknown. An event may
// be called by its own name; with named it must be.
func ACPIFromLog(log eventlog.Log, named bool) (ACPI, error) {
	var a ACPI
	places := [...]struct {
		name   string
		digest *attest.Measurement
	}{{"acpi-loader", &a.Loader}, {"acpi-rsdp", &a.RSDP}, {"acpi-tables", &a.Tables}}
	found := 0
	for i := range log {
		e := &log[i]
		if e.IMR != 0 || e.Type != platformConfigFlags || string(e.Payload) != acpiPayload {
			continue
		}
		if found == len(places) {
			return ACPI{}, errors.New("more than three ACPI DATA events in RTMR0")
		}
		p := places[found]
		if e.Name != p.name && (named || e.Name != "") {
			return ACPI{}, fmt.Errorf("ACPI DATA event %d is called %.40q, not %q", found+1, e.Name, p.name)
		}
		if len(e.Digest) != attest.MeasurementSize {
			return ACPI{}, fmt.Errorf("ACPI DATA event %d has no digest", found+1)
		}
		*p.digest = attest.Measurement(e.Digest)
		found++
	}
	if found < len(places) {
		return ACPI{}, fmt.Errorf("%d of three ACPI DATA events in RTMR0", found)
	}
	return a, nil
}
