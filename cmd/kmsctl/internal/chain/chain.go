// Package chain checks everything between the keys of a KMS and a trust root,
// link by link: the record, the quote, its endorsements, the keys that it
// binds, the certificates that stand for these keys, and what was expected.
package chain

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"teekms/cmd/kmsctl/internal/expect"
	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
)

// Config says what is trusted and what is expected.
type Config struct {
	// TrustAnchor is the root of the PCK hierarchy. Required.
	TrustAnchor *x509.Certificate
	// Collateral gives the Endorsements. Required.
	Collateral tdx.CollateralSource
	// CollateralFrom says in words where they come from.
	CollateralFrom string
	// At is the time as of which Evidence is verified. Required.
	At time.Time
	// Now is the time with which the RPC certificate's dates are compared: it
	// is renewed every few weeks and is no part of the Evidence. Required.
	Now time.Time
	// AcceptTCB are the TCB statuses that are good enough. Required.
	AcceptTCB []attest.TCBStatus
	// Expect is what is expected beyond.
	Expect expect.Set
	// SecondOpinion asks another implementation too.
	SecondOpinion bool
	// SaveCollateral is a directory in which collateral that verifies is kept,
	// made when missing; empty keeps none.
	SaveCollateral string
}

// Check checks every link of s. Its error is about cfg alone, and about
// collateral that cannot be kept; what is wrong with s is in the Report.
func Check(ctx context.Context, s *subject.Subject, cfg Config) (*Report, error) {
	source := &once{source: cfg.Collateral, got: map[platform]*tdx.Collateral{}}
	cfg.Collateral = source
	verifier, err := tdx.NewVerifier(tdx.Config{
		TrustAnchor: cfg.TrustAnchor, Collateral: cfg.Collateral,
		Now: func() time.Time { return cfg.At },
	})
	if err != nil {
		return nil, err
	}
	root := verifier.TrustRoot()
	r := &Report{
		Source: string(s.Kind), Location: s.Location,
		VerifiedAt:      cfg.At.UTC(),
		TrustRootSHA256: hex.EncodeToString(root[:]), TrustRootIsIntel: root == sha256.Sum256(tdx.IntelRootCA().Raw),
		Collateral: cfg.CollateralFrom, PrivateKeys: s.PrivateKeys,
		Notes: append(notes(s, root), anyTrustDomain(cfg.Expect)...),
	}
	c := &checker{ctx: ctx, cfg: cfg, s: s, r: r, verifier: verifier, source: source}
	c.record()
	c.evidence()
	c.certificates()
	c.expectations()
	c.opinion()
	r.conclude()
	return r, c.save()
}

// checker is one run over the links.
type checker struct {
	ctx      context.Context //nolint:containedctx // lives as long as the call it belongs to
	cfg      Config
	s        *subject.Subject
	r        *Report
	verifier *tdx.Verifier
	source   *once
	// verified is nil unless every link of the Evidence holds.
	verified *attest.Claims
}

func (c *checker) add(l Link) { c.r.Links = append(c.r.Links, l) }

func (c *checker) record() {
	if c.s.RecordErr != nil {
		c.add(broken(LinkRecord, c.s.RecordErr))
		return
	}
	rec := c.s.Record
	log := fmt.Sprintf("event log of %d bytes", len(rec.EventLog))
	if len(rec.EventLog) == 0 {
		log = "no event log"
	}
	c.add(held(LinkRecord, "two public keys, quote of %d bytes, %s, in %s", len(rec.Quote), log, rec.Encoding))
}

// evidenceLinks are the links of the quote in the order in which they are
// shown.
func evidenceLinks() []string {
	return []string{
		attest.LinkFormat, attest.LinkChain, attest.LinkQEReport, attest.LinkSignature, attest.LinkDebug, attest.LinkServiceTD,
		attest.LinkCollateral, attest.LinkRevocation, attest.LinkTCB, attest.LinkReportData, attest.LinkEventLog,
	}
}

// evidence checks the quote and what it binds.
func (c *checker) evidence() {
	if c.s.Record == nil {
		for _, name := range evidenceLinks() {
			c.add(skipped(name, "there is no readable record"))
		}
		return
	}
	if len(c.s.Record.Quote) == 0 {
		c.add(broken(attest.LinkFormat, errors.New("the record has no quote: the keys were made with quotes switched off, so nothing says where")))
		for _, name := range evidenceLinks()[1:] {
			c.add(skipped(name, "there is no quote"))
		}
		return
	}
	ev := &attest.Evidence{Quote: c.s.Record.Quote}
	if len(c.s.Record.EventLog) > 0 {
		ev.EventLog = c.s.Record.EventLog
	}
	trace := c.verifier.Trace(c.ctx, ev)
	for _, step := range trace.Steps {
		// Report data are shown before the event log, which the verifier
		// ends with.
		if step.Link == attest.LinkEventLog {
			c.add(c.reportData())
		}
		c.add(c.step(step))
	}
	c.judgeCollateral(ev)
	c.claim(trace.Claims)
}

