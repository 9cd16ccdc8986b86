package authz

import (
	"errors"
	"fmt"
	"slices"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/ratls"
)

// AppIDSize is the size of an app id in bytes.
const AppIDSize = 20

// The one kind of trusted execution environment there is so far, in our words
// and in those of authorities.
const (
	teeTDX     = "tdx"
	variantTDX = "dstack-tdx"
)

// DescribeOptions say which description of a workload is wanted.
type DescribeOptions struct {
	// VMConfig is the description of the machine in the request. When empty,
	// that in the Evidence counts, and without any, an empty one.
	VMConfig string
	// BootTime wants the workload as it was at the end of its boot: no key
	// provider, and RTMR3 as of the boot-mr-done event in MRAggregated. SignCert
	// wants it so.
	BootTime bool
}

// Describe tells what a workload is, from its verified Claims and the event log
// that was replayed against them (docs/authz.md#boot-info). The error is
// [ErrAppID] when it measured no app id of 20 bytes, [ErrVMConfig] when the
// description of its machine cannot be read.
func Describe(a *ratls.Attested, o DescribeOptions) (BootInfo, error) {
	if a == nil || a.Claims == nil {
		return BootInfo{}, errors.New("no attestation to describe")
	}
	c := a.Claims
	if c.TEE != teeTDX {
		return BootInfo{}, fmt.Errorf("no boot information for a TEE of kind %q", c.TEE)
	}
	id, err := a.Log.Identity()
	if err != nil {
		return BootInfo{}, fmt.Errorf("reading the event log: %w", err)
	}
	if len(id.AppID) != AppIDSize {
		return BootInfo{}, ErrAppID
	}
	vmConfig, osImageHash, err := chooseVMConfig(o.VMConfig, a.VMConfig)
	if err != nil {
		return BootInfo{}, err
	}
	rtmr3, keyProvider := c.RTMR[eventlog.RuntimeIMR], id.KeyProvider
	if o.BootTime {
		keyProvider = nil
		if rtmr3, err = atBoot(c, a.Log); err != nil {
			return BootInfo{}, fmt.Errorf("replaying the event log: %w", err)
		}
	}
	return BootInfo{
		TEEVariant:      variantTDX,
		AppID:           id.AppID,
		ComposeHash:     id.ComposeHash,
		InstanceID:      id.InstanceID,
		DeviceID:        c.DeviceID(),
		MRAggregated:    c.MRAggregated(rtmr3),
		MRSystem:        c.MRSystem(keyProvider),
		MRTD:            c.MRTD,
		RTMR:            c.RTMR,
		OSImageHash:     osImageHash,
		VMConfig:        vmConfig,
		KeyProviderInfo: keyProvider,
		TCBStatus:       string(c.TCB),
		AdvisoryIDs:     slices.Clone(c.Advisories),
		EventLog:        a.Log,
	}, nil
}

// atBoot returns RTMR3 as it was after the boot-mr-done event, or as it is when
// the set-up made none. What comes after system-ready is the application's own:
// an event of that name there is no end of the boot.
func atBoot(c *attest.Claims, log eventlog.Log) (attest.Measurement, error) {
	setup := log
	for i := range log {
		if log[i].Runtime() && log[i].Name == eventlog.EventSystemReady {
			setup = log[:i]
			break
		}
	}
	rtmr, err := setup.ReplayUntil(eventlog.EventBootMRDone)
	if errors.Is(err, eventlog.ErrNoEvent) {
		return c.RTMR[eventlog.RuntimeIMR], nil
	}
	return rtmr[eventlog.RuntimeIMR], err
}
