package client

import (
	"context"
	"errors"
	"fmt"

	"teekms/internal/attest"
	"teekms/internal/attest/configfs"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/guestagent"
	"teekms/internal/attest/simtd"
)

// ErrNoAttester says that this machine has nothing to attest with.
var ErrNoAttester = attest.ErrNoAttester

// Evidence is what a trust domain says about itself.
type Evidence struct {
	// Quote is a TDX quote of version 4 or 5.
	Quote []byte
	// EventLog is the JSON text of the events that were extended into the
	// RTMRs (docs/wire.md#event-log).
	EventLog []byte
	// VMConfig is the JSON text that describes the virtual machine; may be
	// empty.
	VMConfig string
}

// Attester makes the Evidence of this workload. The constructors are
// [GuestAgent], [ConfigFS], [Auto], [Simulator] and [Custom]. It may be used
// from several goroutines.
type Attester struct{ attester attest.Attester }

// GuestAgent asks a dstack guest agent. address is unix:/PATH, http://HOST or
// empty, which stands for the environment's DSTACK_AGENT_ADDRESS and then the
// usual sockets.
func GuestAgent(address string) (*Attester, error) {
	a, err := guestagent.New(guestagent.Config{Address: address})
	if err != nil {
		return nil, fmt.Errorf("opening the guest agent: %w", err)
	}
	return &Attester{a}, nil
}

// ConfigFS asks the kernel, through its TSM reports in configfs. The event log
// is the firmware's, so the application is known only where something else
// extended its identity into RTMR3.
func ConfigFS() *Attester { return &Attester{configfs.New(configfs.Config{})} }

// Auto asks the guest agent where one answers, else the kernel. It never
// becomes a simulator, and never none: without either, making Evidence fails
// with [ErrNoAttester].
func Auto() (*Attester, error) {
	agent, err := GuestAgent("")
	if err != nil {
		return nil, err
	}
	return &Attester{either{agent.attester, ConfigFS().attester}}, nil
}

// either asks the second attester where the first is not there.
type either [2]attest.Attester

// Attest implements attest.Attester.
func (e either) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	evidence, err := e[0].Attest(ctx, rd)
	if errors.Is(err, attest.ErrNoAttester) {
		return e[1].Attest(ctx, rd)
	}
	return evidence, err
}

// SimulatorConfig says which software trust domain attests, and as what.
type SimulatorConfig struct {
	// Dir is the directory of the software trust domain. Required; it must be
	// there, and nothing about its machine is changed.
	Dir string
	// AppID (20 bytes), ComposeHash (32) and InstanceID (20) are what the
	// runtime events say. Where one is empty, that of the directory counts;
	// the app id is then the first 20 bytes of the compose hash.
	AppID, ComposeHash, InstanceID []byte
	// Booting ends the runtime events where a guest asks for its keys, before
	// it knows its key provider and its disk. Otherwise the guest is up.
	Booting bool
}

// Simulator attests as a software trust domain: Evidence in the real form under
// a root of its own, for development and tests. Whoever reads the directory can
// make any Evidence (docs/evidence.md#simulator).
func Simulator(cfg SimulatorConfig) (*Attester, error) {
	sim := simtd.Config{
		Dir: cfg.Dir, Ephemeral: true,
		Measurements: simtd.Measurements{AppID: cfg.AppID, ComposeHash: cfg.ComposeHash, InstanceID: cfg.InstanceID},
	}
	td, err := simtd.Open(sim)
	if err != nil || !cfg.Booting {
		return &Attester{td}, err
	}
	m := td.Measurements()
	sim.Measurements.Runtime = []simtd.RuntimeEvent{
		{Name: eventlog.EventSystemPreparing},
		{Name: eventlog.EventAppID, Payload: m.AppID},
		{Name: eventlog.EventComposeHash, Payload: m.ComposeHash},
		{Name: eventlog.EventInstanceID, Payload: m.InstanceID},
		{Name: eventlog.EventBootMRDone},
	}
	if td, err = simtd.Open(sim); err != nil {
		return nil, err
	}
	return &Attester{td}, nil
}

// Custom attests by calling f, which must have exactly these 64 bytes quoted.
// It may be called from several goroutines.
func Custom(f func(ctx context.Context, reportData [64]byte) (*Evidence, error)) *Attester {
	return &Attester{custom(f)}
}

type custom func(ctx context.Context, reportData [64]byte) (*Evidence, error)

// Attest implements attest.Attester.
func (f custom) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	e, err := f(ctx, rd.Bytes())
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, errors.New("the attester made no Evidence")
	}
	return &attest.Evidence{Quote: e.Quote, EventLog: e.EventLog, VMConfig: e.VMConfig}, nil
}