// step turns what the verifier found into a link. The verifier takes no offense
// at a TCB status or at a missing event log; here both are shown for what they
// are.
func (c *checker) step(s tdx.Step) Link {
	l := Link{Name: s.Link, Checked: s.Checked, Err: s.Err, Detail: s.Detail}
	if !l.Checked || l.Err != nil {
		return l
	}
	switch {
	case s.Link == attest.LinkChain && c.r.TrustRootIsIntel:
		l.Detail += "; the root is Intel's"
	case s.Link == attest.LinkChain:
		l.Detail += "; the root is NOT Intel's"
	case s.Link == attest.LinkEventLog && len(c.s.Record.EventLog) == 0:
		return skipped(s.Link, "the record has none")
	}
	return l
}

// reportData checks that the quote was made for the two keys of the record.
func (c *checker) reportData() Link {
	quote, err := tdx.ParseQuote(c.s.Record.Quote)
	if err != nil {
		return skipped(attest.LinkReportData, "it rests on %s", attest.LinkFormat)
	}
	got := quote.ReportData()
	want := attest.BootstrapReportData(c.s.Record.CAPublic, c.s.Record.K256Public).Bytes()
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return broken(attest.LinkReportData, fmt.Errorf("the quote binds %x, the digest of the record's two public keys is %x", got, want))
	}
	return held(attest.LinkReportData, "binds both public keys of the record")
}

// claim takes over what was verified and judges the TCB status.
func (c *checker) claim(verified *attest.Claims) {
	if verified == nil {
		return
	}
	c.verified = verified
	c.r.Claims = newClaims(verified)
	if c.r.holds(attest.LinkReportData) {
		c.r.Claims.addKeys(c.s)
	}
	if c.r.holds(attest.LinkEventLog) {
		log, err := eventlog.Parse(c.s.Record.EventLog)
		if err == nil {
			err = c.r.Claims.addIdentity(verified, log)
		}
		if err != nil {
			c.r.Notes = append(c.r.Notes, "the event log replays, but names no application: "+err.Error())
		}
	}
	if !slices.Contains(c.cfg.AcceptTCB, verified.TCB) {
		if l := c.r.mutableLink(attest.LinkTCB); l != nil {
			l.Err, l.Detail = fmt.Errorf("%s, accepted is %s", l.Detail, join(c.cfg.AcceptTCB)), ""
		}
	}
}

func join(statuses []attest.TCBStatus) string {
	text := ""
	for i, s := range statuses {
		if i > 0 {
			text += ", "
		}
		text += string(s)
	}
	return text
}

func (c *checker) expectations() {
	if len(c.cfg.Expect) == 0 {
		return
	}
	if c.r.Claims == nil {
		c.add(skipped(LinkExpectations, "the Evidence does not verify"))
		return
	}
	if wrong := c.cfg.Expect.Compare(c.r.Claims.values()); len(wrong) > 0 {
		errs := make([]error, len(wrong))
		for i, w := range wrong {
			errs[i] = errors.New(w.String())
		}
		c.add(broken(LinkExpectations, joined(errs)))
		return
	}
	c.add(held(LinkExpectations, "%s as expected", c.cfg.Expect.Summary()))
}

// joined is errors.Join on one line.
func joined(errs []error) error {
	text := ""
	for i, err := range errs {
		if i > 0 {
			text += "; "
		}
		text += err.Error()
	}
	return errors.New(text)
}

// anyTrustDomain warns where nothing was said about the software that may have
// made the keys: whoever has a TDX machine can make keys in a trust domain that
// gives them away.
func anyTrustDomain(set expect.Set) []string {
	if set.Identifies() {
		return nil
	}
	return []string{"no MRTD was expected, so any trust domain would do; --expect-mrtd, --expect-rtmr and --expect-file say which software must have made the keys"}
}

// notes are what a reader should know whatever comes out.
func notes(s *subject.Subject, root [sha256.Size]byte) []string {
	out := []string{}
	if s.Plaintext {
		out = append(out, "asked over plain HTTP: what was answered is verified, who answered is not")
	} else if s.Kind == subject.URL {
		out = append(out, "the TLS certificate is checked against the KMS's own root, which is believed for the quote alone")
	}
	if len(s.TrustRoot) > 0 && hex.EncodeToString(s.TrustRoot) != hex.EncodeToString(root[:]) {
		out = append(out, fmt.Sprintf("the KMS itself trusts another root: %x", s.TrustRoot))
	}
	if s.Unfinished {
		out = append(out, subject.UnfinishedHint)
	}
	if len(s.Insecure) > 0 {
		out = append(out, fmt.Sprintf("the KMS says that these settings weaken it: %s", strings.Join(s.Insecure, ", ")))
	}
	return out
}
