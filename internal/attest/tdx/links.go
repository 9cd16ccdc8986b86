package tdx

import (
	"bytes"
	"context"
	"strings"
	"time"

	"teekms/internal/attest"
)

// Step is one link of the chain as a verification found it.
type Step struct {
	// Link names the part, one of the attest.Link constants.
	Link string
	// Checked is false for a link that rests on one that failed, or that was
	// not asked for.
	Checked bool
	// Err says why a checked link does not hold, nil if it does.
	Err error
	// Detail says what was found, in one line; for a link not checked, why.
	Detail string
}

// Trace is a verification told link by link.
type Trace struct {
	// Steps are all links, in the order in which they are checked.
	Steps []Step
	// Claims are what the Evidence proves, nil unless every link holds.
	Claims *attest.Claims
}

// Err is what Verify would have returned: the first link that does not hold.
func (t *Trace) Err() error {
	for _, s := range t.Steps {
		if s.Checked && s.Err != nil {
			return &attest.VerifyError{Link: s.Link, Err: s.Err}
		}
	}
	return nil
}

// Trace verifies e by the same code as Verify, but goes on after a link that
// fails, with those that do not rest on it, and says of each what it found.
func (v *Verifier) Trace(ctx context.Context, e *attest.Evidence) *Trace {
	return v.begin(ctx, e, false).all()
}

// TraceOffline is to VerifyOffline what Trace is to Verify.
func (v *Verifier) TraceOffline(ctx context.Context, e *attest.Evidence) *Trace {
	return v.begin(ctx, e, true).all()
}

// verification is one run over the links.
type verification struct {
	v       *Verifier
	ctx     context.Context //nolint:containedctx // lives as long as the call it belongs to
	ev      *attest.Evidence
	now     time.Time
	offline bool

	quote *Quote
	// enclave is set once its chain holds; known says that chain and QE report
	// were verified earlier from the same bytes.
	enclave *enclave
	known   bool
	endorse *endorsements
	verdict verdict
	log     replayedLog
}

func (v *Verifier) begin(ctx context.Context, e *attest.Evidence, offline bool) *verification {
	return &verification{v: v, ctx: ctx, ev: e, now: v.now(), offline: offline}
}

// linkSet is a set of links by their place in the order.
type linkSet uint16

const (
	linkFormat linkSet = 1 << iota
	linkChain
	linkQEReport
	linkSignature
	linkDebug
	linkServiceTD
	linkCollateral
	linkRevocation
	linkTCB
	linkEventLog
	linkCount = iota
)

// link is how one part of the chain is checked.
type link struct {
	name string
	// self is the link's own bit, needs are the links it rests on.
	self, needs linkSet
	check       func(*verification) error
	describe    func(*verification) string
}

// links are all parts in the order in which they are checked: what needs no
// network before what does, so that forged Evidence causes no fetch.
func links() [linkCount]link {
	return [linkCount]link{
		{attest.LinkFormat, linkFormat, 0, (*verification).format, (*verification).describeFormat},
		{attest.LinkChain, linkChain, linkFormat, (*verification).chain, (*verification).describeChain},
		{attest.LinkQEReport, linkQEReport, linkFormat | linkChain, (*verification).qeReport, (*verification).describeQEReport},
		{attest.LinkSignature, linkSignature, linkFormat, (*verification).signature, (*verification).describeSignature},
		{attest.LinkDebug, linkDebug, linkFormat, (*verification).debug, (*verification).describeDebug},
		{attest.LinkServiceTD, linkServiceTD, linkFormat, (*verification).serviceTD, (*verification).describeServiceTD},
		{attest.LinkCollateral, linkCollateral, linkFormat | linkChain, (*verification).collateral, (*verification).describeCollateral},
		{attest.LinkRevocation, linkRevocation, linkChain | linkCollateral, (*verification).revocation, (*verification).describeRevocation},
		{attest.LinkTCB, linkTCB, linkChain | linkCollateral, (*verification).tcb, (*verification).describeTCB},
		{attest.LinkEventLog, linkEventLog, linkFormat, (*verification).eventLog, (*verification).describeEventLog},
	}
}

// needsCollateral are the links that an offline verification leaves out.
const needsCollateral = linkCollateral | linkRevocation | linkTCB

// first checks the links up to the first that does not hold.
func (r *verification) first() (*attest.Claims, error) {
	for _, l := range links() {
		if r.offline && l.self&needsCollateral != 0 {
			continue
		}
		if err := l.check(r); err != nil {
			return nil, &attest.VerifyError{Link: l.name, Err: err}
		}
	}
	return r.succeed(), nil
}

// all checks every link that rests on none that failed.
func (r *verification) all() *Trace {
	t := &Trace{Steps: make([]Step, 0, linkCount)}
	var held, failed linkSet
	for _, l := range links() {
		s := Step{Link: l.name}
		switch {
		case r.offline && l.self&needsCollateral != 0:
			s.Detail = "not asked for"
		case l.needs&^held != 0:
			s.Detail = "not checked: it rests on " + strings.Join(l.needs.without(held).names(), ", ")
		default:
			s.Checked = true
			if s.Err = l.check(r); s.Err != nil {
				failed |= l.self
				break
			}
			held |= l.self
			s.Detail = l.describe(r)
		}
		t.Steps = append(t.Steps, s)
	}
	if failed == 0 {
		t.Claims = r.succeed()
	}
	return t
}

func (s linkSet) without(o linkSet) linkSet { return s &^ o }

func (s linkSet) names() []string {
	var names []string
	for _, l := range links() {
		if s&l.self != 0 {
			names = append(names, l.name)
		}
	}
	return names
}

// succeed is called once every link holds. Only now is anything remembered.
func (r *verification) succeed() *attest.Claims {
	if !r.known && len(r.quote.tail) <= maxEnclaveBytes {
		r.v.enclaves.store(string(r.quote.tail), r.enclave)
	}
	if r.ev.EventLog != nil && len(r.ev.EventLog) <= maxLogBytes {
		r.v.logs.store(string(r.ev.EventLog), r.log)
	}
	q, ext := r.quote, r.enclave.pck.ext
	c := &attest.Claims{
		TEE:  "tdx",
		MRTD: q.MRTD(), RTMR: q.RTMRs(),
		MRConfigID: q.MRConfigID(), MROwner: q.MROwner(), MROwnerConfig: q.MROwnerConfig(),
		MRSeam:     q.MRSeam(),
		ReportData: q.ReportData(),
		FMSPC:      bytes.Clone(ext.FMSPC[:]),
		PPID:       bytes.Clone(ext.PPID[:]),
		TrustRoot:  r.v.root,
	}
	if !r.offline {
		c.TCB = r.verdict.status()
		c.PlatformTCB, c.ModuleTCB, c.QETCB = r.verdict.platform.Status, r.verdict.module.Status, r.verdict.qe.Status
		c.Advisories = r.verdict.advisories()
	}
	return c
}
