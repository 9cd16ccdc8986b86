package tpmsim_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-tpm-tools/simulator"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpmutil"

	"teekms/internal/keys/seal/tpm"
)

// sim is the one TPM that there can be in a process.
type sim struct {
	tb testing.TB

	mu   sync.Mutex // guards what follows
	chip *simulator.Simulator
}

// powerOn makes a new TPM. It is powered off when the test ends, or by powerOff,
// and with that it is gone.
func powerOn(tb testing.TB) *sim {
	tb.Helper()
	return newSim(tb, simulator.Get)
}

// powerOnSeeded makes a TPM whose seeds follow from seed: from the same seed
// comes the same TPM. A reset takes the seeds from it.
func powerOnSeeded(tb testing.TB, seed int64) *sim {
	tb.Helper()
	return newSim(tb, func() (*simulator.Simulator, error) { return simulator.GetWithFixedSeedInsecure(seed) })
}

func newSim(tb testing.TB, get func() (*simulator.Simulator, error)) *sim {
	tb.Helper()
	chip, err := get()
	if err != nil {
		tb.Fatalf("starting the simulator: %v", err)
	}
	s := &sim{tb: tb, chip: chip}
	tb.Cleanup(s.powerOff)
	return s
}

func (s *sim) powerOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chip.IsClosed() {
		return
	}
	if err := s.chip.Close(); err != nil {
		s.tb.Errorf("Close() = %v", err)
	}
}

// reset does what a power cycle does: seeds stay, PCRs are as at first.
func (s *sim) reset() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.chip.Reset(); err != nil {
		s.tb.Fatalf("Reset() = %v", err)
	}
}

// Send implements [transport.TPM].
func (s *sim) Send(command []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := tpmutil.RunCommandRaw(s.chip, command)
	if err != nil {
		return nil, fmt.Errorf("asking the simulator: %w", err)
	}
	return b, nil
}

// Close implements [transport.TPMCloser]. What one connection left in the TPM
// is there for the next, as with a chip.
func (s *sim) Close() error { return nil }

func (s *sim) open(context.Context) (transport.TPMCloser, error) { return s, nil }

// source seals to PCRs of this TPM.
func (s *sim) source(pcrs ...int) *tpm.Source {
	s.tb.Helper()
	source, err := tpm.New(tpm.Config{Open: s.open, PCRs: pcrs})
	if err != nil {
		s.tb.Fatalf("New() = %v", err)
	}
	return source
}

// measure extends a PCR by the hash of event.
func (s *sim) measure(pcr int, event string) {
	s.tb.Helper()
	digest := sha256.Sum256([]byte(event))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]},
		}},
	}.Execute(s)
	if err != nil {
		s.tb.Fatalf("extending PCR %d: %v", pcr, err)
	}
}

// boot measures the state that these tests seal to.
func (s *sim) boot() {
	s.tb.Helper()
	s.measure(7, "secure boot")
	s.measure(11, "kernel")
	s.measure(14, "machine owner keys")
}

// loaded lists the objects and sessions that are in the TPM.
func (s *sim) loaded() []tpm2.TPMHandle {
	s.tb.Helper()
	var all []tpm2.TPMHandle
	// Transient objects, loaded sessions, saved sessions.
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(s)
		if err != nil {
			s.tb.Fatalf("listing handles: %v", err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			s.tb.Fatalf("listing handles: %v", err)
		}
		all = append(all, list.Handle...)
	}
	return all
}

// wantEmpty fails when anything is left in the TPM.
func (s *sim) wantEmpty() {
	s.tb.Helper()
	if left := s.loaded(); len(left) != 0 {
		s.tb.Errorf("left in the TPM: %x, want nothing", left)
	}
}
