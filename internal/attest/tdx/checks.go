package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// The checks of the links, and what each says when it holds.

func (r *verification) format() (err error) {
	if r.ev == nil {
		return errors.New("no Evidence")
	}
	r.quote, err = ParseQuote(r.ev.Quote)
	return err
}

func (r *verification) describeFormat() string {
	return fmt.Sprintf("version %d, %d bytes", r.quote.Version(), len(r.quote.Raw))
}

func (r *verification) chain() error {
	if known, ok := loadBytes(r.v.enclaves, r.quote.tail); ok && known.pck.validAt(r.now) {
		r.enclave, r.known = known, true
		return nil
	}
	pck, err := verifyPCKChain(r.quote.chain, r.v.anchor, r.now)
	if err != nil {
		return err
	}
	r.enclave = &enclave{pck: pck}
	return nil
}

func (c *pckChain) validAt(t time.Time) bool {
	return !t.Before(c.notBefore) && !t.After(c.notAfter)
}

func (r *verification) describeChain() string {
	pck := r.enclave.pck
	return fmt.Sprintf("to root %s, by the %s CA, valid until %s, FMSPC %x",
		hex.EncodeToString(r.v.root[:8]), pck.ca, pck.notAfter.UTC().Format(time.DateOnly), pck.ext.FMSPC)
}

// qeReport checks that the PCK vouches for the quoting enclave, and that it
// for the attestation key.
func (r *verification) qeReport() error {
	if r.known {
		return nil
	}
	pckKey, err := ecdsaKey(r.enclave.pck.leaf)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(r.quote.qeReport)
	if !verifyRaw(pckKey, digest[:], r.quote.qeSignature) {
		return errors.New("signature by the PCK does not verify")
	}
	h := sha256.New()
	h.Write(r.quote.attestationKey)
	h.Write(r.quote.authData)
	var want, got [64]byte
	h.Sum(want[:0])
	got = r.quote.qeReport.ReportData()
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return errors.New("report data do not bind the attestation key")
	}
	if r.quote.qeReport.Debug() {
		return errors.New("the quoting enclave is a debug enclave")
	}
	return nil
}

func (r *verification) describeQEReport() string {
	return fmt.Sprintf("signed by the PCK, binds the attestation key, SVN %d", r.quote.qeReport.ISVSVN())
}

// signature parses the attestation key itself where the chain did not hold,
// so that a Trace can tell one failure from another.
func (r *verification) signature() (err error) {
	var key *ecdsa.PublicKey
	if r.known {
		key = r.enclave.key
	} else if key, err = parsePublicKey(r.quote.attestationKey); err != nil {
		return fmt.Errorf("attestation key: %w", err)
	}
	if r.enclave != nil && !r.known {
		r.enclave.key = key
	}
	digest := sha256.Sum256(r.quote.signed)
	if !verifyRaw(key, digest[:], r.quote.signature) {
		return errors.New("does not verify under the attestation key")
	}
	return nil
}

func (r *verification) describeSignature() string {
	return fmt.Sprintf("by the attestation key, over %d bytes", len(r.quote.signed))
}

func (r *verification) debug() error {
	if a := r.quote.TDAttributes(); a&0xff != 0 {
		return fmt.Errorf("TD_ATTRIBUTES %#016x: bits 0 to 7 open the TD to its host, bit 0 is debug", a)
	}
	return nil
}

func (r *verification) describeDebug() string {
	return fmt.Sprintf("off (TD_ATTRIBUTES %#016x)", r.quote.TDAttributes())
}

func (r *verification) serviceTD() error {
	if m := r.quote.MRServiceTD(); m != (attest.Measurement{}) {
		return fmt.Errorf("MRSERVICETD is %x: another TD may act on this one", m[:])
	}
	return nil
}

func (r *verification) describeServiceTD() string {
	if r.quote.BodyType() == BodyTDX15 {
		return "none (MRSERVICETD is zero)"
	}
	return "this quote has no field for one"
}

func (r *verification) collateral() (err error) {
	pck := r.enclave.pck
	r.endorse, err = r.v.endorsements(r.ctx, platformKey{pck.ext.FMSPC, pck.ca}, r.now)
	return err
}

