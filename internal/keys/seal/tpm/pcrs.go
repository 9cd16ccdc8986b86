package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

func (s selection) list() tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(s...)},
	}}
}

// policy is the digest of PolicyPCR over the selection when it has these values,
// which are in its order.
func (s selection) policy(values [][]byte) ([]byte, error) {
	all := sha256.New()
	for _, v := range values {
		all.Write(v)
	}
	calculator, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, fmt.Errorf("calculating the policy: %w", err)
	}
	err = tpm2.PolicyPCR{
		PcrDigest: tpm2.TPM2BDigest{Buffer: all.Sum(nil)}, Pcrs: s.list(),
	}.Update(calculator)
	if err != nil {
		return nil, fmt.Errorf("calculating the policy: %w", err)
	}
	return calculator.Hash().Digest, nil
}

// errNoBank: firmware can be told to measure into SHA-1 or SHA-384 alone.
var errNoBank = errors.New("the TPM keeps no SHA-256 values of these PCRs: its SHA-256 bank is not active (firmware setup, or tpm2_pcrallocate)")

// readPCRs reads the values of s, in its order, in an audit session: the answers
// are authenticated, so that nobody between us and the TPM can have us seal to
// values of their choice.
func (t *tpm) readPCRs(parent srk, s selection) ([][]byte, error) {
	session, err := t.session(parent, tpm2.Audit())
	if err != nil {
		return nil, err
	}
	var values [][]byte
	for len(values) < len(s) {
		// At most eight come at a time, the lowest first.
		rest := s[len(values):min(len(values)+8, len(s))]
		rsp, err := tpm2.PCRRead{PCRSelectionIn: rest.list()}.Execute(t, session)
		if err != nil {
			return nil, fmt.Errorf("reading PCRs: %w", err)
		}
		if len(rsp.PCRValues.Digests) != len(rest) {
			return nil, errNoBank
		}
		for _, d := range rsp.PCRValues.Digests {
			if len(d.Buffer) != digestSize {
				return nil, errNoBank
			}
			values = append(values, d.Buffer)
		}
	}
	return values, t.flush(session.Handle())
}

// changed says in words which PCRs are not what they were when o was sealed.
func (t *tpm) changed(parent srk, o object) string {
	values, err := t.readPCRs(parent, o.pcrs)
	if errors.Is(err, errNoBank) {
		return errNoBank.Error()
	}
	if err != nil {
		return o.pcrs.wereOther()
	}
	var other selection
	for i, v := range values {
		if [hintSize]byte(v) != o.hints[i] {
			other = append(other, o.pcrs[i])
		}
	}
	if len(other) == 0 {
		return "it is not over " + o.pcrs.String() + ", or what is stored of it was changed"
	}
	return other.wereOther()
}

func (s selection) wereOther() string {
	if len(s) == 1 {
		return s.String() + " is not what it was"
	}
	return s.String() + " are not what they were"
}

// Unmeasured returns those of the configured PCRs that hold what they hold when
// the TPM starts, in ascending order: nothing was measured into them since, so
// that what is sealed to them alone opens in any state that leaves them alone.
// That is all zeros, for those of a later, dynamic launch (17 to 22) all ones.
func (s *Source) Unmeasured(ctx context.Context) ([]int, error) {
	var found []int
	err := s.with(ctx, func(t *tpm) error {
		found = nil
		parent, err := t.createSRK()
		if err != nil {
			return err
		}
		values, err := t.readPCRs(parent, s.pcrs)
		if err != nil {
			return err
		}
		for i, v := range values {
			if initial(v) {
				found = append(found, int(s.pcrs[i]))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the PCRs of the TPM: %w", err)
	}
	return found, nil
}

// initial reports whether a PCR of this value was never extended.
func initial(value []byte) bool {
	return bytes.Equal(value, make([]byte, digestSize)) || bytes.Equal(value, bytes.Repeat([]byte{0xff}, digestSize))
}
