package tpm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// noRoom reports whether the TPM has no slot left for an object or a session.
func noRoom(err error) bool {
	for _, rc := range []tpm2.TPMRC{
		tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCMemory,
		tpm2.TPMRCSessionHandles, tpm2.TPMRCObjectHandles, tpm2.TPMRCContextGap,
	} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// explain puts the codes of a TPM that an operator can do something about in
// words, before the library's.
func explain(err error) error {
	var words string
	switch {
	case errors.Is(err, tpm2.TPMRCLockout):
		words = "the TPM is locked out after wrong passwords: wait, or reset it (tpm2_dictionarylockout --clear-lockout)"
	case errors.Is(err, tpm2.TPMRCBadAuth), errors.Is(err, tpm2.TPMRCAuthFail):
		words = "the owner hierarchy of the TPM has a password: it must be empty (tpm2_changeauth -c owner)"
	case errors.Is(err, tpm2.TPMRCHierarchy):
		words = "the owner hierarchy of the TPM is switched off: firmware setup switches it on"
	case errors.Is(err, tpm2.TPMRCInitialize):
		words = "the TPM was not started by the firmware"
	case errors.Is(err, tpm2.TPMRCFailure):
		words = "the TPM is in failure mode: restart the machine"
	case errors.Is(err, tpm2.TPMRCIntegrity):
		words = "what was sealed is damaged, or it is of another TPM or of this one before it was cleared"
	case noRoom(err):
		words = "the TPM has no room for another object or session (tpm2_flushcontext -t frees it; /dev/tpmrm0 needs no freeing)"
	default:
		return err
	}
	return said(words, err)
}

// worded is an error in our words, for callers still the one it stands for.
type worded struct {
	words string
	err   error
}

func (w worded) Error() string { return w.words }
func (w worded) Unwrap() error { return w.err }

// said puts err in words, after which the name of its code is what can be
// searched for.
func said(words string, err error) error {
	if rc, ok := errors.AsType[tpm2.TPMRC](err); ok {
		name, _, _ := strings.Cut(rc.Error(), " ")
		words += " [" + strings.TrimSuffix(name, ":") + "]"
	}
	return worded{words, err}
}

// evict flushes every object and session that is loaded.
func (t *tpm) evict() error {
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000} {
		rsp, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 64,
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("listing what is loaded: %w", err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return fmt.Errorf("listing what is loaded: %w", err)
		}
		for _, h := range list.Handle {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t); err != nil {
				return fmt.Errorf("flushing what is loaded: %w", err)
			}
		}
	}
	return nil
}