func (r *verification) describeCollateral() string {
	return fmt.Sprintf("TCB info and QE identity (evaluations %d and %d) and both CRLs verify, valid until %s",
		r.endorse.tcb.EvaluationDataNumber, r.endorse.qe.EvaluationDataNumber, r.endorse.notAfter.UTC().Format(time.RFC3339))
}

func (r *verification) revocation() error {
	e, pck := r.endorse, r.enclave.pck
	if e.revoked != nil {
		return e.revoked
	}
	// A list speaks only of certificates of the key that signed it.
	if !bytes.Equal(pck.issuer.RawSubjectPublicKeyInfo, e.crlIssuerKey) {
		return errors.New("the PCK CRL is not of the authority that issued the PCK")
	}
	if e.revokedByRoot[serialKey(pck.issuer.SerialNumber)] {
		return fmt.Errorf("%q, serial %x, is revoked", pck.issuer.Subject.CommonName, pck.issuer.SerialNumber)
	}
	if e.revokedPCK[serialKey(pck.leaf.SerialNumber)] {
		return fmt.Errorf("%q, serial %x, is revoked", pck.leaf.Subject.CommonName, pck.leaf.SerialNumber)
	}
	return nil
}

func (r *verification) describeRevocation() string {
	return fmt.Sprintf("PCK, its authority and the TCB signer are not among the %d revoked", len(r.endorse.revokedPCK)+len(r.endorse.revokedByRoot))
}

func (r *verification) tcb() (err error) {
	r.verdict, err = r.endorse.judge(r.quote, r.enclave.pck.ext)
	return err
}

func (r *verification) describeTCB() string {
	v := r.verdict
	s := fmt.Sprintf("%s (platform %s, TDX module %s, quoting enclave %s)", v.status(), v.platform.Status, v.module.Status, v.qe.Status)
	if a := v.advisories(); a != nil {
		s += ", " + strings.Join(a, " ")
	}
	return s
}

func (r *verification) eventLog() error {
	if r.ev.EventLog == nil {
		return nil
	}
	var known bool
	if r.log, known = loadBytes(r.v.logs, r.ev.EventLog); !known {
		var err error
		if r.log, err = replayLog(r.ev.EventLog); err != nil {
			return err
		}
	}
	for i, quoted := range r.quote.RTMRs() {
		if r.log.stripped && i != eventlog.RuntimeIMR {
			continue
		}
		if replayed := r.log.rtmr[i]; replayed != quoted {
			return fmt.Errorf("RTMR%d replays to %x, the quote has %x", i, replayed, quoted)
		}
	}
	return nil
}

// replayedLog is what an event log replays to.
type replayedLog struct {
	rtmr [4]attest.Measurement
	// stripped says that the boot events were left out, as in a certificate:
	// of the replay only RTMR3 means something. Nothing is lost by that, the
	// boot registers count as the quote has them.
	stripped bool
}

func replayLog(text []byte) (r replayedLog, err error) {
	log, err := eventlog.Parse(text)
	if err != nil {
		return r, err
	}
	r.stripped = !slices.ContainsFunc(log, isBootEvent)
	r.rtmr, err = log.Replay()
	return r, err
}

// isBootEvent says whether e would have been left out of a log for a
// certificate. Those keep RTMR0's marks of ACPI data
// (docs/evidence.md#event-log).
func isBootEvent(e eventlog.Event) bool {
	const platformConfigFlags = 10 // EV_PLATFORM_CONFIG_FLAGS
	acpi := e.IMR == 0 && e.Type == platformConfigFlags && string(e.Payload) == "ACPI DATA"
	return e.IMR != eventlog.RuntimeIMR && !acpi
}

func (r *verification) describeEventLog() string {
	switch {
	case r.ev.EventLog == nil:
		return "none came with the quote"
	case r.log.stripped:
		return "replays to RTMR3; the boot events were left out of the log"
	default:
		return "replays to RTMR0, RTMR1, RTMR2 and RTMR3"
	}
}
